"""Models built from nothing: the embedded `mini` and the `tiny` one of the tests. Real classes, small shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import FastVlmConfig, Qwen2Config
from transformers.models.timm_wrapper import TimmWrapperConfig

from vlseg.models.configuration import REJ_TOKEN, SEG_TOKEN, VLSegConfig
from vlseg.models.modeling import VLSegModel
from vlseg.models.pixel_encoder_named import fill, named
from vlseg.models.processing import VLSegProcessor
from vlseg.models.tokenizer import IMAGE, word_tokenizer
from vlseg.types import VLSegError

PRESETS: dict[str, dict[str, Any]] = {
    "mini": {
        "tower": "convnext_atto",
        "tower_dim": 320,
        "text": {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "num_attention_heads": 4},
        "head": {"presence": True, "presence_dim": 64, "ground": 64, "group": 32},
    },
    "tiny": {
        "tower": "test_convnext",
        "tower_dim": 64,
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "head": {
            "dim": 32,
            "embed_dim": 16,
            "detail_dim": 8,
            "layers": 2,
            "noun_dim": 16,
            "presence": True,
            "ground": 16,
        },
    },
}


def build_preset(
    name: str,
    words: Iterable[str],
    nouns: int,
    seed: int,
    head: dict[str, Any] | None = None,
    pixel_encoder: dict[str, Any] | None = None,
) -> tuple[VLSegModel, VLSegProcessor]:
    """A fresh model and its processor. words: the vocabulary; nouns: prototypes of the dense noun contrast.

    head: changes to the preset's, keys as in `VLSegConfig.head`; pixel_encoder: in place of the preset's, as in
    `VLSegConfig` or by name (`models/pixel_encoder_named.py`).
    """
    if name not in PRESETS:
        raise VLSegError(f"model.preset: unknown {name!r}; known: {', '.join(PRESETS)}")
    spec = PRESETS[name]
    tokenizer = word_tokenizer(words)
    vocabulary = tokenizer.get_vocab()
    image, seg, rej = (vocabulary[token] for token in (IMAGE, SEG_TOKEN, REJ_TOKEN))
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=spec["text"]["num_attention_heads"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **spec["text"],
    )
    vision = TimmWrapperConfig(
        architecture=spec["tower"],
        do_pooling=False,
        hidden_size=spec["tower_dim"],  # type: ignore[call-arg]  # taken as an extra key, read by FastVLM
        model_args={"output_stride": 16},
    )
    vlm = FastVlmConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image,
        tie_word_embeddings=True,
    )
    own = {
        "kind": "open_clip",
        "embed_dim": 64,
        "vision_cfg": {
            "timm_model_name": spec["tower"],
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "",
            "image_size": 256,
        },
    }
    described, weights = named(pixel_encoder or own)
    config = VLSegConfig(
        vlm=vlm,
        pixel_encoder=described,
        head={**spec["head"], "nouns": nouns, **(head or {})},
        seg_token_id=seg,
        rej_token_id=rej,
        prefix_position="fourier",
        image_attention="bidirectional",
        image_positions="shared",
    )
    model = fresh(config, seed)
    if weights is not None:
        fill(model.pixel_encoder, weights)
    return model, VLSegProcessor.from_config(tokenizer, config)


def fresh(config: VLSegConfig, seed: int) -> VLSegModel:
    """A model with random weights; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = VLSegModel(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith(".gamma"):  # ConvNeXt's layer scale starts at 1e-6, meant for 300-epoch runs
                value.fill_(0.1)
    return model
