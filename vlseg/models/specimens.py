"""Small random checkpoints of every supported family, made offline: for tests, benchmarks and trying things out.

Real classes, real layouts, real file names; tiny widths and a tokenizer of a few hundred pieces. They know nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedTokenizerFast

from vlseg.types import VLSegError

CORPUS = (
    "segment what these words refer to, or reject them if nothing in the picture fits: "
    "the red mug left of the tree; a dog which is next to the largest white cat on the second chair from the right"
)
CHAT = ["<|im_start|>", "<|im_end|>"]

# The picture stands in a template as the checkpoint's own template writes it; wording is ours.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for c in m.content %}{% if c.type == 'image' %}"
    "<image>{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def tokenizer_of(special: list[str], template: str | None, spaced: bool = False) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer that ends in `special`. spaced: marks spaces and puts one in front, as SentencePiece does,
    so that a token on its own becomes two."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>" if spaced else None))
    if spaced:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = ["<unk>"] if spaced else []
    trainer = BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator([CORPUS], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    options: dict[str, Any] = {"pad_token": special[0]}
    if spaced:
        options |= {"bos_token": "<bos>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    made.chat_template = template
    return made


def _text(kind: str, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        **more,
    }


def _vit(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        **more,
    }


def _qwen(kind: str, text: dict[str, Any], vision: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return {
        "text_config": text | {"rope_parameters": rope, "bos_token_id": 0, "eos_token_id": 0},
        "vision_config": vision
        | {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32},
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _qwen3(ids: dict[str, int], rows: int) -> dict[str, Any]:
    vision = {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64}
    text = _text("qwen3_vl_text", rows, tie_word_embeddings=True)
    made = _qwen("qwen3_vl", text, vision | {"deepstack_visual_indexes": [0, 1]}, ids)
    made["text_config"]["rope_parameters"]["mrope_interleaved"] = True
    return made | {"tie_word_embeddings": True}


def _qwen3_moe(ids: dict[str, int], rows: int) -> dict[str, Any]:
    made = _qwen3(ids, rows) | {"tie_word_embeddings": False}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    text = {"model_type": "qwen3_vl_moe_text", "tie_word_embeddings": False, "output_router_logits": True}
    made["text_config"] |= experts | text
    return made


def _qwen25(ids: dict[str, int], rows: int) -> dict[str, Any]:
    vision = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56}
    text = _text("qwen2_5_vl_text", rows)
    text.pop("head_dim")
    return _qwen("qwen2_5_vl", text, vision | {"fullatt_block_indexes": [1], "tokens_per_second": 2}, ids)


def _idefics(vision: str, ids: dict[str, int], rows: int) -> dict[str, Any]:
    return {
        "text_config": _text("llama", rows),
        "vision_config": _vit(vision, image_size=64, patch_size=8),
        "scale_factor": 2,
        "image_token_id": ids["<image>"],
        "pad_token_id": 0,
    }


def _internvl(ids: dict[str, int], rows: int) -> dict[str, Any]:
    vision = _vit("internvl_vision", image_size=[64, 64], patch_size=[8, 8], layer_scale_init_value=1.0)
    token = ids["<IMG_CONTEXT>"]
    return {
        "text_config": _text("qwen2", rows),
        "vision_config": vision,
        "image_token_id": token,
        "image_seq_length": 16,
    }


def _llava(ids: dict[str, int], rows: int) -> dict[str, Any]:
    return {
        "text_config": _text("qwen2", rows),
        "vision_config": _vit("siglip_vision_model", image_size=64, patch_size=8, vision_use_head=False),
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": [[64, 64], [64, 128], [128, 64], [128, 128]],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def _paligemma(text: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    return {
        "text_config": text | {"hidden_activation": "gelu_pytorch_tanh"},
        "vision_config": _vit("siglip_vision_model", image_size=64, patch_size=8, vision_use_head=False),
        "image_token_index": ids["<image>"],
        "projection_dim": 32,
        "hidden_size": 32,
    }


def _paligemma1(ids: dict[str, int], rows: int) -> dict[str, Any]:
    return _paligemma(_text("gemma", rows), ids)


def _paligemma2(ids: dict[str, int], rows: int) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8}
    return _paligemma(_text("gemma2", rows, sliding_window=16, **caps), ids)


def _fastvlm(ids: dict[str, int], rows: int) -> dict[str, Any]:
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "test_convnext",
        "do_pooling": False,
        "hidden_size": 64,
        "model_args": {"output_stride": 16},
    }
    return {"text_config": _text("qwen2", rows), "vision_config": vision, "image_token_index": ids["<image>"]}


QWEN = [*CHAT, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SMOL = [*CHAT, "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *TILES]
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"size": {"height": 64, "width": 64}}
SHAPES = {"shortest_edge": 3136, "longest_edge": 1003520}
PATCHES = {"temporal_patch_size": 2, "merge_size": 2, "size": SHAPES}
ROWS = {"do_image_splitting": False, "size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}

# name: (model type, configuration, special tokens, chat template, image processor)
SPECIMENS: dict[str, tuple[str, Callable[..., dict[str, Any]], list[str], str | None, dict[str, Any]]] = {
    "qwen3-vl": (
        "qwen3_vl",
        _qwen3,
        QWEN,
        CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, **HALF, **PATCHES},
    ),
    "qwen3-vl-moe": (
        "qwen3_vl_moe",
        _qwen3_moe,
        QWEN,
        CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16, **HALF, **PATCHES},
    ),
    "qwen2.5-vl": (
        "qwen2_5_vl",
        _qwen25,
        QWEN,
        CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, **CLIP, **PATCHES},
    ),
    "smolvlm": (
        "smolvlm",
        lambda ids, rows: _idefics("smolvlm_vision", ids, rows),
        SMOL,
        IDEFICS,
        {"image_processor_type": "SmolVLMImageProcessor", **HALF, **ROWS},
    ),
    "idefics3": (
        "idefics3",
        lambda ids, rows: _idefics("idefics3_vision", ids, rows),
        SMOL,
        IDEFICS,
        {"image_processor_type": "Idefics3ImageProcessor", **HALF, **ROWS},
    ),
    "internvl": (
        "internvl",
        _internvl,
        [*CHAT, "<img>", "</img>", "<IMG_CONTEXT>"],
        CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
        {"image_processor_type": "GotOcr2ImageProcessor", **CLIP, **SQUARE},
    ),
    "llava-onevision": (
        "llava_onevision",
        _llava,
        [*CHAT, "<image>", "<video>"],
        CHATML.replace("IMAGE", "<image>\n"),
        {"image_processor_type": "LlavaOnevisionImageProcessor", **HALF, **SQUARE},
    ),
    "paligemma": (
        "paligemma",
        _paligemma1,
        ["<pad>", "<bos>", "<eos>", "<image>"],
        None,
        {"image_processor_type": "SiglipImageProcessor", **HALF, **SQUARE},
    ),
    "paligemma2": (
        "paligemma",
        _paligemma2,
        ["<pad>", "<bos>", "<eos>", "<image>"],
        None,
        {"image_processor_type": "SiglipImageProcessor", **HALF, **SQUARE},
    ),
    "fastvlm": (
        "fast_vlm",
        _fastvlm,
        [*CHAT, "<image>"],
        CHATML.replace("IMAGE", "<image>\n"),
        {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.0] * 3, "image_std": [1.0] * 3},
    ),
}


def write_specimen(name: str, folder: str | Path, seed: int = 0, spread: float = 4.0) -> Path:
    """Write a random checkpoint of the family, as its users find it on the Hub; returns the folder.

    spread: factor on the matrices, so that attention and positions matter as they do in trained weights. Raises
    VLSegError for an unknown name.
    """
    if name not in SPECIMENS:
        raise VLSegError(f"specimen {name!r}: unknown; known: {', '.join(SPECIMENS)}")
    kind, make, special, template, processor = SPECIMENS[name]
    tokenizer = tokenizer_of(special, template, spaced=template is None)
    ids = tokenizer.get_vocab()
    config = CONFIG_MAPPING[kind](**make(ids, len(tokenizer)))
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(spread)
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
