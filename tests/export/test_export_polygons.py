"""Polygons and run lengths of exports against the rasterisers of the tools that read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from results_made import iou

from vlseg.export.brush import encode_brush
from vlseg.export.polygons import edge_polygons, pixel_polygon
from vlseg.masks import rle as codec

COCO = Path(__file__).parents[2] / "../shared/data/coco-small/instances.json"
masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(bool, size))


def filled(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As YOLO's readers draw a polygon."""
    cv2 = pytest.importorskip("cv2")
    canvas = np.zeros(size, np.uint8)
    cv2.fillPoly(canvas, [ring.astype(np.int32)], 1)
    return canvas > 0


@settings(max_examples=150)
@given(masks)
def test_the_parts_of_a_pixel_polygon_are_exact_under_opencv(mask):
    from scipy.ndimage import label

    parts, count = label(mask)
    for number in range(1, count + 1):
        part = parts == number
        ring = pixel_polygon(codec.encode(part))
        assert len(ring) >= 3
        assert np.array_equal(filled(ring, part.shape), part)
    if count > 1:  # joined: nothing is lost, and only what lies below the joints is added
        whole = filled(pixel_polygon(codec.encode(mask)), mask.shape)
        assert not (mask & ~whole).any()


@settings(max_examples=100)
@given(masks)
def test_brush_runs_by_the_decoder_of_label_studio(mask):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    decoded = brush.decode_rle(encode_brush(mask)).reshape(*mask.shape, 4)
    assert np.array_equal(decoded > 0, np.repeat(mask[..., None], 4, axis=2))


@pytest.mark.parametrize("length", [1, 2, 4, 64, 16383, 16384, 16385, 40000])
def test_brush_runs_of_every_length_field(length):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    mask = np.zeros((1, 3 * length), bool)
    mask[0, length : 2 * length] = True
    assert np.array_equal(brush.decode_rle(encode_brush(mask)).reshape(-1, 4)[:, 0] > 0, mask[0])


def real_instances(count: int) -> list[tuple[codec.RLE, np.ndarray]]:
    if not COCO.exists():
        pytest.skip("real instances: ../shared/data/coco-small is not here")
    data = json.loads(COCO.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    found = []
    for annotation in data["annotations"]:
        rle = codec.from_coco(annotation["segmentation"], *sizes[annotation["image_id"]])
        mask = codec.decode(rle)
        if 0.05 <= mask.mean() <= 0.95:
            found.append((rle, mask))
    return found[:: max(1, len(found) // count)][:count]


def test_real_instances_keep_their_masks():
    """40 instances of real photographs: exact without tolerance, near with one."""
    loose, points, exact_points, joined = [], 0, 0, []
    for rle, mask in real_instances(40):
        exact = edge_polygons(rle)
        assert np.array_equal(codec.decode(codec.from_coco(exact, *mask.shape)), mask)
        simple = edge_polygons(rle, 1.0)
        loose.append(iou(codec.decode(codec.from_coco(simple, *mask.shape)), mask))
        points, exact_points = points + sum(map(len, simple)), exact_points + sum(map(len, exact))
        joined.append(iou(filled(pixel_polygon(rle), mask.shape), mask))
    assert min(loose) > 0.97
    assert points < 0.5 * exact_points
    assert min(joined) > 0.98
    assert np.mean([value == 1 for value in joined]) > 0.5
