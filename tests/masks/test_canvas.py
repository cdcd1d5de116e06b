"""The canvas counts what the rasteriser would draw, to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks.canvas import Canvas
from vlseg.masks.raster import raster

from .strategies import blobs, masks

coordinate = st.one_of(st.integers(0, 14), st.floats(0, 14)).map(lambda v: round(float(v), 3))
polygons = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8).map(np.array)


def flip(canvas: Canvas, ring: np.ndarray, owner: int) -> None:
    canvas.flip(ring, np.roll(ring, -1, axis=0), np.full(len(ring), owner))


def inside(ring: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Within the mask's columns, as rings of the search always are."""
    return np.minimum(ring, [mask.shape[1], np.inf])


@settings(max_examples=60)
@given(st.lists(st.tuples(masks(), polygons, polygons), min_size=1, max_size=3))
def test_errors_are_those_of_the_rasteriser(cases: list):
    canvas = Canvas([mask for mask, _, _ in cases])
    assert canvas.error.tolist() == [mask.sum() for mask, _, _ in cases]
    for owner, (mask, one, two) in enumerate(cases):
        one, two = inside(one, mask), inside(two, mask)
        flip(canvas, one, owner)
        flip(canvas, two, owner)
        drawn = raster([one, two], mask.shape)
        assert canvas.error[owner] == (drawn ^ mask).sum()
        flip(canvas, two, owner)
        assert canvas.error[owner] == (raster([one], mask.shape) ^ mask).sum()


@settings(max_examples=60)
@given(masks(), masks(), polygons, st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=4), st.data())
def test_prices_are_what_a_change_then_costs(other: np.ndarray, mask: np.ndarray, ring: np.ndarray, places: list, data):
    """For pieces of two to four points that become one point, several, or none."""
    canvas = Canvas([other, mask])
    ring = inside(ring, mask)
    flip(canvas, ring, 1)
    start = data.draw(st.integers(0, len(ring) - 1))
    count = data.draw(st.integers(0, min(2, len(ring) - 2)))
    ring = np.roll(ring, -start, axis=0)
    piece = ring[: count + 2]
    new = [
        inside(np.array([piece[0], *[p] * data.draw(st.integers(0, 1)), *[places[0]], piece[-1]]), mask) for p in places
    ]
    longest = max(map(len, new))
    padded = np.stack([np.concatenate([np.repeat(line[:1], longest - len(line), axis=0), line]) for line in new])
    price = canvas.change(piece[None], padded[None], np.array([1]))
    before = canvas.error[1]
    for line, cost in zip(new, price[0], strict=True):
        drawn = raster([np.concatenate([line[:-1], ring[count + 1 :]])], mask.shape)
        assert before + cost == (drawn ^ mask).sum()


def test_a_whole_ring_is_a_piece():
    mask = blobs(60, 80, 4)
    canvas = Canvas([mask])
    ring = np.array([[10.0, 5], [70, 12], [66, 50], [22, 55], [5, 31]])
    flip(canvas, ring, 0)
    drawn = raster([ring], mask.shape)
    assert 0.05 < drawn.mean() < 0.95
    closed = np.append(ring, ring[:1], axis=0)
    price = canvas.change(closed[None], ring[None, None, [0, 0]], np.array([0]))
    assert price[0, 0] == mask.sum() - (drawn ^ mask).sum()


def test_no_pieces_and_pieces_that_cross_no_column():
    canvas = Canvas([blobs(30, 30, 3)])
    assert canvas.change(np.zeros((0, 3, 2)), np.zeros((0, 8, 3, 2)), np.zeros(0, dtype=int)).shape == (0, 8)
    upright = np.array([[[4.6, 2.0], [4.9, 9.0], [5.1, 20.0]]])
    assert canvas.change(upright, upright[:, None, [0, 2]], np.array([0])).tolist() == [[0.0]]


def test_many_pieces_are_priced_in_parts(monkeypatch: pytest.MonkeyPatch):
    mask = blobs(50, 60, 3)
    canvas = Canvas([mask, mask])
    rng = np.random.default_rng(0)
    old, new = rng.uniform(0, 50, (40, 3, 2)), rng.uniform(0, 50, (40, 5, 3, 2))
    new[:, :, [0, -1]] = old[:, None, [0, -1]]
    owner = rng.integers(0, 2, 40)
    whole = canvas.change(old, new, owner)
    assert len(np.unique(whole)) > 20
    monkeypatch.setattr("vlseg.masks.canvas._MOST_CROSSINGS", 500)
    np.testing.assert_array_equal(canvas.change(old, new, owner), whole)


def test_a_copy_is_independent():
    canvas = Canvas([blobs(30, 30, 3)])
    twin = canvas.copy()
    flip(twin, np.array([[0.0, 0], [30, 0], [30, 30], [0, 30]]), 0)
    assert twin.error[0] != canvas.error[0]
    assert canvas.error[0] == canvas.wrong.sum()
    assert not np.array_equal(twin.sums, canvas.sums)
