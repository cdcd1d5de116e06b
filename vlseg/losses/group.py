"""The loss of groups: a pixel's group lies in the thing that it is a pixel of."""

from __future__ import annotations

import torch

from vlseg.models.grouping import SURE, Groups


def group_loss(groups: Groups, regions: torch.Tensor, open_: torch.Tensor | None = None) -> torch.Tensor:
    """-log of the share of a pixel's group that lies in its region: a mean over the pixels of each region, and over the
    image's regions and what lies outside of all of them.

    regions: (B, M, h, w) in 0..1, at the size of `groups.pixels`, the share of a pixel that each covers; empty ones
    count for nothing, and they may overlap (a part lies in its whole: its group must, too). open_: (B, h, w) in 0..1,
    what belongs to no region and to no background. Returns (B,).
    """
    outside = 1 - regions.sum(1, keepdim=True).clamp(max=1)
    if open_ is not None:
        outside = (outside - open_[:, None]).clamp(min=0)
    kinds = torch.cat([regions, outside], 1).float()
    surprise = -groups.average(kinds).clamp(min=SURE, max=1).log()
    area = kinds.sum((-2, -1))
    counts = (area >= 0.5).float()  # less than half a cell has no pixel to speak for it
    means = (kinds * surprise).sum((-2, -1)) / area.clamp(min=0.5)
    return (means * counts).sum(1) / counts.sum(1).clamp(min=1)
