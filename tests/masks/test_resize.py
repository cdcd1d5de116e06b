"""Resampling of masks: exact area, nearest, and the identities."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlseg.masks import rle as codec
from vlseg.masks.resize import resize_mask, resize_rle
from vlseg.types import VLSegError

from .strategies import blobs, masks


def area_slowly(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Coverage in fractions, pixel by pixel."""

    def share(new: int, count: int, old: int, length: int) -> Fraction:
        low, high = Fraction(new * length, count), Fraction((new + 1) * length, count)
        return max(Fraction(0), min(high, Fraction(old + 1)) - max(low, Fraction(old)))

    rows = [[share(i, height, r, mask.shape[0]) for r in range(mask.shape[0])] for i in range(height)]
    columns = [[share(j, width, c, mask.shape[1]) for c in range(mask.shape[1])] for j in range(width)]
    half = Fraction(mask.size, 2 * height * width)
    out = np.zeros((height, width), dtype=bool)
    for i, j in np.ndindex(height, width):
        covered = sum((rows[i][r] * columns[j][c] for r, c in np.argwhere(mask)), Fraction(0))
        out[i, j] = covered >= half
    return out


@given(masks(largest=6), st.integers(1, 8), st.integers(1, 8))
def test_area_is_exact(mask: np.ndarray, height: int, width: int):
    np.testing.assert_array_equal(resize_mask(mask, (height, width)), area_slowly(mask, height, width))


@given(masks(), st.integers(1, 4), st.sampled_from(["area", "nearest"]))
def test_whole_factors(mask: np.ndarray, factor: int, method: str):
    size = (mask.shape[0] * factor, mask.shape[1] * factor)
    large = resize_mask(mask, size, method)
    np.testing.assert_array_equal(large, np.repeat(np.repeat(mask, factor, 0), factor, 1))
    np.testing.assert_array_equal(resize_mask(large, mask.shape, method), mask)


def test_there_and_back():
    mask = blobs(120, 160, 8)
    for method in ("area", "nearest"):
        again = resize_mask(resize_mask(mask, (60, 80), method), (120, 160), method)
        assert (again & mask).sum() / (again | mask).sum() > 0.95
    rle = codec.encode(mask)
    assert resize_rle(rle, (120, 160)) is rle
    assert codec.decode(resize_rle(rle, (60, 80))).shape == (60, 80)


def test_a_copy_not_a_view():
    mask = np.zeros((3, 3), bool)
    resize_mask(mask, (3, 3))[0, 0] = True
    assert not mask.any()


@pytest.mark.parametrize(
    ("mask", "size", "method"),
    [
        (np.zeros((2, 2)), (3, 3), "area"),
        (np.zeros((2, 2), bool), (0, 3), "area"),
        (np.zeros((2, 2), bool), (3, 3), "bilinear"),
        (np.zeros((0, 2), bool), (3, 3), "area"),
    ],
)
def test_refuses(mask: np.ndarray, size: tuple[int, int], method: str):
    with pytest.raises(VLSegError):
        resize_mask(mask, size, method)
