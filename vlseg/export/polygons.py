"""Polygons of instances as annotation tools want them.

Two conventions: `edge_polygons` run along the edges of pixels (COCO, Label Studio, CVAT: x from 0 to the width), exact
under even-odd pixel centres; `pixel_polygon` runs through the pixels themselves (YOLO, whose readers draw with
OpenCV's fillPoly, which paints the pixels under the line too), exact under fillPoly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.masks import rle as codec
from vlseg.masks.polygons import to_coco_polygons
from vlseg.masks.simplify import simplify
from vlseg.types import RLE


def edge_polygons(rle: RLE, tolerance: float = 0.0) -> list[list[float]]:
    """Flat [x1, y1, x2, y2, ...] in pixels, one a connected component, the largest first; holes are bridged.

    tolerance: how many pixels the line may leave the outline by, in exchange for fewer points; 0 is exact.
    """
    flat = to_coco_polygons(codec.decode(rle))
    if tolerance <= 0:
        return [[float(v) for v in polygon] for polygon in flat]
    rings = [np.asarray(polygon).reshape(-1, 2) for polygon in flat]
    return [ring.reshape(-1).tolist() for ring in simplify(rings, tolerance) if len(ring) >= 3]


def pixel_polygon(rle: RLE, tolerance: float = 0.0) -> np.ndarray:
    """One ring ``(N, 2)`` of whole (column, row) for the whole instance, N >= 3.

    Components are joined to the largest by a line to its nearest point and back, as Ultralytics' own converter does:
    the format has one polygon an object. Exact under fillPoly but for the pixels below those lines.
    """
    rings = [_through_pixels(np.asarray(polygon).reshape(-1, 2)) for polygon in to_coco_polygons(codec.decode(rle))]
    if tolerance > 0:
        rings = [np.rint(simplify([ring], tolerance)[0]).astype(int) if len(ring) > 4 else ring for ring in rings]
    ring = _joined(rings)
    return np.concatenate([ring, np.repeat(ring[-1:], max(0, 3 - len(ring)), axis=0)])


def _through_pixels(corners: np.ndarray) -> np.ndarray:
    """A ring along pixel edges, the inside on its right, moved inward by half a pixel on every side."""
    corners = corners[np.any(corners != np.roll(corners, 1, axis=0), axis=1)]
    points: list[tuple[int, int]] = []
    into = np.sign(corners - np.roll(corners, 1, axis=0))
    for (x, y), (ax, ay), (bx, by) in zip(corners, into, np.roll(into, -1, axis=0), strict=True):
        if (ax, ay) == (bx, by):
            continue
        # Going down the inside is the column on the left, going up that on the right; going right the row below, going
        # left that above.
        if bool(ax) != bool(bx):
            points.append((int(x - ((ay or by) > 0)), int(y - ((ax or bx) < 0))))
        elif ax:  # a turn on the spot, the end of a bridge
            column = int(x - (ax > 0))
            points += [(column, int(y - (ax < 0))), (column, int(y - (bx < 0)))]
        else:
            row = int(y - (ay > 0))
            points += [(int(x - (ay > 0)), row), (int(x - (by > 0)), row)]
    return np.array(points, dtype=int)


def _joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    if len(rings) == 1:
        return rings[0]
    from scipy.spatial import cKDTree

    first, tree = rings[0], cKDTree(rings[0])
    detours: dict[int, list[np.ndarray]] = {}
    for ring in rings[1:]:
        distance, nearest = tree.query(ring)
        start = int(np.argmin(distance))
        detour = np.concatenate([ring[start:], ring[: start + 1]])
        detours.setdefault(int(nearest[start]), []).append(detour)
    parts: list[np.ndarray] = []
    for index, point in enumerate(first):
        parts.append(point[None])
        for detour in detours.get(index, []):
            parts += [detour, point[None]]
    return np.concatenate(parts)
