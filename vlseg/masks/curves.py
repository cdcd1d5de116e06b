"""Cubic Bezier curves: least-squares fits, chords, and polygons with runs of edges replaced by curves."""

from __future__ import annotations

import numpy as np

from vlseg.masks.descent import Polygons

_CHORDS = 8
_SAMPLES = 24
_FEWEST, _MOST = 4, 14  # edges of a polygon that one curve may replace


def bernstein(t: np.ndarray) -> np.ndarray:
    """The four cubic Bernstein polynomials at t: ``(..., 4)``."""
    s = 1 - t
    return np.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], axis=-1)


_AT_CHORDS = bernstein(np.linspace(0, 1, _CHORDS + 1))


def chords(curves: np.ndarray) -> np.ndarray:
    """Cubics ``(..., 4, 2)`` as eight chords of equal parameter, ``(..., 9, 2)``."""
    points = _AT_CHORDS @ curves
    points[..., 0, :], points[..., -1, :] = curves[..., 0, :], curves[..., -1, :]
    return points


def fit_cubics(points: np.ndarray, rounds: int = 3) -> np.ndarray:
    """The cubics ``(M, 4, 2)`` through the ends of ``(M, n, 2)`` points, n >= 4, least squares in between.

    First with chord-length parameters; then, ``rounds`` times, every point goes to its nearest parameter and only the
    distance from the curve's tangent there counts (Schneider, Graphics Gems, 1990, with the tangent distance of Wang,
    Pottmann & Liu 2006, which converges far quicker). Where the points determine no curve it is the straight one.
    """
    first, last = points[:, :1], points[:, -1:]
    length = np.cumsum(np.hypot(*np.moveaxis(np.diff(points, axis=1), -1, 0)), axis=1)
    t = np.concatenate([np.zeros((len(points), 1)), length / np.maximum(length[:, -1:], 1e-12)], axis=1)
    straight = np.concatenate([first, (2 * first + last) / 3, (first + 2 * last) / 3, last], axis=1)
    curves = straight
    for number in range(rounds + 1):
        basis = bernstein(t)
        inner = basis[:, :, 1:3]
        rest = points - basis[:, :, :1] * first - basis[:, :, 3:] * last
        # Unknowns are x, y of the first control point, then of the second: a block of 2 x 2 for each pair of them.
        if number == 0:
            normal = np.einsum("mni,mnj,ab->miajb", inner, inner, np.eye(2))
            right = np.einsum("mni,mna->mia", inner, rest)
        else:
            across = _across(curves, t)
            normal = np.einsum("mni,mnj,mnab->miajb", inner, inner, across)
            right = np.einsum("mni,mnab,mnb->mia", inner, across, rest)
        normal = normal.reshape(-1, 4, 4)
        determined = np.linalg.det(normal) > 1e-12
        normal[~determined] = np.eye(4)
        free = np.linalg.solve(normal, right.reshape(-1, 4, 1)).reshape(-1, 2, 2)
        curves = np.concatenate([first, free, last], axis=1)
        curves[~determined] = straight[~determined]
        if number < rounds:
            t = _nearer(curves, points, t)
    return curves


def _across(curves: np.ndarray, t: np.ndarray) -> np.ndarray:
    """What a step from a point of the curve counts, as a form ``(M, n, 2, 2)``: along the tangent a hundredth."""
    s = 1 - t
    speed = np.stack([s * s, 2 * s * t, t * t], axis=-1) @ np.diff(curves, axis=1)
    tangent = speed / np.maximum(np.hypot(*np.moveaxis(speed, -1, 0)), 1e-12)[..., None]
    return np.eye(2) - 0.99 * tangent[..., :, None] * tangent[..., None, :]


def _nearer(curves: np.ndarray, points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """One Newton step of every parameter towards the point of the curve that is nearest to its sample."""
    once = 3 * np.diff(curves, axis=1)
    twice = 2 * np.diff(once, axis=1)
    s = 1 - t
    off = bernstein(t) @ curves - points
    speed = np.stack([s * s, 2 * s * t, t * t], axis=-1) @ once
    bend = np.stack([s, t], axis=-1) @ twice
    slope = (speed * speed + off * bend).sum(axis=-1)
    return np.clip(t - (off * speed).sum(axis=-1) / np.where(slope > 1e-9, slope, np.inf), 0, 1)


class Curves(Polygons):
    """Rings of lines and cubics on a canvas, moved as polygons are.

    control ``(V,)`` bool, as in `vlseg.masks.grid.GridRing`; a ring's first node is no control point.
    """

    reach = 3

    def __init__(self, polygons: Polygons, allowance: np.ndarray, vertex_tokens: int):
        """From polygons: runs of edges become curves where that pays.

        allowance: ``(N,)`` wrong pixels a token may save, for each mask. vertex_tokens: tokens a vertex.
        """
        self.canvas, self.boxes, self.grid = polygons.canvas, polygons.boxes, polygons.grid
        self.corner, self.cell = polygons.corner, polygons.cell
        self.active, self.touched = polygons.active, polygons.touched
        self.vertex, self.ring, self.owner = polygons.vertex, polygons.ring, polygons.owner
        self.control = np.zeros(len(self.vertex), dtype=bool)
        self.connect()
        self._bend(allowance, vertex_tokens)

    def connect(self) -> None:
        super().connect()
        self.straight = ~(self.control | self.control[self.following] | self.control[self.preceding])

    def keep(self, which: np.ndarray) -> None:
        self.control = self.control[which]
        super().keep(which)

    def insert(self, behind: np.ndarray, vertex: np.ndarray) -> None:
        self.control = np.insert(self.control, behind + 1, False)
        super().insert(behind, vertex)

    def kinds(self, at: np.ndarray) -> list[np.ndarray]:
        return [kind for kind in (self.straight[at], ~self.straight[at]) if kind.any()]

    def pieces(self, at: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As for polygons; where curves are concerned, the two segments that the node is in, eight chords each."""
        if self.straight[at].all():
            return super().pieces(at, there)
        moved = self.pixels(there, self.owner[at][:, None])[:, :, None]
        old, new = [], []
        for segment in self._segments(at):
            place = self.pixels(self.vertex[segment], self.owner[segment])
            old.append(chords(place))
            new.append(chords(np.where((segment == at[:, None])[:, None, :, None], moved, place[:, None])))
        return np.concatenate(old, axis=1), np.concatenate(new, axis=2)

    def _segments(self, at: np.ndarray) -> list[np.ndarray]:
        """The two segments that nodes are in, as the indices ``(M, 4)`` of their points; a line's ends stand twice.

        A control point is in one only; the other is the node after it, four times.
        """
        back1, on1 = self.preceding[at], self.following[at]
        back2, on2 = self.preceding[back1], self.following[on1]
        back3, on3 = self.preceding[back2], self.following[on2]
        before = np.where(
            self.control[back1][:, None],
            np.stack([back3, back2, back1, at], axis=1),
            np.stack([back1, back1, at, at], axis=1),
        )
        after = np.where(
            self.control[on1][:, None], np.stack([at, on1, on2, on3], axis=1), np.stack([at, at, on1, on1], axis=1)
        )
        second = self.control[at] & self.control[back1]
        first = self.control[at] & ~second
        before[first] = np.stack([back1, at, on1, on2], axis=1)[first]
        after[first] = on2[first, None]
        before[second] = np.stack([back2, back1, at, on1], axis=1)[second]
        after[second] = on1[second, None]
        return [before, after]

    def _bend(self, allowance: np.ndarray, vertex_tokens: int) -> None:
        """Replace runs of edges by curves: those that gain most first, no two of them overlapping."""
        start, edges, gain, free = self._offers(allowance, vertex_tokens)
        order = np.argsort(gain, kind="stable")
        taken = np.zeros(len(self.vertex), dtype=bool)  # the edge that begins in each vertex
        place = self.pixels(self.vertex, self.owner)
        keep = np.ones(len(self.vertex), dtype=bool)
        held = self.canvas.error
        for i in order[: np.searchsorted(gain[order], 0)]:
            run = self._run(start[i : i + 1], edges[i])[0]
            if taken[run[:-1]].any():
                continue
            # The exact price stands on what is drawn, which other curves may have changed by now.
            mine = self.owner[start[i]]
            ends = self.pixels(self.vertex[run[[0, -1]]], mine)
            curve = np.stack([ends[0], *self.pixels(free[i], np.array([mine, mine])), ends[1]])
            old, new = place[run], chords(curve)
            before = held[mine]
            self.redraw(old[None], new[None], mine[None])
            saved = (edges[i] - 3) * vertex_tokens - 1
            if self.canvas.error[mine] - before >= saved * allowance[mine]:
                self.redraw(new[None], old[None], mine[None])
                continue
            taken[run[:-1]] = True
            # The first two inner vertices become the control points, the others go.
            self.vertex[run[1:3]] = free[i]
            self.control[run[1:3]] = True
            keep[run[3:-1]] = False
        self.keep(keep)

    def _offers(self, allowance: np.ndarray, vertex_tokens: int) -> tuple[np.ndarray, ...]:
        """Curves for runs of edges: start, number of edges, gain (below 0 pays), control points on the grid."""
        offers = []
        place = self.pixels(self.vertex, self.owner)
        first = np.diff(self.ring, prepend=-1) > 0
        position = np.arange(len(self.ring)) - np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        for edges in range(_FEWEST, _MOST + 1):
            # The ring keeps an edge besides, and its first node stays one that the path goes through.
            start = np.flatnonzero((self.length > edges) & (position + edges <= self.length))
            if not len(start):
                continue
            run = self._run(start, edges)
            curves = fit_cubics(_along(place[run]))
            owner = self.owner[start]
            free = self.nearest(curves[:, 1:3], owner[:, None])
            curves[:, 1:3] = self.pixels(free, owner[:, None])
            price = self.canvas.change(place[run], chords(curves)[:, None], owner)[:, 0]
            gain = price - ((edges - 3) * vertex_tokens - 1) * allowance[owner]
            offers.append((start, np.full(len(start), edges), gain, free))
        if not offers:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 2, 2), np.int64)
        return tuple(np.concatenate(column) for column in zip(*offers, strict=True))

    def _run(self, start: np.ndarray, edges: int) -> np.ndarray:
        """The vertices ``(M, edges + 1)`` of runs of edges."""
        run = [start]
        for _ in range(edges):
            run.append(self.following[run[-1]])
        return np.stack(run, axis=1)


def _along(paths: np.ndarray) -> np.ndarray:
    """Points at equal distances along polylines ``(M, n, 2)``, both ends among them: ``(M, 24, 2)``."""
    step = np.hypot(*np.moveaxis(np.diff(paths, axis=1), -1, 0))
    upto = np.concatenate([np.zeros((len(paths), 1)), np.cumsum(step, axis=1)], axis=1)
    want = upto[:, -1:] * np.linspace(0, 1, _SAMPLES)
    edge = np.clip((upto[:, None, :] <= want[:, :, None]).sum(axis=2) - 1, 0, paths.shape[1] - 2)
    row = np.arange(len(paths))[:, None]
    share = (want - upto[row, edge]) / np.maximum(step[row, edge], 1e-12)
    return paths[row, edge] + np.clip(share, 0, 1)[..., None] * (paths[row, edge + 1] - paths[row, edge])
