"""A canvas of masks side by side, and the exact count of wrong pixels that a change of a path would make.

Paths of many masks are improved together, so that every numpy call does the work of all of them: each mask has its own
columns of one long canvas, and its rings never leave them. Columns are stored one after the other, each with one slot
more than it has pixels, which takes the crossings below the last row. Closed rings cross a column an even number of
times, so one cumulative sum over all slots has the right parity in every column, as in `vlseg.masks.raster`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Crossings that are worked out at a time: few enough for the arrays in between to stay in a core's cache.
_MOST_CROSSINGS = 200_000
# Which to exchange, to sort so many values.
_NETWORKS = {
    3: ((0, 1), (1, 2), (0, 1)),
    4: ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)),
    5: ((0, 3), (1, 4), (0, 2), (1, 3), (0, 1), (2, 4), (1, 2), (3, 4), (2, 3)),
}


class Canvas:
    """The difference between N masks and what is drawn of them, nothing at first.

    masks: ``(h, w)`` bool each; coordinates are in pixels of a mask, so that its neighbours on the canvas make no
    difference, not even by rounding. area ``(N,)``: pixels of each mask, at least 1. error ``(N,)``: its wrong pixels.
    """

    def __init__(self, masks: Sequence[np.ndarray]):
        widths = np.array([mask.shape[1] for mask in masks], dtype=np.int64)
        heights = np.array([mask.shape[0] for mask in masks], dtype=np.int64)
        self.width = widths
        self.left = np.cumsum(widths) - widths
        self.owner = np.repeat(np.arange(len(masks)), widths)
        self.depth = np.repeat(heights.astype(np.int32), widths)
        self.base = np.cumsum(self.depth + 1, dtype=np.int64) - (self.depth + 1)
        # Spare slots count as right, and belong to no difference of sums.
        self.wrong = np.concatenate([np.pad(mask.T, ((0, 0), (0, 1))).reshape(-1) for mask in masks])
        self.error = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.float64)
        self.area = np.maximum(1.0, self.error)
        self.sums = _sums_before(self.wrong)

    def copy(self) -> Canvas:
        """One that can be drawn on without changing this one."""
        twin = object.__new__(Canvas)
        twin.__dict__ = {**self.__dict__, "wrong": self.wrong.copy(), "error": self.error.copy()}
        twin.sums = self.sums.copy()
        return twin

    def flip(self, start: np.ndarray, end: np.ndarray, owner: np.ndarray) -> None:
        """Turn over every pixel that edges start -> end, ``(E, 2)``, enclose: draws rings, undraws them, moves them.

        owner ``(E,)``: the mask of each. The edges must form closed rings (as a piece of a path and its replacement
        do together).
        """
        low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
        edge, local, column = self._columns(low, high, owner)[1:]
        if not len(edge):
            return
        x, y, slope = (v[edge] for v in _lines(*start.T, *end.T))
        row = self._rows(x, y, slope, local + 0.5, self.depth[column])
        touched = np.zeros(len(self.depth), dtype=bool)
        touched[column] = True
        columns = np.flatnonzero(touched)
        size = self.depth[columns] + 1
        begin = np.cumsum(size) - size
        compact = np.empty(len(self.depth), dtype=np.int64)
        compact[columns] = begin
        total = int(begin[-1] + size[-1])
        # Only the parity of a count matters, and a byte that runs over keeps it.
        inside = np.cumsum(np.bincount(compact[column] + row, minlength=total).astype(np.uint8), dtype=np.uint8) & 1
        place = np.arange(total) + np.repeat(self.base[columns] - begin, size)
        before = self.wrong[place]
        wrong = before ^ inside.view(bool)
        grown = np.add.reduceat(wrong.view(np.int8) - before.view(np.int8), begin, dtype=np.int64)
        self.error += np.bincount(self.owner[columns], weights=grown, minlength=len(self.error))
        self.wrong[place] = wrong
        self.sums[place] = _sums_before(wrong)

    def change(self, old: np.ndarray, new: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """By how many the wrong pixels grow where a piece of a path is replaced, ``(M, K)``, exact for each alone.

        old: ``(M, A, 2)``, a polyline as drawn; new: ``(M, K, B, 2)``, K replacements with the same first and last
        point; owner ``(M,)``: the mask of each. A ring is a piece from its start to its start.
        """
        if not len(old):
            return np.zeros(new.shape[:2])
        options, steps = new.shape[1], old.shape[1] + new.shape[2] - 2
        # Points as rows, so that numpy works along the many pieces and not along the few points of each.
        x, y = (np.concatenate([old[..., i].T, np.moveaxis(new[..., i], 0, -1).reshape(-1, len(old))]) for i in (0, 1))
        count, item, local, column = self._columns(x.min(axis=0), x.max(axis=0), owner)
        if len(item) * options * steps > _MOST_CROSSINGS and len(old) > 1:
            parts = (slice(0, len(old) // 2), slice(len(old) // 2, None))
            return np.concatenate([self.change(old[part], new[part], owner[part]) for part in parts])
        if not len(item):
            return np.zeros(new.shape[:2])
        # The edges of the old piece, then the first ones of all replacements, their second ones, ...
        replaced = old.shape[1] + np.arange(options) * new.shape[2] + np.arange(new.shape[2] - 1)[:, None]
        edge = np.append(np.arange(old.shape[1] - 1), replaced)
        rows = self._crossings(x[edge], y[edge], x[edge + 1], y[edge + 1], count, local + 0.5, self.depth[column])
        drawn = old.shape[1] - 1
        ordered = _ascending(
            [row[None] for row in rows[:drawn]] + list(rows[drawn:].reshape(-1, options, rows.shape[1]))
        )
        base = self.base[column]
        # Every other interval between crossings changes sides. An odd one out is an absent crossing, at the very end.
        total = np.zeros((options, len(item)), dtype=np.int64)
        for upper, lower in zip(ordered[::2], ordered[1::2], strict=False):
            total += self.sums.take(base + lower)
            total -= self.sums.take(base + upper)
        upto = np.zeros((options, len(item) + 1), dtype=np.int64)
        np.cumsum(total, axis=1, out=upto[:, 1:])
        stop = np.cumsum(count)
        return (upto[:, stop] - upto[:, stop - count]).T.astype(np.float64)

    def _columns(self, low: np.ndarray, high: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, ...]:
        """The columns whose centres lie in [low, high), ranges ``(M,)`` of x.

        Returns how many each range has ``(M,)``, and for all columns one after the other ``(C,)``: the range that they
        are of, their number in the mask, their number on the canvas.
        """
        first, stop = (np.clip(np.ceil(x - 0.5), 0, self.width[owner]).astype(np.int64) for x in (low, high))
        count = stop - first
        item = np.repeat(np.arange(len(count)), count)
        local = np.arange(len(item)) + np.repeat(first - (np.cumsum(count) - count), count)
        return count, item, local, local + self.left[owner][item]

    @staticmethod
    def _rows(x: np.ndarray, y: np.ndarray, slope: np.ndarray, centre: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The first row whose centre is below the line at each column's centre; in the arithmetic of the rasteriser."""
        row = centre - x
        row *= slope
        row += y
        row -= 0.5
        np.ceil(row, out=row)
        np.maximum(row, 0, out=row)
        return np.minimum(row, depth, out=row).astype(np.int32)

    def _crossings(
        self,
        x0: np.ndarray,
        y0: np.ndarray,
        x1: np.ndarray,
        y1: np.ndarray,
        count: np.ndarray,
        centre: np.ndarray,
        depth: np.ndarray,
    ) -> np.ndarray:
        """Crossing rows ``(E, C)`` of edges ``(E, M)``; the spare slot where an edge does not cross a column.

        count ``(M,)``: columns of each piece; centre, depth ``(C,)``: their centres and spare slots.
        """
        x, y, slope = (v.repeat(count, axis=1) for v in _lines(x0, y0, x1, y1))
        stop = np.maximum(x0, x1).repeat(count, axis=1)
        return np.where((x <= centre) & (centre < stop), self._rows(x, y, slope, centre, depth), depth)


def _lines(x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y of the left end of each edge, and its slope (0 for vertical edges, which cross no column's centre)."""
    backwards = x0 > x1
    x, y = np.where(backwards, x1, x0), np.where(backwards, y1, y0)
    run = np.abs(x1 - x0)
    return x, y, (np.where(backwards, y0, y1) - y) / np.where(run == 0, 1, run)


def _sums_before(wrong: np.ndarray) -> np.ndarray:
    """Right slots less wrong ones in front of each; only differences within a column mean anything."""
    weight = 1 - 2 * wrong.view(np.int8)
    return np.cumsum(weight, dtype=np.int32) - weight


def _ascending(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Arrays that broadcast, sorted against each other element by element."""
    if len(rows) not in _NETWORKS:
        return list(np.sort(np.stack(np.broadcast_arrays(*rows)), axis=0))
    for a, b in _NETWORKS[len(rows)]:
        rows[a], rows[b] = np.minimum(rows[a], rows[b]), np.maximum(rows[a], rows[b])
    return rows
