"""Exact pixel outlines from run lengths: what `outline` gives for the pixels, without the pixels.

Time and memory grow with the number of runs, so the outline of a mask of 240 million pixels costs what its boundary
costs.
"""

from __future__ import annotations

import numpy as np

from vlseg.masks.outline import rings_of
from vlseg.masks.rle import runs
from vlseg.types import RLE


def outline_rle(rle: RLE) -> list[np.ndarray]:
    """``outline(decode(rle))``, ring for ring. Raises VLSegError for text that is no RLE."""
    height, width = rle["size"]
    column, top, bottom = _pieces(runs(rle), height)
    if not len(column):
        return []
    # A piece has a horizontal crack above (its pixel lies below it) and one below; a crack ends in two lattice points.
    x = np.concatenate([column, column + 1] * 2)
    y = np.concatenate([top, top, bottom, bottom])
    rightwards = np.tile(np.repeat([True, False], len(column)), 2)  # the crack runs to the right of the point
    below = np.repeat([True, False], 2 * len(column))  # its inside is below it
    order = np.argsort((y * (width + 1) + x) * 2 + rightwards)
    x, y, rightwards, below = x[order], y[order], rightwards[order], below[order]
    same = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    straight = same & (below[1:] == below[:-1])
    # Two cracks in one point: with the inside on one side they go straight on, else two pixels touch diagonally.
    corner = np.ones(len(x), dtype=bool)
    corner[1:] &= ~straight
    corner[:-1] &= ~straight
    x, y, rightwards, below = x[corner], y[corner], rightwards[corner], below[corner]
    # Corners of a lattice row pair up into horizontal edges, those of a column into vertical ones (see `outline`).
    pair = np.arange(len(x)) ^ 1
    by_column = np.argsort((x * (height + 1) + y) * 2 + below)
    vertical = np.empty_like(pair)
    vertical[by_column] = by_column[pair]
    return rings_of(np.stack([x, y], axis=1), np.where(rightwards == below, pair, vertical))


def _pieces(lengths: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inside runs cut at the ends of columns: column, first row, row behind the last; ``(N,)`` int64 each."""
    ends = np.cumsum(lengths)
    start, stop = ends[0:-1:2], ends[1::2]
    filled = stop > start
    start, stop = start[filled], stop[filled]
    first = start // height
    count = (stop - 1) // height - first + 1
    run = np.repeat(np.arange(len(start)), count)
    column = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count) + first[run]
    return column, np.maximum(start[run] - column * height, 0), np.minimum(stop[run] - column * height, height)
