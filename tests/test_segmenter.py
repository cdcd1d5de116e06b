from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import vlseg
from vlseg import Result, Segmenter, VLSegError


def masks(result: Result) -> list[np.ndarray]:
    return [answer.mask for answer in result]


def test_the_readme_lines(segmenter, picture, queries, tmp_path, assert_foreground):
    picture().save(tmp_path / "photo.png")
    result = segmenter(tmp_path / "photo.png", queries)
    assert_foreground(result)
    found = next(answer for answer in result if answer.status == "found")
    assert found.mask.shape == (120, 160) == tuple(found.segments[0].rle["size"])
    assert found.segments[0].path.startswith("M")
    assert result.image == str(tmp_path / "photo.png")
    assert result.seconds > 0
    result.overlay().save(tmp_path / "o.png")
    assert Image.open(tmp_path / "o.png").size == (160, 120)
    assert result.svg().startswith("<svg")


def test_json_round_trip(segmenter, picture, queries):
    result = segmenter(picture(), queries)
    data = json.loads(result.to_json())
    assert data["size"] == [120, 160]
    assert "free-running" in data["protocol"]
    assert "logit > 0)" in data["protocol"]
    assert Result.from_dict(data).to_dict() == data


def test_protocol_tells_the_thresholds(segmenter, picture):
    result = segmenter(picture(), "red", presence_threshold=0.25, mask_threshold=0.75)
    assert "score >= 0.25" in result.protocol
    assert "p > 0.75 (logit > 1.099)" in result.protocol


def test_one_query_as_text(segmenter, picture, queries):
    alone = segmenter(picture(), queries[0], presence_threshold=0)
    assert len(alone) == 1
    assert (alone[0].mask == segmenter(picture(), queries, presence_threshold=0)[0].mask).all()


def test_sources_agree(segmenter, picture, queries, tmp_path):
    picture().save(tmp_path / "a.png")
    expected = masks(segmenter(picture(), queries))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(picture())):
        for a, b in zip(masks(segmenter(source, queries)), expected, strict=True):
            assert (a == b).all()


def test_rotated_by_exif_is_answered_upright(segmenter, picture, queries, tmp_path, assert_foreground):
    upright = picture(2, 90, 150)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    result, expected = (segmenter(p, queries, presence_threshold=0.0) for p in (tmp_path / "turned.png", upright))
    assert_foreground(result)
    assert result.size == (90, 150)
    assert [a.segments for a in result] == [a.segments for a in expected]


def test_batch(segmenter, picture, queries):
    images = [picture(0), picture(1, 160, 120), np.asarray(picture(2))]
    rows = [queries[:2], queries[1:], queries]
    results = segmenter(images, rows)
    assert [len(r) for r in results] == [2, 4, 5]
    for image, row, result in zip(images, rows, results, strict=True):
        for a, b in zip(masks(result), masks(segmenter(image, row)), strict=True):
            assert (a == b).all()
    assert [[a.text for a in r] for r in segmenter(images[:2], queries[:1])] == [queries[:1]] * 2
    assert segmenter([], []) == []
    with pytest.raises(VLSegError, match="one list an image"):
        segmenter(images, [queries, queries])


def test_keep_picture(segmenter, picture):
    light = Segmenter(segmenter.system, keep_picture=False)
    with pytest.raises(VLSegError, match="keep_picture"):
        light(picture(), "red").overlay()


def test_max_pixels(segmenter, picture):
    with pytest.raises(VLSegError, match="--max-pixels"):
        Segmenter(segmenter.system, max_pixels=100)(picture(), "red")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "path"}, "has no path mode"),
        ({"mode": "pth"}, "known: mask, path"),
        ({"refine": "vlseg=nowhere"}, "no config.json in nowhere"),
        ({"refine": "x"}, "known: none, vlseg, vlseg=FOLDER, sam2"),
        ({"refine": "sam2=nowhere"}, "no config.json in nowhere"),
        ({"presence_threshold": 2}, "presence threshold"),
        ({"mask_threshold": 1.0}, "mask threshold"),
    ],
)
def test_wrong_settings(segmenter, picture, options, says):
    with pytest.raises(VLSegError, match=says):
        segmenter(picture(), "red", **options)


def test_exports():
    assert set(vlseg.__all__) <= set(dir(vlseg))
    for name in vlseg.__all__:
        assert getattr(vlseg, name)
    with pytest.raises(AttributeError, match="segmentor"):
        _ = vlseg.segmentor
