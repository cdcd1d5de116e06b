"""Rectified cost aggregation: what a query's words say of every pixel, before the head reads the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.channel_norm import ChannelNorm


@dataclass(slots=True)
class Fused:
    """features: (B, K, D, h, w), each query's map at the finest scale. scales: (B, K, D, h_i, w_i), before they are
    mixed. text: one (B, K, D) a scale, what the query says there; no value below 0."""

    features: torch.Tensor
    scales: list[torch.Tensor]
    text: list[torch.Tensor]


class RectifiedCostAggregator(nn.Module):
    """TALENT's RCA (arXiv 2604.00609, `CostVolume` of its code), in place of cross-attention: no softmax, O(H W D).

    At every scale i, with v = ReLU(norm(conv(map_i))) and t = ReLU(W project(state)):

        cost = <v, t>,    out_i = ReLU(conv_{1 -> D}(norm(cost))) * v

    The scales side by side, a 1x1 convolution with norm and ReLU, and a residual convolution that sees coordinates.
    Memory grows with the queries: each has maps of its own, at strides 8 and up.
    Where TALENT has BatchNorm, maps are normalised over their channels and costs over their own map: packed equals one
    by one, and nothing depends on the batch.
    """

    def __init__(self, dim: int, scales: int):
        super().__init__()
        self.look = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), ChannelNorm(dim), nn.ReLU()) for _ in range(scales)
        )
        self.say = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.ReLU()) for _ in range(scales)
        )
        self.gate = nn.ModuleList(nn.Sequential(nn.Conv2d(1, dim, 1), nn.ReLU()) for _ in range(scales))
        self.mix = nn.Sequential(nn.Conv2d(scales * dim, dim, 1, bias=False), ChannelNorm(dim), nn.ReLU())
        self.place = nn.Sequential(nn.Conv2d(dim + 2, dim, 3, padding=1, bias=False), ChannelNorm(dim), nn.ReLU())

    def forward(self, maps: Sequence[torch.Tensor], state: torch.Tensor) -> Fused:
        """maps: (B, D, h_i, w_i), coarse to fine; state: (B, K, D)."""
        b, k = state.shape[:2]
        size = maps[-1].shape[-2:]
        scales, text = [], []
        for level, look, say, gate in zip(maps, self.look, self.say, self.gate, strict=True):
            v, t = look(level), say(state)
            cost = torch.einsum("bdhw,bkd->bkhw", v.float(), t.float())
            deviation, mean = torch.var_mean(cost, (-2, -1), correction=0, keepdim=True)
            cost = (cost - mean) * torch.rsqrt(deviation + 1e-5)
            opened = gate(cost.flatten(0, 1)[:, None].to(v.dtype)).unflatten(0, (b, k))
            scales.append(opened * v[:, None])
            text.append(t)
        level_up = [F.interpolate(s.flatten(0, 1), size=size, mode="bilinear", align_corners=False) for s in scales]
        mixed = self.mix(torch.cat(level_up, 1))
        features = mixed + self.place(torch.cat([mixed, coordinates(mixed)], 1))
        return Fused(features.unflatten(0, (b, k)), scales, text)


def coordinates(like: torch.Tensor) -> torch.Tensor:
    """(B, 2, h, w), x and y of the cells' centres in -1..1, for maps (B, C, h, w); as in CoordConv (1807.03247)."""
    height, width = like.shape[-2:]
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width * 2 - 1
    grid = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])
    return grid.to(like.dtype).expand(len(like), -1, -1, -1)
