"""Contrastive losses of nouns: what pixels and queries are called."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def noun_labels(masks: torch.Tensor, nouns: torch.Tensor, size: tuple[int, int], background: int) -> torch.Tensor:
    """Noun of every cell of a coarse map. masks: (B, M, H, W) in 0..1; nouns: (B, M) int64, -1 for unknown.

    Returns (B, h, w) int64: the noun that covers at least half the cell, `background` where at most a tenth is covered,
    -1 (ignore) elsewhere.
    """
    cover = F.interpolate(masks.float(), size=size, mode="area")
    most, which = cover.max(1)
    label = nouns.gather(1, which.flatten(1)).view(which.shape)
    label = torch.where(most >= 0.5, label, torch.full_like(label, -1))
    return torch.where(cover.sum(1) <= 0.1, torch.full_like(label, background), label)


def dense_noun_loss(
    embedding: torch.Tensor,
    labels: torch.Tensor,
    prototypes: torch.Tensor,
    temperature: float = 0.1,
    background_weight: float = 0.2,
    background_every: int = 4,
) -> torch.Tensor:
    """Cross-entropy of each cell against all noun prototypes. embedding: (B, N, h, w) unit vectors; labels: (B, h, w),
    -1 ignored; prototypes: (nouns + 1, N), the last one is the background. Returns (B,): a weighted mean over cells.

    Of the background only every n-th cell counts (all of an object's do): most of a picture is background, and the
    product with hundreds of prototypes is what this loss costs.
    """
    background = len(prototypes) - 1
    index = torch.arange(labels[0].numel(), device=labels.device).view(labels.shape[1:])
    keep = (labels >= 0) & ((labels != background) | (index % background_every == 0))
    rows, wanted = embedding.permute(0, 2, 3, 1)[keep].float(), labels[keep]
    loss = F.cross_entropy(rows @ (F.normalize(prototypes.float(), dim=-1) / temperature).t(), wanted, reduction="none")
    weight = torch.where(wanted == background, background_weight, 1.0)
    image = keep.nonzero()[:, 0]
    total = loss.new_zeros(len(labels)).index_add(0, image, loss * weight)
    return total / loss.new_zeros(len(labels)).index_add(0, image, weight).clamp(min=1e-4)


def query_noun_loss(
    embedding: torch.Tensor, target_nouns: torch.Tensor, prototypes: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Which nouns a query means. embedding: (B, K, N) unit vectors; target_nouns: (B, K, nouns + 1) bool.

    Returns (B, K): minus the log-probability mass on the target nouns; 0 for a query without one.
    """
    logits = torch.einsum("bkn,cn->bkc", embedding.float(), F.normalize(prototypes.float(), dim=-1)) / temperature
    inside = logits.masked_fill(~target_nouns, float("-inf")).logsumexp(-1)
    some = target_nouns.any(-1)
    return torch.where(some, logits.logsumexp(-1) - torch.where(some, inside, torch.zeros_like(inside)), 0.0)
