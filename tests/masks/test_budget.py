"""The one Lagrangian, against every possible choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks.budget import allocate, hull
from vlseg.types import VLSegError

point = st.tuples(st.integers(1, 12), st.integers(0, 20).map(lambda v: v / 20))
offers = st.lists(st.lists(point, min_size=1, max_size=4), min_size=1, max_size=4)


def columns(case: list) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.array([p[0] for p in mine]) for mine in case], [np.array([p[1] for p in mine]) for mine in case]


@settings(max_examples=80)
@given(offers, st.integers(0, 40))
def test_the_budget_is_kept_and_hardly_wasted(case: list, spare: int):
    tokens, iou = columns(case)
    least = sum(t.min() for t in tokens)
    total = int(least) + spare
    taken = allocate(tokens, iou, total)
    spent = sum(int(t[i]) for t, i in zip(tokens, taken, strict=True))
    worth = sum(float(v[i]) for v, i in zip(iou, taken, strict=True))
    assert spent <= total
    best = max(
        sum(float(v[i]) for v, i in zip(iou, choice, strict=True))
        for choice in itertools.product(*(range(len(t)) for t in tokens))
        if sum(int(t[i]) for t, i in zip(tokens, choice, strict=True)) <= total
    )
    # What a Lagrangian can miss is less than one step of one hull.
    steps = [np.diff(v[hull(t, v)]).max(initial=0) for t, v in zip(tokens, iou, strict=True)]
    assert worth >= best - max(steps) - 1e-9
    if len(case) == 1:
        assert worth == best


@given(st.lists(point, min_size=1, max_size=8))
def test_hulls(points: list):
    (tokens,), (iou,) = columns([points])
    h = hull(tokens, iou)
    slopes = np.diff(iou[h]) / np.diff(tokens[h])
    assert (slopes > 0).all()
    assert (np.diff(slopes) < 1e-12).all()
    assert tokens[h[0]] == tokens.min()
    assert iou[h[-1]] == iou.max()
    for t, v in points:
        assert v <= np.interp(t, tokens[h], iou[h]) + 1e-9, "a point above the hull"


def test_tokens_go_where_they_bring_most():
    tokens = [np.array([5, 10]), np.array([5, 10]), np.array([5, 10])]
    iou = [np.array([0.9, 0.95]), np.array([0.2, 0.9]), np.array([0.5, 0.99])]
    assert allocate(tokens, iou, 15) == [0, 0, 0]
    assert allocate(tokens, iou, 20) == [0, 1, 0]
    assert allocate(tokens, iou, 29) == [0, 1, 1]
    assert allocate(tokens, iou, 30) == [1, 1, 1]


def test_too_small_a_budget():
    with pytest.raises(VLSegError, match="budget of 9 tokens is too small for 2 masks: 10 is the least"):
        allocate([np.array([5]), np.array([5, 7])], [np.array([1.0]), np.array([0.5, 1.0])], 9)
