"""Counting from run lengths against counting decoded pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks import rle as codec
from vlseg.metrics.overlap import complement, intersections, overlaps
from vlseg.types import VLSegError


def random_pairs(count, seed=0, height=17, width=13):
    """Masks of all densities, empty and full ones among them, as ``(N, 2, H, W)`` bool."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.0, 0.05, 0.3, 0.5, 0.8, 1.0], (count, 2, 1, 1))
    return rng.random((count, 2, height, width)) < density


def test_overlaps_are_those_of_the_pixels():
    masks = random_pairs(3000)
    assert 0.3 < masks.mean() < 0.6
    inside, union = overlaps(codec.encode_many(masks[:, 0]), codec.encode_many(masks[:, 1]))
    assert (inside == (masks[:, 0] & masks[:, 1]).sum((1, 2))).all()
    assert (union == (masks[:, 0] | masks[:, 1]).sum((1, 2))).all()
    assert inside.dtype == union.dtype == np.int64


def test_more_pairs_than_pycocotools_counts_at_once():
    rle = codec.encode(np.ones((3, 4), bool))
    assert intersections([rle] * 700, [rle] * 700).tolist() == [12] * 700
    assert intersections([], []).tolist() == []


def test_masks_of_different_sizes_are_refused():
    """pycocotools alone gives 0 and says nothing."""
    a, b = codec.encode(np.ones((3, 4), bool)), codec.encode(np.ones((4, 3), bool))
    with pytest.raises(VLSegError, match="pair 1: masks of sizes"):
        intersections([a, a], [a, b])
    with pytest.raises(ValueError, match="shorter"):
        overlaps([a, a], [a])


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
def test_complement(height, width, seed, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    assert (codec.decode(complement(codec.encode(mask))) == ~mask).all()
