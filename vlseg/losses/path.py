"""The loss of a path: cross-entropy of its tokens, among those that the grammar allows in their place."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def path_loss(logits: torch.Tensor, targets: torch.Tensor, owner: torch.Tensor, queries: int) -> torch.Tensor:
    """Mean cross-entropy over the tokens of each query's path, (B, K) float32; 0 for a query without one.

    logits: (n, V), -inf where the grammar allows no token, one row for each place with a target, in order of the row;
    targets: (B, S) int64 path tokens, -1 where none is predicted; owner: (B, S) int64, 1..K, as in `Packed`.
    """
    image, place = (targets >= 0).nonzero(as_tuple=True)
    query = owner[image, place] - 1
    each = F.cross_entropy(logits.float(), targets[image, place], reduction="none")
    total = each.new_zeros(len(targets), queries).index_put((image, query), each, accumulate=True)
    count = each.new_zeros(len(targets), queries).index_put((image, query), torch.ones_like(each), accumulate=True)
    return total / count.clamp(min=1)
