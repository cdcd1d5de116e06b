"""Exact pixel outlines: a mask to closed rings of integer pixel corners, and nothing lost.

Pixel (row r, column c) is the square [c, c + 1] x [r, r + 1]; a ring runs along pixel edges ("cracks"), so
``raster.raster(outline(mask), mask.shape)`` is ``mask`` for every mask.
"""

from __future__ import annotations

import numpy as np

from vlseg.types import VLSegError


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """The boundary of a mask as rings of its corners.

    mask: ``(H, W)`` bool. Returns rings ``(N, 2)`` int64 of (x, y) in pixels, N >= 4, closed without repeating the
    first point, without collinear points. Outer rings run clockwise on the screen, holes counter-clockwise (the inside
    is on the right); pixels that touch at a corner only do not count as connected. A ring starts at its top-most, then
    left-most corner; the ring of the largest enclosed area comes first, ties by start (y, x). ``[]`` for an empty mask.
    Raises VLSegError for anything but a two-dimensional bool array.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise VLSegError(f"an outline needs an (H, W) bool mask, got shape {mask.shape}, {mask.dtype}")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    points, following = _corners(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    return rings_of(points + np.array([left, top]), following)


def rings_of(points: np.ndarray, following: np.ndarray) -> list[np.ndarray]:
    """The rings of corners ``(P, 2)`` int64 in row order, in the order of `outline`.

    following: for each corner the index of the one that comes next, ``(P,)``.
    """
    order, starts = _cycles(following)
    points = points[order]
    doubled = _doubled_areas(points, starts)
    begin = points[starts]
    ranking = np.lexsort((begin[:, 0], begin[:, 1], -doubled, -np.abs(doubled)))
    stops = np.append(starts[1:], len(points))
    return [points[starts[i] : stops[i]] for i in ranking]


def signed_area(ring: np.ndarray) -> float:
    """Enclosed area in square pixels of an ``(N, 2)`` ring: positive for clockwise on the screen (outer rings)."""
    ring = np.asarray(ring, dtype=np.float64)
    return float(_doubled_areas(ring, np.zeros(1, dtype=np.int64))[0]) / 2


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All corners ``(P, 2)`` (x, y) in row order, and for each the index of the corner that follows it, ``(P,)``.

    A lattice point is a corner where one or three of its four pixels are inside, and two corners where two pixels
    touch diagonally. The corners of a lattice row then pair up into the horizontal edges, those of a column into the
    vertical ones.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), dtype=bool)
    padded[1:-1, 1:-1] = mask
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    upper, lower = nw ^ ne, sw ^ se
    # upper/lower: a vertical crack above/below the point. One of them: a corner. Both, crossing: a diagonal touch.
    touch = upper & lower & (nw ^ sw)
    at = np.flatnonzero(((upper ^ lower) | touch).reshape(-1))
    copies = 1 + touch.reshape(-1)[at]
    at = np.repeat(at, copies)
    y, x = np.divmod(at, width + 1)
    second = np.zeros(len(at), dtype=bool)
    second[1:] = at[1:] == at[:-1]
    double = second.copy()
    double[:-1] |= second[1:]
    a, b, c, d = nw[y, x], ne[y, x], sw[y, x], se[y, x]

    # Which horizontal and which vertical crack meet in this corner. Of a diagonal touch the first copy has the left
    # crack, the second the right one, and each stays with its own pixel.
    right = np.where(double, second, b ^ d)
    down = np.where(double, np.where(second, d, c), c ^ d)
    pair = np.arange(len(at)) ^ 1
    by_column = np.argsort((x * (height + 1) + y) * 2 + down)
    vertical = np.empty_like(pair)
    vertical[by_column] = by_column[pair]
    # The inside is on the right of the direction of travel: rightwards above it, leftwards below it.
    leaves_horizontally = np.where(right, d, a)
    return np.stack([x, y], axis=1), np.where(leaves_horizontally, pair, vertical)


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cycles of a permutation, each from its least index: concatenated indices, and where each cycle starts."""
    successor = following.tolist()
    seen = bytearray(len(successor))
    order: list[int] = []
    starts: list[int] = []
    append = order.append
    for first in range(len(successor)):
        if seen[first]:
            continue
        starts.append(len(order))
        at = first
        while not seen[at]:
            seen[at] = 1
            append(at)
            at = successor[at]
    return np.array(order, dtype=np.int64), np.array(starts, dtype=np.int64)


def _doubled_areas(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Shoelace sums of concatenated rings."""
    following = np.concatenate([points[1:], points[:1]])
    following[np.append(starts[1:], len(points)) - 1] = points[starts]
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    return np.add.reduceat(cross, starts)
