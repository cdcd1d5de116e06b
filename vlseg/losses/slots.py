"""Losses of an answer's segments: slots are matched with targets, then each has its mask and its score."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlseg.losses.mask import bce_per_query, dice_per_query, weighted_mean


def match(cost: torch.Tensor) -> list[tuple[int, int]]:
    """The cheapest pairing of rows and columns (Hungarian method), min(S, T) pairs. cost: (S, T), finite."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost.detach().cpu().float().numpy())
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def matching_cost(
    logits: torch.Tensor,
    scores: torch.Tensor,
    regions: torch.Tensor,
    valid: torch.Tensor | None = None,
    bce: float = 1.0,
    dice: float = 1.0,
) -> torch.Tensor:
    """What it costs that slot s of query k is region m, (B, K, S, M): bce, dice, minus the slot's probability.

    logits: (B, K, S, h, w); scores: (B, K, S); regions: (B, M, h, w) in 0..1; valid: as in `vlseg.losses.mask`.
    """
    counts = torch.ones_like(logits[:, :, 0]) if valid is None else valid
    inside = logits.sigmoid()
    number = counts.sum((-2, -1))[:, :, None, None].clamp(min=1e-6)
    outside = weighted_mean(F.softplus(logits), counts[:, :, None])[..., None]
    entropy = outside - torch.einsum("bkshw,bkhw,bmhw->bksm", logits, counts, regions) / number
    overlap = torch.einsum("bkshw,bkhw,bmhw->bksm", inside, counts, regions)
    sizes = (inside * counts[:, :, None]).sum((-2, -1))[..., None]
    sizes = sizes + torch.einsum("bkhw,bmhw->bkm", counts, regions)[:, :, None]
    return bce * entropy + dice * (1 - (2 * overlap + 1) / (sizes + 1)) - scores.sigmoid()[..., None]


def slot_losses(
    logits: torch.Tensor,
    scores: torch.Tensor,
    regions: torch.Tensor,
    targets: torch.Tensor,
    valid: torch.Tensor | None = None,
    bce: float = 1.0,
    dice: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses (B, K) of the masks of matched slots, their mean, and of all slots' scores, their mean.

    Arguments as in `matching_cost`; targets: (B, K, M) bool. A query without a target must leave all its slots unused;
    targets beyond the number of slots are left to the loss of the union.
    """
    with torch.no_grad():
        cost = matching_cost(logits, scores, regions, valid, bce, dice).cpu()
    wanted = torch.zeros_like(scores)
    pairs: list[tuple[int, int, int, int]] = []
    for b, k in targets.any(-1).nonzero().tolist():
        which = targets[b, k].nonzero()[:, 0].tolist()
        for slot, column in match(cost[b, k][:, which]):
            pairs.append((b, k, slot, which[column]))
            wanted[b, k, slot] = 1.0
    score = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none").mean(-1)
    mask = torch.zeros_like(score)
    if pairs:
        b, k, s, m = torch.tensor(pairs, device=logits.device).t()
        ours, theirs = logits[b, k, s][None], regions[b, m][None]
        counts = None if valid is None else valid[b, k][None]
        each = (bce * bce_per_query(ours, theirs, counts) + dice * dice_per_query(ours, theirs, counts))[0]
        number = wanted.sum(-1).clamp(min=1)
        mask = mask.index_put((b, k), each / number[b, k], accumulate=True)
    return mask, score
