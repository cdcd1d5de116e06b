"""Outlines and the rasteriser: exact on any mask, and against independent references on polygons."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import polygon2mask
from skimage.measure import label

from vlseg.masks import rle as codec
from vlseg.masks.outline import outline, signed_area
from vlseg.masks.raster import raster, raster_rle
from vlseg.types import VLSegError

from .strategies import blobs, checkerboard, masks, nested


@given(masks())
def test_raster_of_outline_is_the_mask(mask: np.ndarray):
    rings = outline(mask)
    np.testing.assert_array_equal(raster(rings, mask.shape), mask)
    assert raster_rle(rings, mask.shape) == codec.encode(mask)


@given(masks())
def test_ring_properties(mask: np.ndarray):
    rings = outline(mask)
    areas = [signed_area(r) for r in rings]
    assert sum(areas) == mask.sum()
    assert sum(a > 0 for a in areas) == label(mask, connectivity=1).max()
    assert [abs(a) for a in areas] == sorted((abs(a) for a in areas), reverse=True)
    for ring in rings:
        assert ring.dtype == np.int64
        step = np.roll(ring, -1, axis=0) - ring
        assert ((step == 0).sum(axis=1) == 1).all(), "an edge that is not horizontal or vertical"
        assert ((step[:, 0] == 0) != (np.roll(step, 1, axis=0)[:, 0] == 0)).all(), "collinear points"
        assert tuple(ring[0, ::-1]) == min((y, x) for x, y in ring.tolist())


@pytest.mark.parametrize(
    ("mask", "rings"),
    [
        (np.ones((1, 1), bool), [[[0, 0], [1, 0], [1, 1], [0, 1]]]),
        (np.ones((2, 3), bool), [[[0, 0], [3, 0], [3, 2], [0, 2]]]),
        (np.zeros((2, 3), bool), []),
        (np.eye(2, dtype=bool), [[[0, 0], [1, 0], [1, 1], [0, 1]], [[1, 1], [2, 1], [2, 2], [1, 2]]]),
        (nested(3, 3), [[[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 1], [1, 2], [2, 2], [2, 1]]]),
    ],
)
def test_known_outlines(mask: np.ndarray, rings: list):
    assert [r.tolist() for r in outline(mask)] == rings


@pytest.mark.parametrize("mask", [checkerboard(31, 40), nested(41, 33), np.eye(20, dtype=bool), blobs(200, 150, 2)])
def test_larger_masks(mask: np.ndarray):
    assert mask.any()
    assert not mask.all()
    np.testing.assert_array_equal(raster(outline(mask), mask.shape), mask)
    assert [r.tolist() for r in outline(mask)] == [r.tolist() for r in outline(mask.copy(order="F"))]


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros(4, bool), np.zeros((1, 2, 2), bool)])
def test_outline_refuses(bad: np.ndarray):
    with pytest.raises(VLSegError, match="bool mask"):
        outline(bad)


def inside_by_ray(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Even-odd by one ray a pixel, in plain Python."""
    out = np.zeros(size, dtype=bool)
    for r, c in np.ndindex(*size):
        px, py = c + 0.5, r + 0.5
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                if (x0 <= px) != (x1 <= px) and y0 + (px - x0) * (y1 - y0) / (x1 - x0) <= py:
                    out[r, c] ^= True
    return out


@given(
    st.lists(st.lists(st.tuples(st.floats(-6, 14), st.floats(-6, 14)), min_size=3, max_size=7), max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_raster_against_rays(points: list, height: int, width: int):
    rings = [np.array(p) for p in points]
    # Subnormal slopes make the two formulas round differently.
    rings = [np.round(r, 6) for r in rings]
    np.testing.assert_array_equal(raster(rings, (height, width)), inside_by_ray(rings, (height, width)))


def test_raster_against_skimage():
    rng = np.random.default_rng(3)
    for _ in range(30):
        ring = rng.uniform(-5, 65, (rng.integers(3, 9), 2))
        # skimage samples pixels at their indices, and takes (row, column).
        theirs = polygon2mask((60, 70), ring[:, ::-1] - 0.5)
        assert 0 < theirs.sum() < theirs.size
        np.testing.assert_array_equal(raster([ring], (60, 70)), theirs)


def test_halves_belong_to_one_side():
    left = np.array([[0, 0], [2.5, 0], [2.5, 4], [0, 4]])
    right = np.array([[2.5, 0], [5, 0], [5, 4], [2.5, 4]])
    a, b = raster([left], (4, 5)), raster([right], (4, 5))
    assert (a ^ b).all()
    assert b[:, 2].all()


def test_raster_edge_cases():
    assert not raster([], (3, 4)).any()
    assert not raster([np.zeros((2, 2))], (3, 4)).any()
    assert raster([np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]])], (3, 4)).all()
    assert not raster([np.array([[5, 0], [9, 0], [9, 3]])], (3, 4)).any()
    with pytest.raises(VLSegError, match="NaN"):
        raster([np.array([[0, 0], [1, np.nan], [2, 2]])], (3, 4))
    with pytest.raises(VLSegError, match="ring 0"):
        raster([np.zeros((3, 3))], (3, 4))


def test_large_masks_are_quick():
    """Measured 0.12 s and 0.10 s; the limits leave room for a slow machine, and its clock is this process's own."""
    mask = np.kron(blobs(300, 400, 2), np.ones((10, 10), dtype=bool)).astype(bool)
    start = time.process_time()
    rings = outline(mask)
    middle = time.process_time()
    again = raster(rings, mask.shape)
    end = time.process_time()
    np.testing.assert_array_equal(again, mask)
    assert middle - start < 2
    assert end - middle < 1.5
