"""COCO polygons: masks to the flat ``[x1, y1, x2, y2, ...]`` lists of annotation files, and back.

A COCO polygon list is a union, so a hole cannot be a ring of its own. Here each connected component becomes one
polygon, its holes joined to it by a bridge of zero width: straight up from the hole's top corner to the ring above it,
inside the component all the way, walked there and back. COCO's rasteriser counts crossings of columns, and a vertical
bridge has none, so ``from_coco_polygons(to_coco_polygons(mask))`` gives ``mask`` back without a wrong pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.masks import rle as codec
from vlseg.masks.outline import outline, signed_area
from vlseg.types import VLSegError

# A way along a ring: what hangs off edge i, as (point on the edge, index of the hole's ring).
_Attachments = dict[int, list[tuple[tuple[int, int], int]]]


def to_coco_polygons(mask: np.ndarray) -> list[list[int]]:
    """The flat COCO polygons of a ``(H, W)`` bool mask: integer pixel corners, one list a 4-connected component.

    Largest component first; holes are bridged as described above. Exact under pycocotools and under even-odd pixel
    centres. ``[]`` for an empty mask. Raises VLSegError for anything but a two-dimensional bool array.
    """
    rings = outline(mask)
    hanging: list[_Attachments] = [{} for _ in rings]
    outer = [signed_area(ring) > 0 for ring in rings]
    if not all(outer):
        edges = _UpperEdges(rings)
        for index, ring in enumerate(rings):
            if not outer[index]:
                point = _above(np.asarray(mask), int(ring[0, 0]), int(ring[0, 1]))
                owner, edge = edges.at(np.asarray(mask), *point)
                hanging[owner].setdefault(edge, []).append((point, index))
    return [_walk(index, rings, hanging) for index in range(len(rings)) if outer[index]]


def from_coco_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """The union of flat COCO polygons by COCO's own rasteriser, ``(H, W)`` bool; all False for ``[]``.

    size: (height, width). Raises VLSegError as `vlseg.masks.rle.from_coco` for a polygon that is none.
    """
    if not polygons:
        return np.zeros(size, dtype=bool)
    return codec.decode(codec.from_coco(list(polygons), *size))


def to_rings(polygons: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Flat coordinate lists as rings ``(N, 2)`` float64. Raises VLSegError for an odd number of coordinates."""
    for index, polygon in enumerate(polygons):
        if len(polygon) % 2:
            raise VLSegError(f"polygon {index}: {len(polygon)} coordinates, an odd number")
    return [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]


def _above(mask: np.ndarray, x: int, y: int) -> tuple[int, int]:
    """Where a bridge up from the top-left corner (x, y) of a hole leaves the inside: the next boundary point."""
    both = mask[:y, x - 1] & mask[:y, x]
    outside = np.flatnonzero(~both)
    return x, int(outside[-1]) + 1 if len(outside) else 0


class _UpperEdges:
    """Horizontal edges by position: those that a bridge from below can meet."""

    def __init__(self, rings: Sequence[np.ndarray]):
        owners, numbers, lefts, ys = [], [], [], []
        for index, ring in enumerate(rings):
            end = np.roll(ring, -1, axis=0)
            number = np.flatnonzero(ring[:, 1] == end[:, 1])
            owners.append(np.full(len(number), index))
            numbers.append(number)
            lefts.append(np.minimum(ring[number, 0], end[number, 0]))
            ys.append(ring[number, 1])
        left, y = np.concatenate(lefts), np.concatenate(ys)
        self.stride = int(left.max()) + 2
        key = y * self.stride + left
        order = np.argsort(key)
        self.keys, self.owner, self.number = key[order], np.concatenate(owners)[order], np.concatenate(numbers)[order]

    def at(self, mask: np.ndarray, x: int, y: int) -> tuple[int, int]:
        """(ring, edge number) of the horizontal edge that holds (x, y) and has the inside below it."""
        # The unit edge right of the point, or left of it where the pixel above on the right is inside.
        unit = x if y == 0 or not mask[y - 1, x] else x - 1
        found = int(np.searchsorted(self.keys, y * self.stride + unit, side="right")) - 1
        return int(self.owner[found]), int(self.number[found])


def _walk(root: int, rings: Sequence[np.ndarray], hanging: Sequence[_Attachments]) -> list[int]:
    """The outer ring ``root`` with every hole below it spliced in, as flat coordinates.

    Holes hang on holes as deep as the picture pleases, hence a stack of steps and no recursion.
    """
    flat: list[int] = []
    # A step is a point (x, y) to write, or a ring to go on with behind the first n of its edges that holes hang on.
    todo: list[tuple[str, int, int]] = [("ring", root, 0)]
    stops: dict[int, list[int]] = {}
    while todo:
        kind, a, b = todo.pop()
        if kind == "ring":
            ring = rings[a]
            edges = stops.setdefault(a, sorted(hanging[a]))
            begin = edges[b - 1] + 1 if b else 0
            if b == len(edges):
                flat += ring[begin:].reshape(-1).tolist()
                continue
            stop = edges[b]
            flat += ring[begin : stop + 1].reshape(-1).tolist()
            todo.append(("ring", a, b + 1))
            direction = 1 if ring[(stop + 1) % len(ring), 0] > ring[stop, 0] else -1
            # The stack turns the order round: the hole met first is pushed last.
            for point, hole in sorted(hanging[a][stop], key=lambda item: -direction * item[0][0]):
                start = rings[hole][0]
                todo.append(("point", *point))
                todo.append(("point", int(start[0]), int(start[1])))
                todo.append(("ring", hole, 0))
                todo.append(("point", *point))
        elif flat[-2:] != [a, b]:
            flat += [a, b]
    return flat
