"""Mask losses per query: binary cross-entropy and dice, soft targets allowed, pixels to ignore left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bce_per_query(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over the pixels. logits, target: (B, K, h, w), target in 0..1. Returns (B, K)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))


def dice_per_query(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - soft dice (V-Net, arXiv 1606.04797) with +1 smoothing. logits, target: (B, K, h, w). Returns (B, K)."""
    p = logits.sigmoid()
    overlap = (p * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)
