"""Corruptions: every kind does what it says, on real objects of the sprite world."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.training import refine_corruptions as made
from vlseg.worlds.sprites import SpriteWorld


@pytest.fixture(scope="module")
def objects() -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Masks of two scenes with all the others of their scene; of 16 pixels or more."""
    found = []
    for index in range(2):
        scene = SpriteWorld().scene(77, index, (128, 128), queries=0)
        masks = [scene.mask(i) for i in range(len(scene.objects))]
        for i, mask in enumerate(masks):
            if made.extent(mask) >= 16:
                found.append((mask, masks[:i] + masks[i + 1 :]))
    assert len(found) >= 6
    return found


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("kind", list(made.KINDS))
def test_every_kind_on_every_object(objects, kind):
    masks, around = [mask for mask, _ in objects], [others for _, others in objects]
    kinds = [kind] * len(masks)
    wrong = made.corrupt(masks, around, kinds, np.random.default_rng(3))
    again = made.corrupt(masks, around, kinds, np.random.default_rng(3))
    values = []
    for mask, one, other in zip(masks, wrong, again, strict=True):
        assert one.shape == mask.shape
        assert one.dtype == bool
        assert one.any()
        assert np.array_equal(one, other)
        values.append(iou(one, mask))
    if kind == "exact":
        assert values == [1.0] * len(values)
    else:
        assert 0.25 < np.mean(values) < 0.97
        assert sum(value < 1 for value in values) > len(values) / 2


def test_shares_add_up():
    assert sum(made.KINDS.values()) == pytest.approx(1)
    assert set(made.KINDS) == {*made._MAKERS, "path", "written path"}


def test_directions(objects):
    """What only adds never takes away, and the other way round."""
    random = np.random.default_rng(0)
    for mask, others in objects:
        assert (made.blobs(mask, others, random) >= mask).all()
        assert (made.leaked(mask, others, random) >= mask).all()
        for maker in (made.holes, made.cut_off):
            less = maker(mask, others, random)
            assert (less <= mask).all()
            assert less.sum() < mask.sum()
        left = made.cut_off(mask, others, random).sum() / mask.sum()
        assert 0.6 < left < 0.92


def test_what_leaks_in_is_the_neighbour():
    mask, other = np.zeros((2, 64, 64), bool)
    mask[20:40, 10:30] = True
    other[20:40, 32:52] = True
    for seed in range(10):
        got = made.leaked(mask, [other], np.random.default_rng(seed))
        assert (got & ~mask).any()
        assert not (got & ~mask & ~other).any()


def test_fewer_tokens_lose_more(objects):
    masks = [mask for mask, _ in objects]

    class Fixed:
        def __init__(self, price: float):
            self.price = price

        def uniform(self, low: float, high: float) -> float:
            assert low < np.log(self.price) < high
            return np.log(self.price)

    means = []
    for price in (3e-3, 1e-2, 4e-2):
        paths = made._paths(masks, [False] * len(masks), Fixed(price))
        means.append(np.mean([iou(path, mask) for path, mask in zip(paths, masks, strict=True)]))
    assert all(a > b for a, b in pairwise(means))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(1, 40), st.sampled_from(list(made.KINDS)))
def test_small_and_large_masks(seed: int, height: int, width: int, kind: str):
    """From one pixel to the whole image: never empty, never an error."""
    mask = np.zeros((40, 40), bool)
    mask[:height, 40 - width :] = True
    (wrong,) = made.corrupt([mask], [[]], [kind], np.random.default_rng(seed))
    assert wrong.any()
    assert wrong.shape == mask.shape
