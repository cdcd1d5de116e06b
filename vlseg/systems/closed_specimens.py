"""Small random checkpoints of systems with a closed set of classes, made offline: for tests and benchmarks.

Real classes, real layouts, real file names; tiny widths. They know nothing, but their masks are neither empty nor full
and their classes differ, so that two ways to read them can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlseg.systems.specimens import spread, write_clip_tokenizer

LABELS = ("person", "car", "dog", "cat", "tree-merged", "sky-other-merged", "wall-brick", "N/A")
SWIN: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
HEAD: dict[str, Any] = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "dim_feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 12,
}


def _blocks() -> np.ndarray:
    """(72, 96, 3) uint8, blocks of random colours."""
    colours = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return colours.repeat(12, 0).repeat(12, 1)


def _labels() -> dict[str, Any]:
    return {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}


def write_mask2former(folder: Path) -> None:
    """Mask2Former on a Swin of 16 channels."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN), feature_size=32, mask_feature_size=32, **HEAD, **_labels()
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    spread(model, 3.0)
    embedder = model.model.transformer_module.decoder.mask_predictor.mask_embedder
    _solve(model, processor(images=[_blocks()], return_tensors="pt"), model.class_predictor, embedder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_oneformer(folder: Path) -> None:
    """OneFormer on the same Swin, its class table beside it."""
    import json

    from transformers import (
        CLIPTokenizer,
        OneFormerConfig,
        OneFormerForUniversalSegmentation,
        OneFormerImageProcessor,
        OneFormerProcessor,
        SwinConfig,
    )

    folder.mkdir(parents=True, exist_ok=True)
    length = 24
    rows = write_clip_tokenizer(folder, length)
    config = OneFormerConfig(
        backbone_config=SwinConfig(**SWIN),
        is_training=False,
        conv_dim=32,
        mask_dim=32,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_n_ctx=4,
        text_encoder_context_length=length,
        text_encoder_vocab_size=rows,
        task_seq_len=length,
        query_dec_layers=1,
        **HEAD,
        **_labels(),
    )
    torch.manual_seed(0)
    model = OneFormerForUniversalSegmentation(config)
    spread(model, 3.0)
    table = {str(i): {"name": label, "isthing": int(i < 4)} for i, label in enumerate(LABELS)}
    (folder / "classes.json").write_text(json.dumps(table), encoding="utf-8")
    images = OneFormerImageProcessor(
        size={"shortest_edge": 96, "longest_edge": 128},
        repo_path=str(folder),
        class_info_file="classes.json",
        num_text=8,
        num_labels=len(LABELS),
    )
    words = CLIPTokenizer.from_pretrained(folder)
    processor = OneFormerProcessor(images, words, max_seq_length=length, task_seq_length=length)
    inputs = processor(images=[_blocks()], task_inputs=["panoptic"], return_tensors="pt")
    head = model.model.transformer_module.decoder
    _solve(model, inputs, head.class_embed, head.mask_embed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_eomt(folder: Path, split: bool = False) -> None:
    """EoMT of 32 channels at 64 pixels. split: as its semantic checkpoints, which cut an image into tiles."""
    from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        num_blocks=2,
        num_queries=12,
        **_labels(),
    )
    torch.manual_seed(0)
    model = EomtForUniversalSegmentation(config)
    _sharpen(model, "class_predictor", "mask_head")
    model.save_pretrained(folder)
    size = {"shortest_edge": 64} if split else {"shortest_edge": 64, "longest_edge": 64}
    EomtImageProcessor(size=size, do_split_image=split, do_pad=not split).save_pretrained(folder)


def write_clip_text(folder: Path) -> None:
    """The text tower of a CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    rows = write_clip_tokenizer(folder, 77)
    ends: dict[str, Any] = {"bos_token_id": rows - 2, "eos_token_id": rows - 1, "pad_token_id": rows - 1}
    tiny: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    }
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=rows, projection_dim=24, **tiny, **ends))
    spread(model, 4.0)
    model.save_pretrained(folder)


def _sharpen(model: torch.nn.Module, *heads: str) -> None:
    """Spread all matrices a little and those of the heads more, so that queries differ and are sure of themselves."""
    spread(model, 3.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and any(head in name for head in heads):
                weight.mul_(3.0)


def _solve(model: Any, inputs: Any, classify: torch.nn.Linear, embedder: torch.nn.Module) -> None:
    """Heads of queries that are all alike, solved for one image: each query sure of a class, masks of their own.

    classify: from a query to its class; embedder: from a query to its mask, of which the last layer is solved. What is
    solved changes what the queries attend to, so it takes a few rounds.
    """
    embed = [module for module in embedder.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    for layer in (classify, embed):
        layer.register_forward_hook(lambda module, given, _: seen.__setitem__(module, given[0].detach()))
    model.eval()

    def masks() -> torch.Tensor:
        return model(**inputs).masks_queries_logits[0].flatten(1)

    with torch.no_grad():
        for _ in range(3):
            masks()
            states, hidden = (seen[layer].reshape(-1, layer.in_features) for layer in (classify, embed))
            count = len(states)
            wanted = torch.full((count, classify.out_features), -1.0)
            wanted[torch.arange(count), torch.arange(count) % len(LABELS)] = 5.0
            _fit(classify, states, wanted)
            places = torch.randn(count, embed.out_features, generator=torch.Generator().manual_seed(0))
            _fit(embed, hidden, places)
            means = masks().mean(
                1, keepdim=True
            )  # without what all pixels have in common masks are neither empty nor full
            places -= means * (means.T @ places) / (means.T @ means)
            _fit(embed, hidden, places)
            _fit(embed, hidden, places * 4 / masks().std())
    for layer in (classify, embed):
        layer._forward_hooks.clear()


def _fit(layer: torch.nn.Linear, given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Weights and bias with which the layer turns each row into the one that is wanted."""
    with_one = torch.cat([given, torch.ones(len(given), 1)], 1).double()
    solved = torch.linalg.pinv(with_one, rtol=1e-4) @ wanted.double()
    layer.weight.copy_(solved[:-1].T)
    layer.bias.copy_(solved[-1])
