"""Losses of paths: cross-entropy of tokens among those that the grammar allows, and the objective of reinforcement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vlseg.masks.tokens import Vocabulary


class Near:
    """What is nearly right: spreads the target of a vertex over the places around it, that of a side of the box over
    the bins beside it, so that a token not seen yet learns from its neighbours. Commands stay as they are.

    spread: standard deviation of the Gaussian, in places of the grid and in bins; above 0.
    """

    def __init__(self, vocabulary: Vocabulary, spread: float):
        self.spread = spread
        kind = vocabulary.token_class
        starts = np.array([vocabulary.first[name] for name in vocabulary.classes])
        value = np.arange(len(kind)) - starts[kind]
        joint = np.array(vocabulary.classes)[kind] == "xy"
        across = np.where(joint, value % vocabulary.grid, value)
        down = np.where(joint, value // vocabulary.grid, 0)
        self.kind = torch.from_numpy(kind)
        self.place = torch.from_numpy(np.stack([across, down], 1)).float()

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n,) int64 to (n, V) float32, rows that sum to 1."""
        kind, place = self.kind.to(tokens.device), self.place.to(tokens.device)
        away = torch.cdist(place[tokens], place, compute_mode="donot_use_mm_for_euclid_dist").square()
        away = away.masked_fill(kind[tokens][:, None] != kind, float("inf"))
        return (-away / (2 * self.spread**2)).softmax(-1)


def path_loss(
    logits: torch.Tensor, targets: torch.Tensor, owner: torch.Tensor, queries: int, near: Near | None = None
) -> torch.Tensor:
    """Mean cross-entropy over the tokens of each query's path, (B, K) float32; 0 for a query without one.

    logits: (n, V), -inf where the grammar allows no token, one row for each place with a target, in order of the row;
    targets: (B, S) int64 path tokens, -1 where none is predicted; owner: (B, S) int64, 1..K, as in `Packed`. near: what
    else is nearly right.
    """
    image, place = (targets >= 0).nonzero(as_tuple=True)
    query, wanted = owner[image, place] - 1, targets[image, place]
    if near is None:
        each = F.cross_entropy(logits.float(), wanted, reduction="none")
    else:
        likely = logits.float().log_softmax(-1)
        each = -(near(wanted) * likely.masked_fill(likely.isneginf(), 0.0)).sum(-1)
    total = each.new_zeros(len(targets), queries).index_put((image, query), each, accumulate=True)
    count = each.new_zeros(len(targets), queries).index_put((image, query), torch.ones_like(each), accumulate=True)
    return total / count.clamp(min=1)


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What `policy_terms` gives, (n,) float32 each, of every token: `loss` is to be minimised; `divergence` from the
    reference and `clipped` (0 or 1: the token has no gradient but that of the divergence) are to be told."""

    loss: torch.Tensor
    divergence: torch.Tensor
    clipped: torch.Tensor


def policy_terms(
    now: torch.Tensor,
    before: torch.Tensor,
    reference: torch.Tensor,
    advantage: torch.Tensor,
    clip: float,
    weight: float,
) -> PolicyTerms:
    """The objective of group-relative policy optimisation, token by token (DeepSeekMath, arXiv 2402.03300, eq. 3).

    now, before, reference: (n,) log-probabilities of the sampled tokens by the model as it is, as it was when it
    sampled, and as it was before any reinforcement; gradients go to `now` alone. advantage: (n,), that of the token's
    path. clip: how far the ratio of now to before may move from 1 and still be followed. weight: of the KL divergence,
    by Schulman's estimator r - 1 - log r with r = reference / now, which is never negative and has the right mean.
    """
    ratio = (now - before).exp()
    gain = ratio * advantage
    held = ratio.clamp(1 - clip, 1 + clip) * advantage
    away = reference - now
    divergence = away.exp() - 1 - away
    loss = weight * divergence - torch.minimum(gain, held)
    return PolicyTerms(loss, divergence.detach(), (held < gain).float())


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(Q, G) rewards of G paths for each of Q queries to (Q, G) float32: how many standard deviations a path is better
    than its group. A group whose paths are all worth the same teaches nothing: 0."""
    off = rewards.float() - rewards.float().mean(1, keepdim=True)
    return off / (off.square().mean(1, keepdim=True).sqrt() + 1e-4)
