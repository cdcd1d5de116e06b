"""Rings with fewer points: Douglas-Peucker for many rings at once, each within its own tolerance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def simplify(rings: Sequence[np.ndarray], tolerance: float | Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Subsets of the points of closed rings ``(N, 2)`` that stay within ``tolerance`` pixels of all of them.

    tolerance: one for all or one a ring; 0 drops only what lies on straight lines. Float64 rings come back, of three
    points at least where there were three that are not in line. (Douglas & Peucker 1973, from the first point and the
    one farthest from it; all chords of a level in one pass.)
    """
    if not len(rings):
        return []
    limits = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), len(rings))
    sizes = np.array([len(ring) for ring in rings])
    ends = np.cumsum(sizes)
    # Every ring with its first point once more behind the last, so that a chord never wraps around.
    begins = ends - sizes + np.arange(len(rings))
    points = np.concatenate([np.append(ring, ring[:1], axis=0) for ring in rings]).astype(np.float64)
    limit = np.repeat(limits, sizes + 1)
    kept = np.zeros(len(points), dtype=bool)
    kept[begins] = kept[begins + sizes] = True
    offset = points - np.repeat(points[begins], sizes + 1, axis=0)
    kept[_first_largest(np.hypot(*offset.T), begins)] = True
    # The first time around, the third corner of a triangle is taken whatever the tolerance.
    distance = _distances(points, kept)
    third = _first_largest(distance, begins)
    kept[third[distance[third] > 0]] = True
    while True:
        distance = _distances(points, kept)
        chord = np.flatnonzero(kept)
        farthest = _first_largest(distance, chord)
        farthest = farthest[distance[farthest] > np.maximum(limit[farthest], 1e-9)]
        if not len(farthest):
            break
        kept[farthest] = True
    kept[begins + sizes] = False
    return [points[b : b + n][kept[b : b + n]] for b, n in zip(begins, sizes, strict=True)]


def _distances(points: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """From each point to the line through the kept points around it; to the point where both are at one place."""
    chord = np.flatnonzero(kept)
    number = np.cumsum(kept) - 1
    start = points[chord[number]]
    along = points[chord[np.minimum(number + 1, len(chord) - 1)]] - start
    offset = points - start
    length = np.hypot(*along.T)
    cross = np.abs(offset[:, 0] * along[:, 1] - offset[:, 1] * along[:, 0])
    distance = np.where(length > 0, cross / np.where(length > 0, length, 1), np.hypot(*offset.T))
    distance[chord] = 0
    return distance


def _first_largest(values: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The index of the largest value from each of ``begins`` up to the next one; the first of equals."""
    group = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(values))))
    largest = np.maximum.reduceat(values, begins)
    at = np.flatnonzero(values == largest[group])
    return at[np.diff(group[at], prepend=-1) > 0]
