"""Small random checkpoints of the systems of others, made offline: for tests and benchmarks.

Real classes, real layouts, real file names; tiny widths and tokenizers. They know nothing; those that write where
things are can do so for the queries and pictures here alone (vlseg.systems.writing_specimens).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.types import VLSegError

QUERIES = (
    "the red mug left of the laptop",
    "a dog",
    "the man in the blue shirt on the right",
    "second sheep from the left",
    "white plate with the cake",
    "the woman holding an umbrella",
    "a bicycle",
    "the black cat under the table",
)
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 2}
LETTERS = [chr(code) for code in range(33, 127)]


def pictures() -> list[Image.Image]:
    """Two pictures of coloured blocks, of different sizes, RGB."""
    made = []
    for seed, size in enumerate([(160, 120), (112, 144)]):
        colours = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
        made.append(Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR))
    return made


def spread(model: torch.nn.Module, factor: float) -> None:
    """Multiply all matrices, so that words and places matter as they do in trained weights."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(factor)


def write_clip_tokenizer(folder: Path, length: int = 32) -> int:
    """A CLIP byte-pair tokenizer of single letters; returns the size of its vocabulary. The last token is the end."""
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def write_real_clip_tokenizer(folder: Path) -> int:
    """CLIP's own, from the file that comes with open_clip; as `write_clip_tokenizer`."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(piece, piece): number for piece, number in own.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=list(own.bpe_ranks), model_max_length=77).save_pretrained(folder)
    return len(vocabulary)


def write_clipseg(folder: Path, real_shape: bool = False) -> None:
    """CLIPSeg. real_shape: ViT-B/16 at 352 pixels, as clipseg-rd64-refined, with CLIP's own tokenizer."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    rows = write_real_clip_tokenizer(folder) if real_shape else write_clip_tokenizer(folder, length=77)
    ends = {"bos_token_id": rows - 2, "eos_token_id": rows - 1, "pad_token_id": rows - 1}
    side = 352 if real_shape else 64
    if real_shape:
        config = CLIPSegConfig(
            text_config={"vocab_size": rows, **ends},
            vision_config={"patch_size": 16, "image_size": 224},
            use_complex_transposed_convolution=True,
        )
    else:
        tiny = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        config = CLIPSegConfig(
            text_config={**tiny, "num_hidden_layers": 2, "vocab_size": rows, **ends},
            vision_config={**tiny, "num_hidden_layers": 5, "patch_size": 16, "image_size": 64},
            projection_dim=24,
            extract_layers=[0, 1, 3],
            reduce_dim=16,
            decoder_intermediate_size=32,
            use_complex_transposed_convolution=True,
        )
    torch.manual_seed(0)
    model = CLIPSegForImageSegmentation(config)
    if not real_shape:
        spread(model, 6.0)
        with torch.no_grad():  # else the image drowns the words
            for projection in list(model.decoder.reduces)[1:]:
                projection.weight.mul_(0.001)  # type: ignore[operator]
    model.save_pretrained(folder)
    write_image_processor(folder, "ViTImageProcessor", {"height": side, "width": side}, "CLIPSegProcessor")


def write_sam2(folder: Path) -> None:
    """SAM 2 at 128 pixels."""
    from transformers import Sam2Config, Sam2Model

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [128, 128],
        "window_positional_embedding_background_size": [4, 4],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    )
    torch.manual_seed(1)
    model = Sam2Model(config)
    spread(model, 4.0)
    model.save_pretrained(folder)
    write_image_processor(folder, "Sam2ImageProcessor", {"height": 128, "width": 128}, "Sam2Processor")


def write_grounding_dino(folder: Path, kind: str = "grounding-dino") -> None:
    """Grounding DINO, or MM-Grounding DINO, of 16 boxes."""
    from transformers import (  # type: ignore[attr-defined]
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
    )

    # The model knows the marks between phrases by their numbers in the vocabulary of BERT.
    places = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    pieces = [f"[unused{number}]" for number in range(1100)]
    words = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
    pieces[200 : 200 + len(words)] = words
    for piece, number in places.items():
        pieces[number] = piece
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    options = {
        "backbone_config": {
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        "text_config": {
            "model_type": "bert",
            "vocab_size": len(pieces),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        "num_queries": 16,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "disable_custom_kernels": True,
    }
    classes: dict[str, Any] = {
        "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection),
        "mm-grounding-dino": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }
    config_class, model_class = classes[kind]
    torch.manual_seed(2)
    model = model_class(config_class(**options))
    spread(model, 2.0)
    model.save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 160}
    write_image_processor(folder, "GroundingDinoImageProcessor", size, "GroundingDinoProcessor")


def write_sam3(folder: Path) -> None:
    """SAM 3 of 12 instances at 112 pixels."""
    from transformers import Sam3Config, Sam3Model

    rows = write_clip_tokenizer(folder)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model",
                **tiny,
                "num_hidden_layers": 2,
                "image_size": 112,
                "pretrain_image_size": 56,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={
            **tiny,
            "num_hidden_layers": 2,
            "vocab_size": rows,
            "max_position_embeddings": 32,
            "projection_dim": 32,
            "eos_token_id": rows - 1,
        },
        geometry_encoder_config={"hidden_size": 32, "num_layers": 1, "num_attention_heads": 4, "intermediate_size": 64},
        detr_encoder_config={"hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        detr_decoder_config={
            "hidden_size": 32,
            "num_layers": 2,
            "num_queries": 12,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4},
    )
    torch.manual_seed(3)
    model = Sam3Model(config)
    spread(model, 4.0)
    model.save_pretrained(folder)
    write_image_processor(folder, "Sam3ImageProcessor", {"height": 112, "width": 112}, "Sam3Processor")


def write_image_processor(folder: Path, kind: str, size: dict[str, int], processor: str, **more: Any) -> None:
    """The file that transformers looks for."""
    settings = {"image_processor_type": kind, "processor_class": processor, "size": size, **HALF, **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _writers() -> dict[str, tuple[Callable[[Path], None], ...]]:
    from vlseg.systems.open_clip_specimens import write_open_clip
    from vlseg.systems.writing_specimens import write_florence2, write_paligemma, write_qwen3_vl, write_qwen25_vl

    return {
        "clipseg": (write_clipseg,),
        "grounded-sam2": (write_grounding_dino, write_sam2),
        "mm-grounded-sam2": (lambda folder: write_grounding_dino(folder, "mm-grounding-dino"), write_sam2),
        "sam3": (write_sam3,),
        "florence2": (write_florence2,),
        "qwen3-vl+sam2": (write_qwen3_vl, write_sam2),
        "qwen2.5-vl+sam2": (write_qwen25_vl, write_sam2),
        "paligemma": (write_paligemma,),
        "open_clip": (write_open_clip,),
    }


def write_specimen(system: str, folder: str | Path) -> list[Path]:
    """Write a random checkpoint for each part of a preset; returns their folders. Raises VLSegError."""
    writers = _writers()
    if system not in writers:
        raise VLSegError(f"specimen {system!r}: unknown; known: {', '.join(writers)}")
    folders = []
    for number, writer in enumerate(writers[system]):
        part = Path(folder) / f"{number}"
        part.mkdir(parents=True, exist_ok=True)
        writer(part)
        folders.append(part)
    return folders
