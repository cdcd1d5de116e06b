"""From the encoder's pyramid to pixel embeddings that know what and where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.channel_norm import ChannelNorm
from vlseg.models.grouping import Grouping, Groups


def fourier_grid(height: int, width: int, bands: int, device: torch.device | None = None) -> torch.Tensor:
    """(4 * bands + 2, height, width) float32: pixel-centre coordinates in -1..1 and their sines and cosines.

    The bands double from half a period over the image, as in NeRF's position code (arXiv 2003.08934).
    """
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"))
    angles = torch.cat([grid * (math.pi / 2 * 2**band) for band in range(bands)])
    return torch.cat([grid, angles.sin(), angles.cos()])


class FourierPosition(nn.Module):
    """A learned projection of `fourier_grid`: `forward(h, w) -> (dim, h, w)`."""

    def __init__(self, dim: int, bands: int = 5):
        super().__init__()
        self.bands = bands
        self.project = nn.Linear(4 * bands + 2, dim)

    def forward(self, height: int, width: int) -> torch.Tensor:
        grid = fourier_grid(height, width, self.bands, self.project.weight.device)
        return self.project(grid.permute(1, 2, 0).to(self.project.weight.dtype)).permute(2, 0, 1)


class ConvBlock(nn.Module):
    """Residual 3x3 convolution: x + conv(gelu(norm(x)))."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(F.gelu(self.norm(x)))


@dataclass(slots=True)
class PixelFeatures:
    """What the mask head reads. memory: maps at strides 16 and 8, (B, dim, h, w) each. embedding: (B, E, H/4, W/4).
    detail: (B, D, H/2, W/2) or None. nouns: (B, N, H/8, W/8) unit vectors, or None. context: the map at stride 32 where
    the encoder goes that far. trunk: see `EomtHead.prepare`. groups: with `head.group`."""

    memory: list[torch.Tensor]
    embedding: torch.Tensor
    detail: torch.Tensor | None
    nouns: torch.Tensor | None
    context: torch.Tensor | None = None
    trunk: list[torch.Tensor] = field(default_factory=list)
    groups: Groups | None = None

    @property
    def levels(self) -> list[torch.Tensor]:
        """The maps of one width, coarse to fine."""
        return self.memory if self.context is None else [self.context, *self.memory]


class PixelDecoder(nn.Module):
    """A feature pyramid network (arXiv 1612.03144) with coordinates added at every level."""

    def __init__(self, channels: list[int], strides: list[int], head: dict[str, Any]):
        super().__init__()
        dim = head["dim"]
        self.strides = strides
        self.lateral = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        self.enter = nn.ModuleList(ChannelNorm(c) for c in channels)
        self.position = nn.ModuleList(FourierPosition(dim) for _ in channels)
        self.block = nn.ModuleList(ConvBlock(dim) for _ in channels)
        self.embed = nn.Sequential(ChannelNorm(dim), nn.Conv2d(dim, head["embed_dim"], 3, padding=1))
        self.nouns = nn.Sequential(ChannelNorm(dim), nn.Conv2d(dim, head["noun_dim"], 1)) if head["nouns"] else None
        self.mix_nouns = nn.Conv2d(head["noun_dim"], head["embed_dim"], 1) if head["nouns"] else None
        self.grouping = Grouping(dim, head["group"]) if head["group"] else None
        self.stem: nn.Module | None = None
        if head["detail_dim"]:
            self.stem = nn.Conv2d(3, head["detail_dim"], 3, stride=2, padding=1)
            self.down = nn.Conv2d(head["embed_dim"], head["detail_dim"], 1)
            self.detail = nn.Sequential(
                ChannelNorm(head["detail_dim"]),
                nn.GELU(),
                nn.Conv2d(head["detail_dim"], head["detail_dim"], 3, padding=1),
            )

    def forward(self, pixels: torch.Tensor, maps: list[torch.Tensor]) -> PixelFeatures:
        """pixels: (B, 3, H, W) normalised image; maps: the encoder's pyramid, finest first."""
        x, levels = None, {}
        for i in reversed(range(len(maps))):
            height, width = maps[i].shape[-2:]
            here = self.lateral[i](self.enter[i](maps[i])) + self.position[i](height, width)
            if x is not None:
                here = here + F.interpolate(x, size=(height, width), mode="nearest")
            x = self.block[i](here)
            levels[self.strides[i]] = x
        embedding = self.embed(levels[4])
        nouns = None
        if self.nouns is not None and self.mix_nouns is not None:
            nouns = F.normalize(self.nouns(levels[8]).float(), dim=1)
            mixed = self.mix_nouns(nouns.to(embedding.dtype))
            embedding = embedding + F.interpolate(mixed, scale_factor=2.0, mode="bilinear", align_corners=False)
        detail = None
        if self.stem is not None:
            up = F.interpolate(self.down(embedding), scale_factor=2.0, mode="bilinear", align_corners=False)
            detail = self.detail(self.stem(pixels) + up)
        groups = None if self.grouping is None else self.grouping(levels[4], levels[8])
        return PixelFeatures([levels[16], levels[8]], embedding, detail, nouns, levels.get(32), groups=groups)
