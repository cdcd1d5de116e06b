"""The RLE codec against pycocotools and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from vlseg.masks import rle as codec
from vlseg.types import VLSegError

from .strategies import blobs, masks


def column_runs(mask: np.ndarray) -> list[int]:
    """Run lengths the slow way."""
    runs, value = [0], False
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(masks())
def test_codec(mask: np.ndarray):
    rle = codec.encode(mask)
    assert isinstance(rle["counts"], str)
    assert rle["size"] == list(mask.shape)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle["counts"] == theirs["counts"].decode()
    decoded = codec.decode(rle)
    assert decoded.dtype == bool
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, mask)
    assert codec.runs(rle).tolist() == column_runs(mask)
    assert codec.area(rle) == mask.sum()
    assert codec.validate(rle) == rle


@given(masks(), st.data())
def test_uncompressed_counts_and_zero_runs(mask: np.ndarray, data: st.DataObject):
    rle = codec.encode(mask)
    runs = column_runs(mask)
    assert codec.validate({"size": list(mask.shape), "counts": runs}) == rle
    assert codec.from_runs(np.array(runs), mask.shape) == rle
    at = data.draw(st.integers(0, len(runs)))
    assert codec.validate({"size": mask.shape, "counts": [*runs[:at], 0, 0, *runs[at:]]}) == rle
    assert codec.validate({"size": mask.shape, "counts": rle["counts"].encode()}) == rle


@given(masks())
def test_bbox(mask: np.ndarray):
    ys, xs = np.nonzero(mask)
    expected = [0.0] * 4
    if len(ys):
        expected = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    box = codec.bbox(codec.encode(mask))
    assert box == expected
    assert all(type(v) is float for v in box)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_many(dtype: type):
    stack = np.random.default_rng(0).random((300, 7, 5)) < 0.4
    rles = codec.encode_many(stack.astype(dtype) * (1 if dtype is bool else 3))
    np.testing.assert_array_equal(codec.decode_many(rles), stack)
    np.testing.assert_array_equal(codec.decode_union(rles[:3], (7, 5)), stack[:3].any(axis=0))
    # More than 255: pycocotools' own area overflows here.
    areas = codec.areas(rles)
    np.testing.assert_array_equal(areas, stack.sum(axis=(1, 2)))
    assert areas.dtype == np.int64
    np.testing.assert_array_equal(codec.bboxes(rles)[7], codec.bbox(rles[7]))


def test_none_at_all():
    assert codec.encode_many(np.zeros((0, 4, 5), dtype=bool)) == []
    assert codec.decode_many([], (4, 5)).shape == (0, 4, 5)
    assert codec.areas([]).shape == (0,)
    assert codec.bboxes([]).shape == (0, 4)
    assert codec.iou([], [codec.empty((2, 2))]).shape == (0, 1)
    union = codec.decode_union([], (4, 5))
    assert union.shape == (4, 5)
    assert not union.any()
    assert codec.union([], (4, 5)) == codec.encode(union)
    with pytest.raises(VLSegError, match="no size"):
        codec.merge([])


def test_arithmetic_from_runs():
    a, b = blobs(40, 50, 3, 1), blobs(40, 50, 3, 2)
    assert 0 < (a & b).sum() < min(a.sum(), b.sum())
    ra, rb = codec.encode(a), codec.encode(b)
    assert codec.intersection_area(ra, rb) == (a & b).sum()
    assert codec.merge([ra, rb]) == codec.union([ra, rb], (40, 50)) == codec.encode(a | b)
    assert codec.merge([ra, rb], intersect=True) == codec.encode(a & b)
    expected = (a & b).sum() / (a | b).sum()
    np.testing.assert_allclose(codec.iou([ra, rb], [rb]), [[expected], [1.0]])
    empty = codec.empty((40, 50))
    np.testing.assert_array_equal(codec.iou([empty], [empty, ra]), [[0.0, 0.0]])


def test_sizes_must_agree():
    a, b = codec.empty((3, 4)), codec.empty((4, 3))
    for call in (lambda: codec.iou([a], [b]), lambda: codec.merge([a, b]), lambda: codec.decode_union([a], (4, 3))):
        with pytest.raises(VLSegError, match=r"\(3, 4\), \(4, 3\)"):
            call()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({}, "an RLE is"),
        ("52203", "an RLE is"),
        ({"size": [2, 2], "counts": [1, 4]}, "add up to 5 pixels, but size 2 x 2"),
        ({"size": [2, 3], "counts": "52203"}, "add up to"),
        ({"size": [2, 2], "counts": [1, -1, 4]}, "run 1 is negative"),
        ({"size": [2, 2], "counts": 4}, "string or a list of integers"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "string or a list of integers"),
        ({"size": [2, 2], "counts": [2**40]}, "2\\^31"),
        ({"size": [2, 2], "counts": "oooooooooooooo0"}, "2\\^31"),
        ({"size": [2, 2], "counts": ""}, "empty"),
        ({"size": [2, 2], "counts": "ü"}, "no encoder writes"),
        ({"size": [2, 2], "counts": "a"}, "in the middle of a run"),
        ({"size": [2], "counts": "4"}, "two positive integers"),
        ({"size": [0, 2], "counts": [0]}, "two positive integers"),
        ({"size": [2.5, 2], "counts": [5]}, "two positive integers"),
        ({"size": None, "counts": [5]}, "two positive integers"),
    ],
)
def test_malformed(rle: object, message: str):
    for call in (codec.validate, codec.decode):
        with pytest.raises(VLSegError, match=message) as caught:
            call(rle)
        assert "\n" not in str(caught.value)


@given(st.text(max_size=12), st.integers(1, 5), st.integers(1, 5))
def test_any_text_decodes_or_is_refused(counts: str, height: int, width: int):
    try:
        mask = codec.decode({"size": [height, width], "counts": counts})
    except VLSegError:
        return
    assert mask.shape == (height, width)


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 3)), np.zeros(3, bool), np.zeros((0, 3), bool), np.zeros((1, 2, 3), bool)]
)
def test_encode_refuses(mask: np.ndarray):
    with pytest.raises(VLSegError):
        codec.encode(mask)


def test_from_coco_polygons_are_a_union():
    square, inner = [2, 2, 10, 2, 10, 10, 2, 10], [4, 4, 6, 4, 6, 6, 4, 6]
    expected = np.zeros((12, 14), dtype=bool)
    expected[2:10, 2:10] = True
    for segmentation in ([square, inner], [square], square, [np.array(square)]):
        np.testing.assert_array_equal(codec.decode(codec.from_coco(segmentation, 12, 14)), expected)
    rle = codec.encode(expected)
    assert codec.from_coco(rle, 12, 14) == rle
    assert codec.from_coco({"size": [12, 14], "counts": codec.runs(rle).tolist()}, 12, 14) == rle


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "non-empty list"),
        ("abc", "non-empty list"),
        (None, "non-empty list"),
        ([[1, 1, 5, 1, 5, 5], [1, 2, 3, 4, 5, 6, 7]], "polygon 1: 7 coordinates, an odd number"),
        ([[1, 2, 3, 4]], "polygon 0: 2 points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "NaN"),
        ([[1, 2, 3, 4, 5, 1e30]], "beyond a million"),
        ([["a", "b", "c", "d", "e", "f"]], "must be numbers"),
        ({"size": [3, 3], "counts": [9]}, "the image"),
    ],
)
def test_from_coco_refuses(segmentation: object, message: str):
    with pytest.raises(VLSegError, match=message):
        codec.from_coco(segmentation, 12, 14)
