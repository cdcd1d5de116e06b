"""The loss of pointing: how the language model's softmax over image tokens differs from where the target is."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def ground_loss(logits: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence, in nats, of softmax(logits) over the cells from the target's spread over them.

    logits: (B, K, h, w); cells: the same shape, in 0..1, the share of each cell that the target covers. Returns (B, K),
    0 where the target covers none.
    """
    share = cells.flatten(2)
    share = share / share.sum(-1, keepdim=True).clamp(min=1e-6)
    logs = F.log_softmax(logits.float().flatten(2), dim=-1)
    return (torch.xlogy(share, share) - share * logs).sum(-1)
