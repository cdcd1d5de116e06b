"""The loss of groups: a pixel's group lies in the thing that it is a pixel of."""

from __future__ import annotations

import torch

LEAST = 1e-3  # a share of a group counts as so much at least


def with_outside(regions: torch.Tensor, open_: torch.Tensor | None = None) -> torch.Tensor:
    """Regions (B, M, h, w) in 0..1, and as one more what lies outside of all of them, (B, M + 1, h, w).

    open_: (B, h, w) in 0..1, what belongs to no region and not to the outside either.
    """
    outside = 1 - regions.sum(1, keepdim=True).clamp(max=1)
    if open_ is not None:
        outside = (outside - open_[:, None]).clamp(min=0)
    return torch.cat([regions, outside], 1).float()


def group_loss(shares: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """-log of the share of a pixel's group that lies in the pixel's region: the mean over the pixels of each region,
    and of these over an image's regions.

    regions: (B, M, n) in 0..1, the share of each of n pixels that a region covers. Empty ones count for nothing, and
    they may overlap: a part lies in its whole, so its pixels' groups must, too. shares: the same shape, of each pixel's
    group. Returns (B,).
    """
    surprise = -shares.clamp(min=LEAST, max=1).log()
    area = regions.sum(-1)
    counts = (area >= 0.5).float()  # less than half a pixel has no pixel to speak for it
    means = (regions * surprise).sum(-1) / area.clamp(min=0.5)
    return (means * counts).sum(1) / counts.sum(1).clamp(min=1)
