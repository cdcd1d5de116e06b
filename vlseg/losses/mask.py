"""Mask losses per query: binary cross-entropy and dice; soft targets allowed, pixels to ignore left out.

valid, everywhere: (B, K, h, w) in 0..1, the share of a cell's pixels that count; None: all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

IGNORE = 255  # of a label map: neither inside nor outside


def bce_per_query(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Mean binary cross-entropy over the pixels that count; 0 where none does. target: in 0..1. Returns (B, K)."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss.mean((-2, -1)) if valid is None else weighted_mean(loss, valid)


def dice_per_query(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """1 - soft dice (V-Net, arXiv 1606.04797) with +1 smoothing. logits, target: (B, K, h, w). Returns (B, K)."""
    p = logits.sigmoid()
    if valid is not None:
        p, target = p * valid, target * valid
    overlap = (p * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def edge_per_query(
    logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None = None, reach: int = 2
) -> torch.Tensor:
    """Mean binary cross-entropy over the pixels that lie within `reach` of the target's outline, on either side.

    A thing's outline is few of its pixels: in the mean over the image it hardly counts, and masks stay blobs. Returns
    (B, K), 0 where there is no outline. target: in 0..1.
    """
    inside = target > 0.5
    band = (grown(inside, reach) & grown(~inside, reach)).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return weighted_mean(loss, band if valid is None else band * valid)


def grown(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """(..., h, w) bool: what lies at most `reach` rows and columns from the mask. Much faster than max pooling."""
    tall = mask.clone()
    for d in range(1, reach + 1):
        tall[..., d:, :] |= mask[..., :-d, :]
        tall[..., :-d, :] |= mask[..., d:, :]
    wide = tall.clone()
    for d in range(1, reach + 1):
        wide[..., d:] |= tall[..., :-d]
        wide[..., :-d] |= tall[..., d:]
    return wide


def weighted_mean(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean over the last two dimensions, (..., h, w) to (...); 0 where all weights are 0."""
    return (value * weight).sum((-2, -1)) / weight.sum((-2, -1)).clamp(min=1e-6)


def split_labels(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Label maps of 0, 1 and `IGNORE`, uint8, to masks and the pixels that count, both bool, of the same shape."""
    return labels == 1, labels != IGNORE


def shrink(
    masks: torch.Tensor, size: tuple[int, int], valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Masks and what counts of them, (B, K, H, W), at a smaller size: the mean over the pixels of a cell that count."""
    masks = masks.float()
    if valid is None:
        return F.interpolate(masks, size=size, mode="area"), None
    share = F.interpolate(valid.float(), size=size, mode="area")
    inside = F.interpolate(masks * valid, size=size, mode="area")
    return inside / share.clamp(min=1e-6), share
