"""The vision-language model's own features as pixel encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vlseg.models.pixel_encoder import PixelEncoder
from vlseg.models.pixel_pyramid import spread

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig


class VlmEncoder(PixelEncoder):
    """A pyramid from features of the vision tower before its patches are merged: no second encoder.

    As in SELF1E (arXiv 2603.19026) and MLLMSeg (arXiv 2508.04107). spec: `{"kind": "vlm", "levels": [...]}`; levels as
    in `Family.encode`, shallow to deep; left out: four depths of the tower, or its last map where that is all it gives.
    """

    def __init__(self, spec: dict[str, Any], config: VLSegConfig):
        super().__init__(spec, config.image)
        vision = config.vlm.vision_config
        self.levels = tuple(spec.get("levels") or tower_levels(vision))
        self.shape([vision.hidden_size] * len(self.levels), [16] * len(self.levels))

    def features(self, pixels: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The maps on a grid of 16 pixels a cell, whatever the tower made of the image."""
        size = [-(-side // 16) for side in pixels.shape[-2:]]
        return [F.interpolate(m.to(pixels.dtype), size=size, mode="bilinear", align_corners=False) for m in maps]


def tower_levels(vision: Any) -> list[int]:
    """Levels for a vision tower's configuration: four depths of a transformer, the last as the tower gives it."""
    depth = getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", None)
    return [*spread(depth)[:-1], -1] if depth else [-1]
