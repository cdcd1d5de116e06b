"""Pixel encoders: an image to a pyramid of feature maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlseg.types import VLSegError


class OpenClipEncoder(nn.Module):
    """The vision tower of an open_clip model, its classification head left out.

    spec: `{"vision_cfg": {...}, "embed_dim": int}` as in open_clip's own model JSON (`timm_model_name` and so on).
    forward: (B, 3, H, W) float to a list of (B, C_i, H / s_i, W / s_i) with s = `strides`, C = `channels`.
    """

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        from open_clip.model import _build_vision_tower

        tower = _build_vision_tower(spec["embed_dim"], dict(spec["vision_cfg"]))
        trunk = getattr(tower, "trunk", None)
        if trunk is None or not hasattr(trunk, "feature_info"):
            raise VLSegError("pixel_encoder: only open_clip towers from timm (vision_cfg.timm_model_name)")
        trunk.prune_intermediate_layers(prune_norm=True, prune_head=True)
        self.trunk = trunk
        self.channels: list[int] = [level["num_chs"] for level in trunk.feature_info]
        self.strides: list[int] = [level["reduction"] for level in trunk.feature_info]

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) to the feature maps, finest first."""
        return self.trunk.forward_intermediates(pixels, intermediates_only=True)


def build_pixel_encoder(spec: dict[str, Any]) -> OpenClipEncoder:
    """The encoder that a configuration names. Raises VLSegError for an unknown kind."""
    if spec.get("kind") != "open_clip":
        raise VLSegError(f"pixel_encoder.kind: unknown {spec.get('kind')!r}; known: open_clip")
    return OpenClipEncoder(spec)
