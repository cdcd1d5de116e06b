"""Slots: an answer of several segments. Every query has S of them; each ends as a mask with a score, or unused."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(slots=True)
class Slots:
    """logits: (B, K, S, h, w) float32, a mask per slot; scores: (B, K, S) float32, logits of holding a segment."""

    logits: torch.Tensor
    scores: torch.Tensor

    def to(self, device: torch.device) -> Slots:
        """The same on another device."""
        return Slots(self.logits.to(device), self.scores.to(device))


def slot_gate(scores: torch.Tensor) -> torch.Tensor:
    """Scores with the best slot of every query set to +inf: it counts whatever its score. scores: (..., S)."""
    best = F.one_hot(scores.argmax(-1), scores.shape[-1]).bool()
    return scores.masked_fill(best, float("inf"))


def union_logits(logits: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """One mask of all slots: max over s of min(logit_s, score_s), the best slot's score taken as +inf.

    logits: (..., S, h, w); scores: (..., S). Returns (..., h, w). A pixel of it is > 0 exactly where the mask of a slot
    with a positive score, or of the best one, is > 0.
    """
    return torch.minimum(logits, slot_gate(scores)[..., None, None]).amax(-3)


class SlotAttention(nn.Module):
    """Slots of one query see each other, so that two do not take the same object; other queries' they never see."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """(N, S, D), a row per query, to the same shape."""
        q, k, v = self.qkv(self.norm(slots)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return slots + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
