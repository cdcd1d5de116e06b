"""Boxes in bins, rings on a grid, and the one order in which they are written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks.grid import GridRing, box_bins, box_edges, canonical, to_pixels
from vlseg.masks.raster import raster
from vlseg.types import VLSegError


@st.composite
def grid_rings(draw: st.DrawFn) -> GridRing:
    """Any ring: lines and curves, nodes twice, in line, crossing itself; its first node is none of a curve's inside."""
    nodes: list[tuple[int, int]] = []
    control: list[bool] = []
    point = st.tuples(st.integers(0, 8), st.integers(0, 8))
    for curved in draw(st.lists(st.booleans(), min_size=1, max_size=7)):
        nodes.append(draw(point))
        control.append(False)
        if curved and draw(st.booleans()):
            nodes += [draw(point), draw(point)]
            control += [True, True]
    return GridRing.of(nodes, control)


def same(a: GridRing, b: GridRing) -> bool:
    return a.nodes.tolist() == b.nodes.tolist() and a.control.tolist() == b.control.tolist()


@given(st.lists(grid_rings(), max_size=3), st.randoms(use_true_random=False))
def test_any_start_direction_and_order_give_one_form(rings: list[GridRing], random):
    expected = canonical(rings)
    turned = []
    for ring in rings:
        start = random.choice(np.flatnonzero(~ring.control).tolist())
        nodes, control = np.roll(ring.nodes, -start, axis=0), np.roll(ring.control, -start)
        if random.random() < 0.5:  # backwards, from the same node
            nodes, control = np.roll(nodes[::-1], 1, axis=0), np.roll(control[::-1], 1)
        turned.append(GridRing(nodes, control))
    random.shuffle(turned)
    found = canonical(turned)
    assert len(found) == len(expected)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert all(same(a, b) for a, b in zip(canonical(expected), expected, strict=True)), "not stable"


@given(st.lists(grid_rings(), max_size=3))
def test_canonical_rings_begin_at_the_top_and_run_clockwise(rings: list[GridRing]):
    areas = []
    for ring in canonical(rings):
        on = ring.nodes[~ring.control].tolist()
        assert ring.nodes[0].tolist() == min(on, key=lambda p: (p[1], p[0]))
        assert not ring.control[0]
        assert ring.doubled_area >= 0
        areas.append(ring.doubled_area)
    assert areas == sorted(areas, reverse=True)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=9))
def test_canonical_form_encloses_the_same(nodes: list[tuple[int, int]]):
    ring = GridRing.of(nodes)
    # No line between places of this grid goes through the centre of a pixel.
    shift = np.array([0.3, 0.37])
    before = raster([ring.nodes * 9 + shift], (73, 73))
    after = raster([r.nodes * 9 + shift for r in canonical([ring])], (73, 73))
    np.testing.assert_array_equal(after, before)


def test_a_figure_of_eight_stays():
    eight = GridRing.of([(0, 0), (4, 4), (4, 0), (0, 4)])
    assert eight.doubled_area == 0
    (ring,) = canonical([eight])
    assert ring.nodes.tolist() == [[0, 0], [0, 4], [4, 0], [4, 4]]


def test_needless_nodes_go():
    ring = GridRing.of([(0, 0), (2, 0), (2, 0), (4, 0), (4, 4), (5, 5), (4, 4), (0, 4), (0, 2)])
    (tidy,) = canonical([ring])
    assert tidy.nodes.tolist() == [[0, 0], [4, 0], [4, 4], [0, 4]]
    assert canonical([GridRing.of([(1, 1), (3, 3), (2, 2)]), GridRing.of([(1, 1)])]) == []


def test_segments():
    ring = GridRing.of([(0, 0), (1, 0), (2, 1), (3, 3), (0, 3), (0, 2), (0, 1)], [0, 1, 1, 0, 0, 1, 1])
    assert ring.cubics == 2
    assert [len(s) for s in ring.segments(ring.nodes)] == [4, 2, 4]
    assert ring.segments(ring.nodes)[-1].tolist() == [[0, 3], [0, 2], [0, 1], [0, 0]]


@pytest.mark.parametrize("control", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 1], [0, 0]])
def test_controls_come_in_pairs(control: list[int]):
    with pytest.raises(VLSegError, match="in pairs"):
        GridRing.of([(0, 0), (1, 0), (1, 1), (0, 1)], control)


@settings(max_examples=200)
@given(st.integers(1, 20_000), st.integers(2, 1024), st.data())
def test_boxes_lose_no_pixel_and_are_tight(length: int, bins: int, data: st.DataObject):
    left = data.draw(st.integers(0, length - 1))
    right = data.draw(st.integers(left + 1, length))
    x0, y0, x1, y1 = box_bins((left, left, right, right), (length, length), bins)
    assert (x0, x1) == (y0, y1)
    assert 0 <= x0 <= x1 < bins
    low, _, high, _ = box_edges((x0, y0, x1, y1), (length, length), bins)
    assert low <= left + 0.5
    assert high > right - 0.5
    assert left - low < max(length / bins, 0.5 + 1e-9)
    assert high - right < max(length / bins, 0.5 + 1e-9)


def test_boxes_of_any_corners():
    size = (100, 200)
    assert box_edges((3, 4, 1, 9), size, 10).tolist() == box_edges((1, 9, 3, 4), size, 10).tolist() == [20, 40, 80, 100]
    assert box_edges((0, 0, 9, 9), size, 10).tolist() == [0, 0, 200, 100]


def test_pixels_of_nodes():
    box = np.array([10.0, 20.0, 20.0, 60.0])
    assert to_pixels(np.array([[0, 0], [63, 63], [1, 1]]), box, 64).tolist() == [[10, 20], [20, 60], [10.16, 20.63]]
