"""Image features of a batch taken apart into images, and images put together to a batch again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from vlseg.models.modeling import ImageFeatures


def split_features(features: ImageFeatures, batch: int) -> list[ImageFeatures]:
    """One `ImageFeatures` of a single image per image of the batch, each with memory of its own.

    Every tensor holds the batch in its first dimension, or the tokens of equally large images one after the other.
    """
    return [_walk(lambda tensor, b=b: tensor.chunk(batch)[b].clone(), features) for b in range(batch)]


def join_features(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    """The inverse of `split_features`, for images of one input size. A single part comes back as it is."""
    return parts[0] if len(parts) == 1 else _walk(lambda *tensors: torch.cat(tensors), *parts)


def features_bytes(features: ImageFeatures) -> int:
    """Memory of all tensors, in bytes."""
    total = 0

    def add(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    _walk(add, features)
    return total


def _walk(function: Callable[..., torch.Tensor], *trees: Any) -> Any:
    """Apply a function to the tensors that stand at the same place of every tree; the rest is taken from the first."""
    first = trees[0]
    if isinstance(first, torch.Tensor):
        return function(*trees)
    if isinstance(first, Mapping):  # before dataclasses: the outputs of transformers are both
        return type(first)(**{key: _walk(function, *(tree[key] for tree in trees)) for key in first})
    if isinstance(first, list | tuple):
        return type(first)(_walk(function, *parts) for parts in zip(*trees, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        return replace(first, **{n: _walk(function, *(getattr(tree, n) for tree in trees)) for n in names})
    return first
