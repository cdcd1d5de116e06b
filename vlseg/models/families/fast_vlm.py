"""FastVLM: a convolutional timm tower whose feature map, row by row, is the run of image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vlseg.models.families.base import Family, ImageTokens


class FastVlmFamily(Family):
    """`FastVlmForConditionalGeneration`; the tower takes any size that its stride divides."""

    def encode(self, vlm: Any, pixel_values: torch.Tensor, levels: Sequence[int] = ()) -> ImageTokens:
        """See `Family.encode`; the stock tower hands out its last map only, so levels is () or (-1,)."""
        if any(level != -1 for level in levels):
            raise NotImplementedError("FastVLM's tower hands out its last feature map only: levels must be [-1]")
        out = vlm.model.get_image_features(pixel_values=pixel_values, return_dict=True)
        rows, columns = out.last_hidden_state.shape[-2:]
        return ImageTokens(out.pooler_output, (int(rows), int(columns)), maps=(out.last_hidden_state,) * len(levels))

    def tower(self, vlm: Any) -> nn.Module | None:
        """The timm tower itself."""
        return vlm.model.vision_tower.timm_model

    def idle(self, vlm: Any) -> list[nn.Module]:
        """The timm tower's classification head: the feature map is taken before it."""
        head = getattr(vlm.model.vision_tower.timm_model, "head", None)
        return [] if head is None else [head]

    def area(self, standard: int, stock: dict[str, Any]) -> int:
        """At least that of its own image processor (1024 x 1024)."""
        size = stock.get("crop_size") or stock.get("size") or {}
        return max(standard, size.get("height", 0) * size.get("width", 0))

    def multiple(self) -> int | None:
        """The stride of FastViTHD, and a multiple of those of timm's other towers."""
        return 64
