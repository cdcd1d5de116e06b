"""A pyramid from the maps of an encoder that knows one stride only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vlseg.models.channel_norm import ChannelNorm

STRIDES = (4, 8, 16, 32)


def spread(depth: int, count: int = len(STRIDES)) -> list[int]:
    """`count` layers of 1..depth, evenly spaced, the last one included; fewer where there are fewer."""
    return sorted({max(1, round(depth * (i + 1) / count)) for i in range(count)})


class Pyramid(nn.Module):
    """The simple feature pyramid of ViTDet (arXiv 2203.16527), fed from several depths as in DPT (arXiv 2103.13413).

    channels: of the incoming maps, shallow to deep; stride: theirs, one of `STRIDES`; dim: of the outgoing ones. The
    finest level is made from the shallowest map, the coarsest from the deepest. Only convolutions: no size is built in.
    """

    def __init__(self, channels: Sequence[int], stride: int, dim: int):
        super().__init__()
        last = len(channels) - 1
        self.source = [round(i * last / (len(STRIDES) - 1)) for i in range(len(STRIDES))]
        self.level = nn.ModuleList(
            _rescale(channels[source], dim, stride, wanted) for source, wanted in zip(self.source, STRIDES, strict=True)
        )
        self.channels, self.strides = [dim] * len(STRIDES), list(STRIDES)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(B, C, H / stride, W / stride) each to (B, dim, H / s, W / s) for s in `STRIDES`, rounded up."""
        return [level(maps[source]) for level, source in zip(self.level, self.source, strict=True)]


def _rescale(channels: int, dim: int, stride: int, wanted: int) -> nn.Sequential:
    layers: list[nn.Module] = [ChannelNorm(channels), nn.Conv2d(channels, dim, 1)]
    while stride > wanted:
        layers += [nn.ConvTranspose2d(dim, dim, 2, stride=2), ChannelNorm(dim), nn.GELU()]
        stride //= 2
    while stride < wanted:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        stride *= 2
    return nn.Sequential(*layers)
