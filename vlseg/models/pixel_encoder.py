"""Pixel encoders: an image to a pyramid of feature maps.

| kind | what it is | in `VLSegConfig.pixel_encoder` |
|---|---|---|
| open_clip | the vision tower of an open_clip model: its own ViT or ResNet, any of timm | `vision_cfg`, `embed_dim` |
| hf | a backbone of transformers: DINOv2, DINOv3, Swin, ConvNeXt, SAM 2's Hiera, ... | `config` |
| vlm | the vision-language model's own features, no second encoder (SELF1E, MLLMSeg) | `levels` |

Every kind also takes `pyramid_dim`, the width of the pyramid that is made of an encoder with one stride, and `mean`,
`std`, with which the encoder wants its images normalised, where they are not those of the language model. How to name
one with pretrained weights: see `models/pixel_encoder_named.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlseg.models.families.base import resized
from vlseg.models.pixel_pyramid import STRIDES, Pyramid
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig

PYRAMID_DIM = 256  # at most; narrower encoders keep their width


class PixelEncoder(nn.Module):
    """Base of all kinds. A kind sets `trunk` (None without one of its own) and calls `shape`; it gives `features`.

    levels: which features of the language model's vision tower it reads (see `Family.encode`).
    channels, strides: of the maps that `forward` gives, finest first; strides 4, 8 and 16 are always there.
    """

    levels: tuple[int, ...] = ()

    def __init__(self, spec: dict[str, Any], standard: dict[str, Any]):
        super().__init__()
        self.spec, self.standard = spec, standard
        self.trunk: Any = None
        self.pyramid: Pyramid | None = None
        self.channels: list[int] = []
        self.strides: list[int] = []
        self.patch = 0  # pixels a side of a patch of a plain trunk; 0: the trunk takes images as they are

    def shape(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Say what `features` gives: maps at `STRIDES`, or maps of one stride that become a pyramid."""
        if set(strides) >= set(STRIDES[:3]):
            self.channels, self.strides = list(channels), list(strides)
            return
        if len(set(strides)) > 1:
            raise VLSegError(f"pixel_encoder: maps at strides {list(strides)}; needed are 4, 8 and 16, or one stride")
        self.patch = strides[0]
        dim = min(self.spec.get("pyramid_dim", PYRAMID_DIM), channels[0])
        self.pyramid = Pyramid(channels, self.stride, dim)
        self.channels, self.strides = self.pyramid.channels, self.pyramid.strides

    @property
    def stride(self) -> int:
        """The stride in `STRIDES` that is nearest to a plain trunk's patch: 16 for one of 14."""
        return min(STRIDES, key=lambda s: max(s / self.patch, self.patch / s))

    def features(self, pixels: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Feature maps of the trunk. pixels: (B, 3, H, W) as the trunk wants them; maps: the language model's."""
        raise NotImplementedError

    def forward(self, pixels: torch.Tensor, maps: Sequence[torch.Tensor] = ()) -> list[torch.Tensor]:
        """pixels: (B, 3, H, W), normalised for the language model, H and W multiples of 16 (of 32 for trunks that
        halve five times); maps: its features at `levels`. Returns (B, C_i, H / s_i, W / s_i), finest first."""
        height, width = pixels.shape[-2:]
        found = self.features(self.view(pixels), maps)
        found = list(found) if self.pyramid is None else self.pyramid(found)
        for level, stride in zip(found, self.strides, strict=True):
            if tuple(level.shape[-2:]) != (-(-height // stride), -(-width // stride)):
                raise VLSegError(
                    f"pixel_encoder: a map of {tuple(level.shape[-2:])} cells for a picture of {height} x {width} is "
                    f"not at stride {stride}; this encoder does not fit, or sides must be multiples of {STRIDES[-1]}"
                )
        return found

    def view(self, pixels: torch.Tensor) -> torch.Tensor:
        """The image as the trunk wants it: with its own mean and std, and as many patches as cells at its stride."""
        mean, std = self.spec.get("mean"), self.spec.get("std")
        if mean is not None and std is not None:
            ours = zip(self.standard["mean"], self.standard["std"], mean, std, strict=True)
            change = [(s / t, (m - n) / t) for m, s, n, t in ours]
            scale, shift = pixels.new_tensor(change).t()[..., None, None]
            pixels = pixels * scale + shift
        if self.patch and self.patch != self.stride:
            rows, columns = (side // self.stride for side in pixels.shape[-2:])
            pixels = resized(pixels, rows * self.patch, columns * self.patch)
        return pixels


def build_pixel_encoder(config: VLSegConfig) -> PixelEncoder:
    """The encoder that `config.pixel_encoder` describes, with random weights. Raises VLSegError for an unknown kind."""
    from vlseg.models.pixel_encoder_hf import HfEncoder
    from vlseg.models.pixel_encoder_open_clip import OpenClipEncoder
    from vlseg.models.pixel_encoder_vlm import VlmEncoder

    kinds = {"hf": HfEncoder, "open_clip": OpenClipEncoder, "vlm": VlmEncoder}
    spec = config.pixel_encoder
    if spec.get("kind") not in kinds:
        raise VLSegError(f"pixel_encoder.kind: unknown {spec.get('kind')!r}; known: {', '.join(kinds)}")
    return kinds[spec["kind"]](spec, config)
