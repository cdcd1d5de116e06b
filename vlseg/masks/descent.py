"""Polygons on grids, improved one vertex at a time by the exact number of wrong pixels: moved, taken out, put in.

All changes are priced by `Canvas.change`. Those that are best among their neighbours are made together; where they got
into each other's way, a mask keeps only the best of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.masks.canvas import Canvas

# Where changes cost equally many pixels, the one that moves the line least is the best: wrong pixels a square pixel.
_TIE = 1e-10
_AROUND = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])


class Polygons:
    """Rings of grid vertices on a canvas. All arrays run over the vertices of all rings, ring after ring.

    vertex ``(V, 2)`` int64: x, y in 0 ... grid - 1; ring ``(V,)``: which ring, ascending; owner ``(V,)``: which mask.
    active ``(N,)`` bool: masks whose paths may change; touched ``(N,)`` bool: those where something did.
    """

    reach = 1  # how far along the ring the move of a vertex changes what the move of another one is worth

    def __init__(self, canvas: Canvas, boxes: np.ndarray, grid: int, rings: Sequence[Sequence[np.ndarray]]):
        """boxes: ``(N, 4)`` x0, y0, x1, y1 of each mask's grid in its pixels. Nothing is drawn on the canvas yet.

        rings: for each mask its rings ``(n, 2)``, n >= 3, in its pixels; they are put onto the grid.
        """
        self.canvas, self.boxes = canvas, boxes
        self.active, self.touched = np.ones(len(boxes), dtype=bool), np.zeros(len(boxes), dtype=bool)
        flat = [(points, mask) for mask, some in enumerate(rings) for points in some]
        sizes = [len(points) for points, _ in flat]
        self.ring = np.repeat(np.arange(len(flat)), sizes)
        self.owner = np.repeat(np.array([mask for _, mask in flat], dtype=np.int64), sizes)
        self._place(np.concatenate([np.zeros((0, 2)), *(points for points, _ in flat)]), grid)

    def set_grid(self, grid: int) -> None:
        """Go over to another grid: every vertex to the nearest place on it."""
        at = self.pixels(self.vertex, self.owner)
        self.canvas.flip(at, at[self.following], self.owner)
        self._place(at, grid)

    def _place(self, points: np.ndarray, grid: int) -> None:
        self.grid = grid
        self.corner = self.boxes[:, :2]
        self.cell = (self.boxes[:, 2:] - self.corner) / (grid - 1)
        self.vertex = self.nearest(points, self.owner)
        self.connect()
        at = self.pixels(self.vertex, self.owner)
        self.canvas.flip(at, at[self.following], self.owner)

    def pixels(self, vertex: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Grid vertices in pixels of their masks; leading axes may differ as far as they broadcast."""
        return self.corner[owner] + vertex * self.cell[owner]

    def nearest(self, points: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """The grid vertices nearest to points in pixels."""
        return np.clip(np.rint((points - self.corner[owner]) / self.cell[owner]), 0, self.grid - 1).astype(np.int64)

    def connect(self) -> None:
        """Find everyone's neighbours along the rings again, after vertices came or went."""
        count = len(self.ring)
        begins = np.flatnonzero(np.diff(self.ring, prepend=-1))
        ends = np.append(begins[1:], count) - 1 if count else begins
        self.following, self.preceding = np.arange(count) + 1, np.arange(count) - 1
        self.following[ends], self.preceding[begins] = begins, ends
        self.length = np.repeat(ends - begins + 1, ends - begins + 1)
        self.straight = np.ones(count, dtype=bool)  # whether lines lie on both sides of a vertex

    def keep(self, which: np.ndarray) -> None:
        """Forget all vertices but ``which``, ``(V,)`` bool; the canvas is the caller's business."""
        self.vertex, self.ring, self.owner = self.vertex[which], self.ring[which], self.owner[which]
        self.connect()

    def insert(self, behind: np.ndarray, vertex: np.ndarray) -> None:
        """Put vertices behind others; the canvas is the caller's business."""
        self.vertex = np.insert(self.vertex, behind + 1, vertex, axis=0)
        self.ring = np.insert(self.ring, behind + 1, self.ring[behind])
        self.owner = np.insert(self.owner, behind + 1, self.owner[behind])
        self.connect()

    def pieces(self, at: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is drawn where vertices ``at`` ``(M,)`` are, ``(M, A, 2)``, and would be with them at ``there``.

        there: ``(M, K, 2)`` on the grid, to polylines ``(M, K, A, 2)`` in pixels.
        """
        owner = self.owner[at]
        place = [self.pixels(self.vertex[i], owner) for i in (self.preceding[at], at, self.following[at])]
        moved = self.pixels(there, owner[:, None])
        new = np.stack(np.broadcast_arrays(place[0][:, None], moved, place[2][:, None]), axis=2)
        return np.stack(place, axis=1), new

    def kinds(self, at: np.ndarray) -> list[np.ndarray]:
        """Masks over ``at`` of vertices that have pieces of one kind."""
        return [np.ones(len(at), dtype=bool)]

    def best_alone(self, gain: np.ndarray, reach: int) -> np.ndarray:
        """Indices of the vertices with a gain below 0 that none within ``reach`` steps along the ring undercuts."""
        rank = np.empty(len(gain), dtype=np.int64)
        rank[np.argsort(gain, kind="stable")] = np.arange(len(gain))
        best = gain < 0
        ahead, behind = self.following, self.preceding
        for _ in range(reach):
            best &= (rank <= rank[ahead]) & (rank <= rank[behind])
            ahead, behind = self.following[ahead], self.preceding[behind]
        return np.flatnonzero(best)

    def move(self, pixels: float, rounds: int) -> None:
        """Move vertices to the best of the eight places that lie ``pixels`` (at least a cell) away, until none gains.

        rounds: at most so many.
        """
        step = np.maximum(1, np.rint(pixels / self.cell)).astype(np.int64)[:, None] * _AROUND  # (N, 8, 2)
        gain, target = np.zeros(len(self.vertex)), self.vertex.copy()
        stale = np.flatnonzero(self.active[self.owner])
        for _ in range(rounds):
            there = np.clip(self.vertex[stale, None] + step[self.owner[stale]], 0, self.grid - 1)
            for kind in self.kinds(stale):
                price = self.canvas.change(*self.pieces(stale[kind], there[kind]), self.owner[stale[kind]])
                cheapest = price.argmin(axis=1)
                gain[stale[kind]] = price[np.arange(len(price)), cheapest]
                target[stale[kind]] = there[kind][np.arange(len(price)), cheapest]
            chosen = self.best_alone(gain, self.reach)
            if not len(chosen):
                return
            self._move(chosen, target[chosen], gain[chosen])
            stale = self.around(chosen, self.reach)

    def around(self, at: np.ndarray, reach: int) -> np.ndarray:
        """All vertices within ``reach`` steps of some, ascending."""
        near = np.zeros(len(self.vertex), dtype=bool)
        ahead = behind = at
        near[at] = True
        for _ in range(reach):
            ahead, behind = self.following[ahead], self.preceding[behind]
            near[ahead] = near[behind] = True
        return np.flatnonzero(near)

    def _move(self, chosen: np.ndarray, target: np.ndarray, gain: np.ndarray) -> None:
        """Move the chosen vertices; where that does not help a mask, only its best one."""
        held, back = self.canvas.error.copy(), self.vertex[chosen]
        self._put(chosen, target)
        worse = (self.canvas.error >= held)[self.owner[chosen]]
        worse[best_of_each(self.owner[chosen], gain)] = False
        self._put(chosen[worse], back[worse])

    def _put(self, at: np.ndarray, vertex: np.ndarray) -> None:
        """Give vertices, all of them out of each other's reach, another place."""
        for kind in self.kinds(at):
            old, new = self.pieces(at[kind], vertex[kind, None])
            self.redraw(old, new[:, 0], self.owner[at[kind]])
        self.vertex[at] = vertex

    def redraw(self, old: np.ndarray, new: np.ndarray, owner: np.ndarray) -> None:
        """Draw pieces of paths ``(M, A, 2)`` as ``(M, B, 2)``, which end in the same points; owner ``(M,)``."""
        starts = [line[:, :-1].reshape(-1, 2) for line in (old, new)]
        ends = [line[:, 1:].reshape(-1, 2) for line in (old, new)]
        owners = [np.repeat(owner, line.shape[1] - 1) for line in (old, new)]
        self.canvas.flip(np.concatenate(starts), np.concatenate(ends), np.concatenate(owners))
        self.touched[owner] = True

    def thin(self, allowance: np.ndarray, rounds: int) -> None:
        """Take vertices out, or two neighbours together into one, while each costs fewer wrong pixels than allowed.

        allowance: ``(N,)`` pixels a vertex for each mask. Triangles stay; `drop_rings` takes them.
        """
        gain, merged = np.zeros(len(self.vertex)), np.zeros((len(self.vertex), 2), dtype=np.int64)
        fused = np.zeros(len(self.vertex), dtype=bool)
        stale = np.flatnonzero(self.active[self.owner])
        for _ in range(rounds):
            possible = (self.length > 3) & self.straight & self.straight[self.following]
            stale = stale[possible[stale]]
            price, merged[stale], fused[stale] = self._fusions(stale)
            gain[stale] = price - allowance[self.owner[stale]]
            gain[~possible] = 0
            chosen = self._rationed(self.best_alone(gain, 2), gain)
            if not len(chosen):
                return
            near = np.zeros(len(self.vertex), dtype=bool)
            near[self.around(chosen, 3)] = True
            stays = self._fuse(chosen, merged, fused, gain, allowance)
            gain, merged, fused = gain[stays], merged[stays], fused[stays]
            stale = np.flatnonzero(near[stays])

    def _fusions(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cheapest way of losing a vertex at each of ``at``: its price, the vertex to put instead, and whether to.

        Either the vertex goes, or it and the one after it become one: halfway, where the edges beside them would meet,
        or between the two.
        """
        a, p, q, b = self._four(at)
        corner = np.stack([a, p, q], axis=1)
        gone = self.canvas.change(corner, corner[:, None, [0, 2]], self.owner[at])[:, 0] + _TIE * _area(corner)
        middle = (p + q) / 2
        u, v, w = p - a, q - b, b - a
        cross = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
        parallel = np.abs(cross) < 1e-9
        meeting = a + ((w[:, 0] * v[:, 1] - w[:, 1] * v[:, 0]) / np.where(parallel, 1, cross))[:, None] * u
        far = np.abs(meeting - middle).max(axis=1) > 2 * np.abs(p - q).max(axis=1) + 2
        meeting = np.where((far | parallel)[:, None], middle, meeting)
        owner = self.owner[at][:, None]
        there = self.nearest(np.stack([middle, meeting, (middle + meeting) / 2], axis=1), owner)
        new = np.stack(np.broadcast_arrays(a[:, None], self.pixels(there, owner), b[:, None]), axis=2)
        four = np.stack([a, p, q, b], axis=1)
        price = self.canvas.change(four, new, self.owner[at])
        closed = np.concatenate([np.repeat(four[:, None], 3, axis=1), new[:, :, 1:2]], axis=2)
        price += _TIE * _area(closed)
        each, cheapest = np.arange(len(at)), price.argmin(axis=1)
        price = price[each, cheapest]
        return np.minimum(price, gone), there[each, cheapest], price < gone

    def _four(self, at: np.ndarray) -> list[np.ndarray]:
        """Where the vertex before each of ``at``, itself, and the two after it are, ``(M, 2)`` pixels each."""
        following = self.following[at]
        four = (self.preceding[at], at, following, self.following[following])
        return [self.pixels(self.vertex[i], self.owner[at]) for i in four]

    def _rationed(self, chosen: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """So many of the chosen, best first, that every ring keeps three vertices and loses a third at most."""
        order = chosen[np.lexsort((gain[chosen], self.ring[chosen]))]
        begins = np.flatnonzero(np.diff(self.ring[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
        return order[rank < np.maximum(1, (self.length[order] - 3) // 3)]

    def _fuse(
        self, chosen: np.ndarray, merged: np.ndarray, fused: np.ndarray, gain: np.ndarray, allowance: np.ndarray
    ) -> np.ndarray:
        """Lose a vertex at each of the chosen, or at the best one where that is too dear. Returns who stays."""
        a, p, q, b = self._four(chosen)
        one = fused[chosen, None]
        # Where a vertex just goes, u and b are q: the edges beyond have no length and cross nothing.
        u, b = np.where(one, self.pixels(merged[chosen], self.owner[chosen]), q), np.where(one, b, q)
        old, new = np.stack([a, p, q, b], axis=1), np.stack([a, u, b], axis=1)
        held, owner = self.canvas.error.copy(), self.owner[chosen]
        self.redraw(old, new, owner)
        dear = (self.canvas.error - held > allowance * np.bincount(owner, minlength=len(held)))[owner]
        dear[best_of_each(owner, gain[chosen])] = False
        self.redraw(old[dear], new[dear], owner[dear])
        chosen = chosen[~dear]
        pairs = chosen[fused[chosen]]
        self.vertex[pairs] = merged[pairs]
        stays = np.ones(len(self.vertex), dtype=bool)
        stays[chosen[~fused[chosen]]] = False
        stays[self.following[pairs]] = False
        self.keep(stays)
        return stays

    def split(self, allowance: np.ndarray, pixels: float, rounds: int) -> None:
        """Put vertices into edges, up to twice ``pixels`` beside them, where each saves more than ``allowance``."""
        share, offset = np.repeat([0.3, 0.5, 0.7], 4)[:, None], np.tile([-2.0, -1.0, 1.0, 2.0], 3)[:, None] * pixels
        for _ in range(rounds):
            lines = self.straight | self.straight[self.following]
            at = np.flatnonzero(lines & self.active[self.owner])
            owner = self.owner[at]
            start, end = (self.pixels(self.vertex[i], owner)[:, None] for i in (at, self.following[at]))
            along = end - start
            beside = along[..., ::-1] * (-1, 1) / np.maximum(1e-9, np.hypot(along[..., 0], along[..., 1]))[..., None]
            there = self.nearest(start + share * along + offset * beside, owner[:, None])
            old = np.concatenate([start, end], axis=1)
            new = np.stack(np.broadcast_arrays(start, self.pixels(there, owner[:, None]), end), axis=2)
            price = self.canvas.change(old, new, owner)
            cheapest = price.argmin(axis=1)
            gain = np.zeros(len(self.vertex))
            gain[at] = price[np.arange(len(at)), cheapest] + allowance[owner]
            chosen = np.flatnonzero(np.isin(at, self.best_alone(gain, 1)))
            if not len(chosen):
                return
            held, owner = self.canvas.error.copy(), owner[chosen]
            old, new = old[chosen], new[chosen, cheapest[chosen]]
            self.redraw(old, new, owner)
            useless = (held - self.canvas.error < allowance * np.bincount(owner, minlength=len(held)))[owner]
            useless[best_of_each(owner, gain[at[chosen]])] = False
            self.redraw(old[useless], new[useless], owner[useless])
            chosen = chosen[~useless]
            self.insert(at[chosen], there[chosen, cheapest[chosen]])

    def drop_rings(self, allowance: np.ndarray, overhead: float = 0.5) -> None:
        """Drop rings that save fewer wrong pixels than ``allowance`` for each vertex and ``overhead`` vertices more.

        The last ring of a mask stays.
        """
        place = self.pixels(self.vertex, self.owner)
        begins = np.flatnonzero(np.diff(self.ring, prepend=-1))
        owner, size = self.owner[begins], self.length[begins]
        # Wrong pixels that go with a ring are hardly more than its area; the large ones need no counting.
        x, y = (place - np.repeat(place[begins], size, axis=0)).T
        price = np.abs(np.add.reduceat(x * y[self.following] - x[self.following] * y, begins)) / 2
        small = price < 2 * allowance[owner] * (size + overhead) + 2
        for n in np.unique(size[small]):
            same = np.flatnonzero(small & (size == n))
            ring = place[begins[same, None] + np.append(np.arange(n), 0)]
            price[same] = self.canvas.change(ring, ring[:, None, [0, 0]], owner[same])[:, 0]
        gain = price - allowance[owner] * (size + overhead)
        # Of the rings of a mask, the one that is worth most stays.
        dropped = gain < 0
        dropped[best_of_each(owner, -gain)] = False
        gone = np.repeat(dropped, size)
        self.canvas.flip(place[gone], place[self.following[gone]], self.owner[gone])
        self.touched[self.owner[gone]] = True
        self.keep(~gone)


def _area(polygons: np.ndarray) -> np.ndarray:
    """The area that polygons ``(..., n, 2)`` enclose; where they cross themselves, the difference of the parts."""
    x, y = polygons[..., 0], polygons[..., 1]
    return np.abs((x * np.roll(y, -1, axis=-1) - np.roll(x, -1, axis=-1) * y).sum(axis=-1)) / 2


def best_of_each(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Indices of the least value in every group."""
    order = np.lexsort((value, group))
    return order[np.diff(group[order], prepend=-1) > 0]
