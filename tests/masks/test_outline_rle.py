"""Outlines from run lengths are those of the pixels, ring for ring."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings

from vlseg.masks import rle as codec
from vlseg.masks.outline import outline
from vlseg.masks.outline_rle import outline_rle
from vlseg.masks.raster import raster_rle

from .strategies import masks


def same(mask: np.ndarray) -> None:
    expected, got = outline(mask), outline_rle(codec.encode(mask))
    assert [ring.tolist() for ring in got] == [ring.tolist() for ring in expected]


@given(masks())
@settings(max_examples=150)
def test_equals_the_outline_of_the_pixels(mask):
    same(mask)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_noise_with_touching_corners(density):
    mask = np.random.default_rng(int(density * 10)).random((37, 53)) < density
    assert 0.05 < mask.mean() < 0.95
    same(mask)


def test_full_columns_and_edges():
    mask = np.zeros((5, 9), dtype=bool)
    mask[:, 2:5] = True  # one run over three columns
    mask[0, 8] = mask[4, 0] = True
    same(mask)
    same(np.ones((4, 3), dtype=bool))
    assert outline_rle(codec.empty((4, 3))) == []


def test_a_large_mask_without_its_pixels():
    height, width = 12_000, 20_000
    angle = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    disc = np.stack([10_000 + 8_000 * np.cos(angle), 6_000 + 5_000 * np.sin(angle)], axis=1)
    rle = raster_rle([disc], (height, width))
    assert 0.05 < codec.area(rle) / (height * width) < 0.95
    start = time.process_time()
    rings = outline_rle(rle)
    assert time.process_time() - start < 5
    assert raster_rle(rings, (height, width)) == rle
