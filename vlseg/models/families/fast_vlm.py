"""FastVLM: a convolutional timm tower whose feature map, row by row, is the run of image tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlseg.models.families.base import Family


class FastVlmFamily(Family):
    """`FastVlmForConditionalGeneration`; the tower takes any size that its stride divides."""

    def tower(self, vlm: Any) -> nn.Module | None:
        """The timm tower itself."""
        return vlm.model.vision_tower.timm_model

    def idle(self, vlm: Any) -> list[nn.Module]:
        """The timm tower's classification head: the feature map is taken before it."""
        head = getattr(vlm.model.vision_tower.timm_model, "head", None)
        return [] if head is None else [head]

    def grid(self, features: Any) -> tuple[int, int]:
        """(rows, columns): the size of the tower's last feature map (B, C, rows, columns)."""
        rows, columns = features.last_hidden_state.shape[-2:]
        return int(rows), int(columns)
