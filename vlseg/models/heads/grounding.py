"""Where a query points: its state against the language model's own states of the image tokens.

The language model decides which of several things is meant ("the leftmost dog"). Without this, its decision reaches the
mask only through the query's one state, and no loss asks for it directly; with it, the query's state and the states of
the image tokens, which know their place and have seen each other, meet in one dot product that has a loss of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

FLOOR = -8.0  # lowest value of a heat map: how far pointing elsewhere can push a pixel down


class Grounding(nn.Module):
    """Scores of the image tokens for each query; their softmax over the image says where its target is."""

    def __init__(self, hidden: int, dim: int):
        """hidden: width of the language model's states; dim: of the space that they are compared in."""
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, dim))
        self.token = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, dim))

    def forward(self, states: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """states: (B, K, H) of the queries; seen: (B, H, h, w) of the image tokens. Returns (B, K, h, w) float32."""
        asked, tokens = self.query(states), self.token(seen.permute(0, 2, 3, 1))
        return torch.einsum("bkd,bhwd->bkhw", asked * asked.shape[-1] ** -0.5, tokens).float()


def heat(scores: torch.Tensor) -> torch.Tensor:
    """Scores (B, K, h, w) as something to add to mask logits: about 0 where the softmax points, however large the thing
    is, and down to `FLOOR` elsewhere.

    The level is the mean of log p under p itself: for a softmax that spreads evenly over n tokens it is -log n.
    """
    logs = F.log_softmax(scores.flatten(2), dim=-1)
    level = torch.logsumexp(2 * logs, dim=-1, keepdim=True)
    return (logs - level).clamp(FLOOR, -FLOOR).view_as(scores)
