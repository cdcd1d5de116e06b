"""The shared data classes: JSON there and back, and the conveniences that reach into masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.svg import path_data, path_to_mask
from vlseg.types import Answer, Coarse, Query, Result, Sample, Segment, VLSegError


def segment(mask: np.ndarray, score: float = 0.9) -> Segment:
    rle = codec.encode(mask)
    return Segment(score, codec.bbox(rle), codec.area(rle), rle, path_data(mask))


def example() -> tuple[Result, np.ndarray, np.ndarray]:
    a, b = np.zeros((2, 20, 30), dtype=bool)
    a[2:9, 3:12] = True
    b[5:15, 10:25] = True
    answers = [
        Answer("the mug", "found", 0.93, (20, 30), None, [segment(a), segment(b, 0.5)]),
        Answer("the zebra", "absent", 0.0123456789, (20, 30)),
        Answer("the thing", "failed", None, (20, 30), "no pixel"),
    ]
    return Result("photo.jpg", (20, 30), "vlseg-mini", answers, "native", 0.21), a, b


def test_json_round_trip():
    result, _, _ = example()
    data = json.loads(result.to_json())
    assert data["answers"][0]["segments"][0]["bbox"] == [3, 2, 9, 7]
    assert data["size"] == [20, 30]
    again = Result.from_dict(data)
    assert again.to_dict() == data
    assert [a.status for a in again] == ["found", "absent", "failed"]
    assert len(again) == 3
    assert again[2].reason == "no pixel"
    assert again[2].score is None


def test_a_refined_segment_says_so_and_holds_what_it_was():
    result, a, b = example()
    before, written, refined = result[0].segments[0], segment(a), segment(b)
    written.stage = "path"
    refined.stage, refined.coarse = "refined", Coarse("path", written.rle, written.path)
    result[0].segments = [before, written, refined]
    data = json.loads(result.to_json())
    shown = data["answers"][0]["segments"]
    assert [entry["stage"] for entry in shown] == ["mask", "path", "refined"]
    assert ["coarse" in entry for entry in shown] == [False, False, True]
    again = Result.from_dict(data)
    assert again[0].segments == result[0].segments
    np.testing.assert_array_equal(codec.decode(again[0].segments[2].coarse.rle), a)
    np.testing.assert_array_equal(again[0].mask, a | b)
    for entry in shown:  # what was written before there were stages
        del entry["stage"]
        entry.pop("coarse", None)
    assert [s.stage for s in Result.from_dict(data)[0].segments] == ["mask"] * 3
    shown[0]["coarse"] = {"stage": "mask"}
    with pytest.raises(VLSegError, match="not a vlseg Result"):
        Result.from_dict(data)


def test_mask_is_the_union_and_empty_without_segments():
    result, a, b = example()
    assert 0 < result[0].mask.mean() < 1
    np.testing.assert_array_equal(result[0].mask, a | b)
    assert result[1].mask.shape == (20, 30)
    assert result[1].mask.dtype == bool
    assert not result[1].mask.any()


def test_path_of_a_segment_gives_its_rle():
    result, a, _ = example()
    np.testing.assert_array_equal(path_to_mask(result[0].segments[0].path, result.size), a)


def test_overlay_needs_a_picture():
    result, _, _ = example()
    with pytest.raises(VLSegError, match="no picture"):
        result.overlay()
    result.picture = Image.new("RGB", (30, 20))
    assert result.overlay(labels=False, captions=False).size == (30, 20)
    assert result.svg().startswith("<svg")


@pytest.mark.parametrize("data", [{}, {"size": 3}, {"image": "a", "size": [1, 2], "model": "m", "answers": [{}]}])
def test_from_dict_names_what_is_missing(data: dict):
    with pytest.raises(VLSegError, match="not a vlseg Result"):
        Result.from_dict(data)


def test_defaults_are_not_shared():
    assert Query("a").distractors is not Query("b").distractors
    assert Query("a").masks is None
    assert Sample("x.png", []).meta is not Sample("y.png", []).meta
