"""COCO polygons: exact through pycocotools, holes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from pycocotools import mask as coco
from skimage.measure import label

from vlseg.masks.polygons import from_coco_polygons, to_coco_polygons, to_rings
from vlseg.masks.raster import raster
from vlseg.types import VLSegError

from .strategies import blobs, masks, nested


def through_pycocotools(polygons: list[list[int]], size: tuple[int, int]) -> np.ndarray:
    return coco.decode(coco.merge(coco.frPyObjects(polygons, *size))).astype(bool)


@given(masks())
def test_round_trip(mask: np.ndarray):
    polygons = to_coco_polygons(mask)
    assert len(polygons) == label(mask, connectivity=1).max()
    np.testing.assert_array_equal(from_coco_polygons(polygons, mask.shape), mask)
    np.testing.assert_array_equal(raster(to_rings(polygons), mask.shape), mask)
    assert all(len(p) >= 8 and len(p) % 2 == 0 and all(isinstance(v, int) for v in p) for p in polygons)


@pytest.mark.parametrize("mask", [nested(33, 47), ~nested(33, 47), blobs(240, 320, 2), blobs(240, 320, 6)])
def test_no_wrong_pixel_with_holes(mask: np.ndarray):
    holes = label(~np.pad(mask, 1), connectivity=2).max() - 1
    assert holes > 3
    got = through_pycocotools(to_coco_polygons(mask), mask.shape)
    np.testing.assert_array_equal(got, mask)


def test_bridges_stay_inside():
    """Each edge of the polygon runs along the boundary of the mask or through its inside, never over the outside."""
    mask = blobs(60, 80, 2)
    padded = np.pad(mask, 1)
    for ring in to_rings(to_coco_polygons(mask)):
        for (x0, y0), (x1, y1) in zip(ring.astype(int), np.roll(ring, -1, axis=0).astype(int), strict=True):
            assert x0 == x1 or y0 == y1
            if x0 == x1:
                rows = np.arange(min(y0, y1), max(y0, y1)) + 1
                assert (padded[rows, x0] | padded[rows, x0 + 1]).all()
            else:
                columns = np.arange(min(x0, x1), max(x0, x1)) + 1
                assert (padded[y0, columns] | padded[y0 + 1, columns]).all()


def test_many_holes_on_one_edge():
    mask = np.ones((60, 2001), dtype=bool)
    mask[2::3, 1:-1:2] = False
    np.testing.assert_array_equal(from_coco_polygons(to_coco_polygons(mask), mask.shape), mask)


def test_nothing_and_nonsense():
    assert to_coco_polygons(np.zeros((3, 4), bool)) == []
    assert from_coco_polygons([], (3, 4)).shape == (3, 4)
    with pytest.raises(VLSegError, match="odd"):
        to_rings([[1, 2, 3]])
