"""Douglas-Peucker for many rings at once, against the textbook's recursion."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlseg.masks.outline import outline
from vlseg.masks.raster import raster
from vlseg.masks.simplify import simplify

from .strategies import blobs, masks


def distance(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    along = b - a
    length = np.hypot(*along)
    if length == 0:
        return np.hypot(*(points - a).T)
    return np.abs((points[:, 0] - a[0]) * along[1] - (points[:, 1] - a[1]) * along[0]) / length


def textbook(ring: np.ndarray, tolerance: float) -> list[list[float]]:
    """One ring by recursion; the first cut at the point farthest from the start, a third point in any case."""
    closed = np.append(ring, ring[:1], axis=0).astype(float)
    far = int(np.hypot(*(closed - closed[0]).T).argmax())
    offsets = np.zeros(len(closed))
    for a, b in ((0, far), (far, len(ring))):
        offsets[a + 1 : b] = distance(closed[a + 1 : b], closed[a], closed[b])
    keep = {0, far}
    if offsets.max() > 0:
        keep.add(int(offsets.argmax()))

    def cut(a: int, b: int) -> None:
        if b - a < 2:
            return
        away = distance(closed[a + 1 : b], closed[a], closed[b])
        k = int(away.argmax())
        if away[k] > max(tolerance, 1e-9):
            keep.add(a + 1 + k)
            cut(a, a + 1 + k)
            cut(a + 1 + k, b)

    stops = [*sorted(keep), len(ring)]
    for a, b in pairwise(stops):
        cut(a, b)
    return closed[sorted(keep)].tolist()


@pytest.mark.parametrize("tolerance", [0, 0.5, 0.8, 1.5, 4, 1000])
def test_against_recursion(tolerance: float):
    rings = [ring for seed in range(4) for ring in outline(blobs(60, 70, 3, seed))]
    assert len(rings) > 10
    for ring, found in zip(rings, simplify(rings, tolerance), strict=True):
        assert found.tolist() == textbook(ring, tolerance)


@given(masks(), st.lists(st.floats(0, 5), min_size=1, max_size=3))
def test_each_ring_stays_within_its_own_tolerance(mask: np.ndarray, limits: list[float]):
    rings = outline(mask)
    limit = np.resize(limits, len(rings))
    for ring, found, tolerance in zip(rings, simplify(rings, limit), limit, strict=True):
        assert len(found) >= 3
        kept = {tuple(p) for p in found.tolist()}
        assert kept <= {tuple(p) for p in ring.astype(float).tolist()}
        closed = np.append(found, found[:1], axis=0)
        nearest = np.min([distance(ring, a, b) for a, b in pairwise(closed)], axis=0)
        assert nearest.max() <= tolerance + 1e-9


@given(masks())
def test_no_tolerance_loses_no_pixel(mask: np.ndarray):
    np.testing.assert_array_equal(raster(simplify(outline(mask), 0), mask.shape), mask)


def test_nothing():
    assert simplify([], 1.0) == []
    assert [r.tolist() for r in simplify([np.array([[3, 4]])], 0)] == [[[3, 4]]]
