"""The loss of the refiner: masks at every iteration, the best of its tokens most of all, and the IoU they expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vlseg.losses.mask import bce_per_query, dice_per_query

BEST = 0.8  # share of the best token in the loss of the masks; the rest is spread over all, so that none lies idle


def iou_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of thresholded masks, (..., h, w) logits and targets in 0..1, to (...); 1 where both are empty."""
    prediction, truth = logits > 0, target > 0.5
    both = (prediction & truth).sum((-2, -1)).float()
    either = (prediction | truth).sum((-2, -1)).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(either))


def refine_loss(
    steps: Sequence[tuple[torch.Tensor, torch.Tensor]], target: torch.Tensor, bce: float = 2.0, judge: float = 1.0
) -> dict[str, torch.Tensor]:
    """Scalars "mask", "iou" (the regression), "total" and "final" (IoU of the chosen masks of the last iteration).

    steps: for each iteration the masks' logits (B, T, h, w) and the logits of their expected IoU (B, T); target:
    (B, h, w) in 0..1. Masks: bce x cross-entropy + dice of the best token (by this loss, as in SAM) and of all.
    """
    masks, judged = [], []
    final = target.new_zeros(())
    for logits, expected in steps:
        wanted = target[:, None].expand_as(logits)
        each = bce * bce_per_query(logits, wanted) + dice_per_query(logits, wanted)
        masks.append((BEST * each.amin(1) + (1 - BEST) * each.mean(1)).mean())
        with torch.no_grad():
            true = iou_of(logits, wanted)
            final = true.gather(1, expected.argmax(1, keepdim=True)).mean()
        judged.append(F.mse_loss(expected.sigmoid(), true))
    mask, iou = torch.stack(masks).mean(), torch.stack(judged).mean()
    return {"mask": mask, "iou": iou, "total": mask + judge * iou, "final": final}
