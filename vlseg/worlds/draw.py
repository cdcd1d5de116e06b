"""Cheap, reproducible random draws for one scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draw:
    """Scalars from one PCG64 stream, fetched in blocks: a numpy call for each scalar would cost more than its use.

    The same key gives the same draws on every machine. ``rng`` is the generator itself, for arrays.
    """

    def __init__(self, *key: int) -> None:
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(k) for k in key])))
        self._block: list[float] = []

    def unit(self) -> float:
        """A float in [0, 1)."""
        if not self._block:
            self._block = self.rng.random(256).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.unit()

    def log_between(self, low: float, high: float) -> float:
        """A float in [low, high), uniform in its logarithm."""
        return float(low * (high / low) ** self.unit())

    def below(self, n: int) -> int:
        """An int in [0, n)."""
        return int(self.unit() * n)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.unit() < p

    def choice(self, items: Sequence[T]) -> T:
        """One item, all alike."""
        return items[int(self.unit() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One item in proportion to its weight."""
        mark = self.unit() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list in random order."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.unit() * (i + 1))
            out[i], out[j] = out[j], out[i]
        return out
