"""How unsure a system is of an answer, in 0..1: by its own probabilities, and by what it says when asked otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from vlseg.systems.base import SoftAnswer
from vlseg.types import Answer

# Probabilities of pixels are known by what lies above these levels; in between the middle stands for all.
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
MIDDLES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


def bits(p: float) -> float:
    """Entropy of a yes or no of probability p, in 0..1."""
    if p <= 0 or p >= 1:
        return 0.0
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def mask_entropy(soft: SoftAnswer, size: tuple[int, int]) -> float | None:
    """Mean entropy in bits of the pixels that may be inside (p > 0.1); None where there is none, or no mask.

    Not of all pixels of the picture: the sure background would say how large an object is, not how unsure its mask
    (arXiv 2603.29941 finds the plain average near chance). 0 for a mask that is the same at every level.
    """
    if soft.mask is None:
        return None
    above = [int(np.count_nonzero(soft.mask(size, level))) for level in LEVELS]
    if not above[0]:
        return None
    if above[0] == above[-1]:
        return 0.0
    counts = [above[i] - above[i + 1] for i in range(len(above) - 1)] + [above[-1]]
    return sum(n * bits(p) for n, p in zip(counts, MIDDLES[1:], strict=True)) / above[0]


def disagreement(a: Answer, b: Answer) -> float:
    """1 - IoU of what two answers found; 0 where neither found anything, 1 where only one did."""
    one, other = a.mask, b.mask
    union = int(np.count_nonzero(one | other))
    return 1 - int(np.count_nonzero(one & other)) / union if union else 0.0


def mean_disagreement(answers: Sequence[Answer]) -> float | None:
    """The mean over all pairs; None for fewer than two answers."""
    pairs = [disagreement(a, b) for a, b in combinations(answers, 2)]
    return sum(pairs) / len(pairs) if pairs else None
