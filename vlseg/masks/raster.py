"""The one rasteriser: a pixel is inside where its centre is, by the even-odd rule, and overlapping rings cancel.

Pixel (row r, column c) has its centre at (c + 0.5, r + 0.5). The scan goes down the columns, the order of COCO run
lengths, so that rings become an RLE without a pixel being touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.masks.rle import from_runs
from vlseg.types import RLE, VLSegError

# About 1 GB of crossings; the noisiest mask of 100 megapixels stays below.
_MOST_CROSSINGS = 60_000_000


def raster(rings: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Even-odd interior of closed rings at the pixel centres.

    rings: ``(N, 2)`` arrays of (x, y) in pixels, int or float, closed without repeating the first point; fewer than
    three points enclose nothing; parts outside the image are cut off. size: (height, width). Returns ``(H, W)`` bool.
    A centre exactly on an edge belongs to the side of greater y, or greater x on a vertical edge. Raises VLSegError
    for other shapes, for NaN or infinity, and for rings that cross the pixel columns more than 60 million times.
    """
    height, width = size
    lengths = _run_lengths(rings, height, width)
    inside = np.arange(len(lengths)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, lengths).reshape(width, height).T)


def raster_rle(rings: Sequence[np.ndarray], size: tuple[int, int]) -> RLE:
    """The RLE of `raster`, without making the pixels. Arguments and errors as there."""
    height, width = size
    return from_runs(_run_lengths(rings, height, width), (height, width))


def _run_lengths(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Lengths of alternating outside and inside runs down the columns, ``(R,)`` int64, zeros among them."""
    x0, y0, x1, y1 = _edges(rings)
    # Column c lies between the ends of an edge where x0 <= c + 0.5 < x1, the ends in order.
    first = np.clip(np.ceil(x0 - 0.5), 0, width).astype(np.int64)
    count = np.clip(np.ceil(x1 - 0.5), 0, width).astype(np.int64) - first
    crossing = count > 0
    first, count = first[crossing], count[crossing]
    x0, y0, x1, y1 = x0[crossing], y0[crossing], x1[crossing], y1[crossing]
    total = int(count.sum())
    if total > _MOST_CROSSINGS:
        raise VLSegError(f"the outline crosses pixel columns {total} times, more than {_MOST_CROSSINGS}")
    edge = np.repeat(np.arange(len(first)), count)
    column = np.arange(total) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    y = y0[edge] + (column + 0.5 - x0[edge]) * ((y1 - y0) / (x1 - x0))[edge]
    row = np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64)
    # Closed rings cross each column an even number of times, so parity starts afresh by itself.
    flips = np.sort(column * height + row)
    return np.diff(flips, prepend=0, append=height * width)


def _edges(rings: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All edges as x0, y0, x1, y1 with x0 <= x1, so that an edge run both ways has one and the same crossing."""
    arrays = [np.asarray(ring) for ring in rings]
    for index, points in enumerate(arrays):
        if points.ndim != 2 or points.shape[1] != 2:
            raise VLSegError(f"ring {index} is not an (N, 2) array of x, y: shape {points.shape}")
    arrays = [points for points in arrays if len(points) >= 3]
    if not arrays:
        return (np.zeros(0),) * 4
    start = np.concatenate(arrays, dtype=np.float64)
    if not np.isfinite(start).all():
        raise VLSegError("a ring holds a coordinate that is NaN or infinite")
    stops = np.cumsum([len(points) for points in arrays])
    end = np.empty_like(start)
    end[:-1] = start[1:]
    end[stops - 1] = start[np.concatenate([[0], stops[:-1]])]
    backwards = start[:, 0] > end[:, 0]
    start[backwards], end[backwards] = end[backwards], start[backwards]
    return start[:, 0], start[:, 1], end[:, 0], end[:, 1]
