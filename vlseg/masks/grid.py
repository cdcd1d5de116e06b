"""Paths on a grid: the box of a mask in bins of the image, rings of grid nodes within it, and their canonical order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlseg.types import VLSegError

# Pixel coordinates are rounded to what SVG path data is written with, so that tokens, rings and SVG make one mask.
DECIMALS = 2


@dataclass(frozen=True, slots=True)
class GridRing:
    """A closed ring of lines and cubic Bezier curves.

    nodes ``(n, 2)`` int64: x, y in 0 ... grid - 1, in order. control ``(n,)`` bool: False for a node that the path goes
    through, True for the two control points of the cubic between the nodes around them. The first node is none; where
    the last two are, that cubic ends in the first node.
    """

    nodes: np.ndarray
    control: np.ndarray

    @classmethod
    def of(cls, nodes: Iterable[Sequence[int]], control: Iterable[bool] | None = None) -> GridRing:
        """From sequences; without ``control`` a polygon. Raises VLSegError where controls do not come in pairs."""
        points = np.array(list(nodes), dtype=np.int64).reshape(-1, 2)
        flags = np.zeros(len(points), dtype=bool) if control is None else np.array(list(control), dtype=bool)
        begins = flags & ~_rolled(flags, -1)
        if len(flags) != len(points) or (flags.any() and (flags[0] or not _in_pairs(flags, begins))):
            raise VLSegError("control points of a ring come in pairs, after a node that the path goes through")
        return cls(points, flags)

    @property
    def cubics(self) -> int:
        """How many of the segments are curves."""
        return int(np.count_nonzero(self.control)) // 2

    @property
    def doubled_area(self) -> int:
        """Twice the signed area of the polygon through all nodes, in cells; positive for clockwise on the screen."""
        x, y = self.nodes.T
        return int(np.dot(x, _rolled(y, 1)) - np.dot(_rolled(x, 1), y))

    def segments(self, points: np.ndarray) -> list[np.ndarray]:
        """The path through ``points`` ``(n, 2)`` in place of the nodes: ``(2, 2)`` lines and ``(4, 2)`` cubics."""
        on = np.flatnonzero(~self.control)
        closed = np.append(points, points[:1], axis=0)
        return [closed[a : b + 1] for a, b in zip(on, np.append(on[1:], len(points)), strict=True)]


def _in_pairs(flags: np.ndarray, begins: np.ndarray) -> bool:
    at = np.flatnonzero(begins)
    return bool(np.count_nonzero(flags) == 2 * len(at) and flags[(at + 1) % len(flags)].all())


def canonical(rings: Iterable[GridRing]) -> list[GridRing]:
    """The rings in the one order that a path is written in; what encloses nothing is left out.

    Every ring runs clockwise on the screen from its top-most, then left-most node, without repeated nodes and without
    nodes in the middle of a straight line; the largest ring comes first (by the area of the polygon through all nodes).
    """
    tidy = [_directed(ring) for ring in (_tidied(ring) for ring in rings) if len(ring.nodes) >= 3]
    return sorted(tidy, key=lambda ring: (-ring.doubled_area, _key(ring)))


def _tidied(ring: GridRing) -> GridRing:
    """Without nodes between two lines that add nothing: repeated, or on the line between their neighbours."""
    nodes, control = ring.nodes, ring.control
    while len(nodes):
        v = _rolled(nodes, 1) - nodes
        u = _rolled(v, -1)
        needless = u[:, 0] * v[:, 1] == u[:, 1] * v[:, 0]
        needless &= ~(control | _rolled(control, -1) | _rolled(control, 1))
        if not needless.any():
            break
        # Of neighbours one at a time: whether the next is needless may change with it.
        alone = needless & ~_rolled(needless, -1)
        needless = alone if alone.any() else np.arange(len(nodes)) == 0
        nodes, control = nodes[~needless], control[~needless]
    return GridRing(nodes, control)


def _directed(ring: GridRing) -> GridRing:
    area = ring.doubled_area
    there, back = ring, GridRing(ring.nodes[::-1], ring.control[::-1])
    # A figure of eight may be clockwise both ways, or neither.
    ways = [there] if area > 0 else [back] if area < 0 else [there, back]
    return min((_from_the_top(way) for way in ways), key=_key)


def _from_the_top(ring: GridRing) -> GridRing:
    on = np.flatnonzero(~ring.control)
    x, y = ring.nodes[on].T
    first = on[(y == y.min()) & (x == x[y == y.min()].min())]
    turned = [GridRing(_rolled(ring.nodes, i), _rolled(ring.control, i)) for i in first]
    return min(turned, key=_key)


def _key(ring: GridRing) -> tuple[list[list[int]], list[bool]]:
    return ring.nodes[:, ::-1].tolist(), ring.control.tolist()


def _rolled(values: np.ndarray, start: int) -> np.ndarray:
    """Values around the ring from ``start`` on; for a few nodes far quicker than `numpy.roll`."""
    return np.concatenate([values[start:], values[:start]])


def box_bins(extent: tuple[int, int, int, int], size: tuple[int, int], bins: int) -> tuple[int, int, int, int]:
    """The bins x0, y0, x1, y1 of the box around pixels left, top, right, bottom (exclusive), in an image (H, W).

    A box reaches from the low edge of bins x0, y0 to the high edge of bins x1, y1; its edges are as near as can be to
    those of the pixels, but no pixel centre is left out.
    """
    height, width = size
    left, top, right, bottom = extent
    return (
        _low(left, width, bins),
        _low(top, height, bins),
        bins - 1 - _low(width - right, width, bins),
        bins - 1 - _low(height - bottom, height, bins),
    )


def _low(edge: int, length: int, bins: int) -> int:
    """The bin whose low edge is nearest to ``edge``, or the one before it where that loses the next pixel's centre."""
    nearest = min((2 * edge * bins + length) // (2 * length), bins - 1)
    # Strictly less, so that it holds for the right and lower edges too, where a centre on the edge is outside.
    return nearest if 2 * nearest * length < (2 * edge + 1) * bins else nearest - 1


def box_edges(bins4: Sequence[int], size: tuple[int, int], bins: int) -> np.ndarray:
    """The box x0, y0, x1, y1 in pixels ``(4,)`` float64 of four bins, corners in any order; never without area."""
    height, width = size
    x0, x1 = sorted((bins4[0], bins4[2]))
    y0, y1 = sorted((bins4[1], bins4[3]))
    return np.array([x0 * width, y0 * height, (x1 + 1) * width, (y1 + 1) * height], dtype=np.float64) / bins


def to_pixels(nodes: np.ndarray, box: np.ndarray, grid: int) -> np.ndarray:
    """Grid nodes ``(n, 2)`` in pixels of the image, float64, rounded to ``DECIMALS``; 0 and grid - 1 are the box."""
    return np.round(box[:2] + nodes * ((box[2:] - box[:2]) / (grid - 1)), DECIMALS)
