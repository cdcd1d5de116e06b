"""Tiny models of which every query has a mask of its own, half empty: for tests of what a head adds to masks."""

from collections.abc import Callable
from typing import Any

import torch

from vlseg.models.modeling import VLSegModel, VLSegOutput
from vlseg.models.presets import build_preset
from vlseg.models.processing import VLSegProcessor

WORDS = ["the", "red", "dog", "left", "of", "a", "tree", "mug"]
QUERIES = ["the red dog", "mug left of the tree", "the xyz", "a dog"]


def inputs(processor: VLSegProcessor, texts: Any = (tuple(QUERIES),), seed: int = 0) -> dict[str, torch.Tensor]:
    """A random picture of 96 x 128 px and queries, as a model takes them."""
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, **processor.pack(texts).tensors()}


@torch.no_grad()
def tiny_head(
    strengthen: Callable[[VLSegModel], None], logits: Callable[[VLSegOutput], torch.Tensor], **head: Any
) -> tuple[VLSegModel, VLSegProcessor]:
    """A tiny model with this head. strengthen: makes what is tested matter; logits: those whose median comes to 0."""
    model, processor = build_preset("tiny", WORDS, nouns=7, seed=3, head={"blocks": 2, **head})
    for weight in model.vlm.model.language_model.layers.parameters():  # let attention matter
        if weight.ndim == 2:
            weight.mul_(5)
    strengthen(model)
    model.mask_head.bias.bias.sub_(logits(model.eval()(**inputs(processor))).median())
    return model, processor
