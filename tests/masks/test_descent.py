"""Every step of the search keeps an exact account of the wrong pixels, and never makes things worse than it may."""

from __future__ import annotations

import numpy as np
import pytest

from vlseg.masks.canvas import Canvas
from vlseg.masks.curves import Curves, bernstein, chords, fit_cubics
from vlseg.masks.descent import Polygons
from vlseg.masks.grid import GridRing
from vlseg.masks.outline import outline
from vlseg.masks.raster import raster

from .strategies import blobs, nested

MASKS = [blobs(40, 60, 3, 1), nested(21, 18), blobs(25, 25, 2, 2), np.eye(12, dtype=bool)]


def polygons(masks=MASKS, grid: int = 301) -> Polygons:
    boxes = np.array([[0, 0, m.shape[1], m.shape[0]] for m in masks], dtype=float)
    return Polygons(Canvas(masks), boxes, grid, [outline(m) for m in masks])


def rings_of(p: Polygons, mask: int) -> list[np.ndarray]:
    rings = []
    for number in np.unique(p.ring[p.owner == mask]):
        mine = p.ring == number
        points = p.pixels(p.vertex[mine], p.owner[mine])
        control = p.control[mine] if isinstance(p, Curves) else np.zeros(len(points), dtype=bool)
        segments = GridRing.of(p.vertex[mine].tolist(), control.tolist()).segments(points)
        rings.append(np.concatenate([chords(s)[:-1] if len(s) == 4 else s[:1] for s in segments]))
    return rings


def assert_account(p: Polygons, masks=MASKS) -> None:
    for i, mask in enumerate(masks):
        assert p.canvas.error[i] == (raster(rings_of(p, i), mask.shape) ^ mask).sum()


def test_it_begins_without_a_wrong_pixel():
    p = polygons()
    assert p.canvas.error.tolist() == [0, 0, 0, 0]
    assert_account(p)


def test_every_step_keeps_the_account():
    p = polygons()
    allowance = np.array([1.5, 0.5, 2.0, 0.3])
    counts = [len(p.vertex)]
    p.thin(allowance, 50)
    assert_account(p)
    counts.append(len(p.vertex))
    assert counts[1] < counts[0] / 2
    assert (p.canvas.error > 0).any()
    before = p.canvas.error.copy()
    p.move(1.0, 10)
    assert_account(p)
    assert (p.canvas.error <= before).all()
    assert p.canvas.error.sum() < before.sum()
    p.set_grid(31)
    assert_account(p)
    p.move(1.0, 10)
    before, count = p.canvas.error.copy(), np.bincount(p.owner, minlength=4)
    p.split(allowance, 1.0, 3)
    assert_account(p)
    added = np.bincount(p.owner, minlength=4) - count
    assert added.sum() > 0
    assert (before - p.canvas.error >= allowance * added).all()
    p.drop_rings(np.array([5.0, 1e6, 5.0, 1e6]))
    assert_account(p)
    rings = [len(rings_of(p, i)) for i in range(4)]
    assert rings[1] == rings[3] == 1
    assert np.bincount(p.ring)[np.bincount(p.ring) > 0].min() >= 3


def test_thinning_pays_no_more_than_allowed():
    p = polygons()
    count = np.bincount(p.owner, minlength=4)
    allowance = np.array([0.9, 0.9, 0.0, 3.0])
    p.thin(allowance, 50)
    lost = count - np.bincount(p.owner, minlength=4)
    assert (p.canvas.error <= allowance * lost).all()
    assert p.canvas.error[2] == 0


def test_masks_that_are_not_active_stay():
    p = polygons()
    p.thin(np.full(4, 2.0), 20)
    before = p.vertex[p.owner == 0].copy()
    p.touched[:] = False
    p.active = np.array([False, True, True, True])
    p.move(1.0, 5)
    p.split(np.full(4, 0.5), 1.0, 2)
    p.thin(np.full(4, 2.0), 20)
    np.testing.assert_array_equal(p.vertex[p.owner == 0], before)
    assert not p.touched[0]
    assert p.touched.any()


@pytest.mark.parametrize("grid", [301, 41])
def test_curves_keep_the_account(grid: int):
    y, x = np.indices((70, 90))
    masks = [((x - 45) / 40) ** 2 + ((y - 35) / 30) ** 2 < 1, blobs(60, 60, 6, 3)]
    p = polygons(masks, grid)
    p.thin(np.full(2, 1.0), 50)
    lines = len(p.vertex)
    curves = Curves(p, np.full(2, 4.0), 1)
    assert curves.control.sum() >= 4
    assert curves.control.sum() % 2 == 0
    assert len(curves.vertex) < lines
    assert_account(curves, masks)
    before = curves.canvas.error.copy()
    curves.move(1.0, 6)
    assert_account(curves, masks)
    assert (curves.canvas.error <= before).all()
    assert curves.canvas.error.sum() < before.sum()
    curves.split(np.full(2, 2.0), 1.0, 2)
    curves.thin(np.full(2, 4.0), 20)
    assert_account(curves, masks)


def test_fits_find_the_curve_that_points_were_taken_from():
    rng = np.random.default_rng(4)
    ends = np.array([[0.0, 0], [10, 2]])
    true = np.stack(
        [[ends[0], ends[0] + rng.uniform(1, 6, 2), ends[1] + rng.uniform(-6, -1, 2), ends[1]] for _ in range(9)]
    )
    t = np.linspace(0, 1, 60)[:, None]
    terms = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
    points = np.stack([sum(w * p for w, p in zip(terms, curve, strict=True)) for curve in true])

    def farthest(curves: np.ndarray) -> np.ndarray:
        dense = bernstein(np.linspace(0, 1, 1000)) @ curves
        return np.linalg.norm(points[:, :, None] - dense[:, None], axis=-1).min(axis=2).max(axis=1)

    assert farthest(fit_cubics(points, 0)).max() > 0.2
    assert farthest(fit_cubics(points)).max() < 0.01
    np.testing.assert_allclose(fit_cubics(points, rounds=40), true, atol=1e-3)
    np.testing.assert_array_equal(chords(true)[:, [0, -1]], true[:, [0, -1]])
    np.testing.assert_allclose(chords(true)[:, 4], points[:, [29, 30]].mean(axis=1), atol=0.02)


def test_fits_of_what_determines_no_curve():
    points = np.zeros((2, 6, 2))
    points[1] = [3, 4]
    np.testing.assert_array_equal(fit_cubics(points), points[:, :4])
