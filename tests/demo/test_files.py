"""Downloads reopen, each with the tool of its kind, and hold the masks of a direct call."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from vlseg.demo.files import KINDS, download
from vlseg.demo.shot import Picture, Shot

from vlseg.masks.svg import path_to_mask
from vlseg.types import Result, VLSegError


@pytest.fixture(scope="module")
def shot(segmenter, photo, queries) -> Shot:
    return Shot(segmenter, *Picture.read(str(photo), 10**6), queries)


@pytest.fixture(scope="module")
def direct(segmenter, photo, queries, assert_foreground) -> Result:
    result = segmenter(photo, queries, 0.4, 0.45)
    assert_foreground(result)
    return result


def load(shot: Shot, kind: str, shown=range(5)) -> bytes:
    name, media, data = download(shot, kind, list(shown), 0.4, 0.45)
    assert name == "blocks" + KINDS[kind][2]
    assert media == KINDS[kind][1]
    return data


def test_json_is_a_result(shot, direct):
    for shown in (range(5), []):  # hidden answers are answers
        result = Result.from_dict(json.loads(load(shot, "json", shown)))
        assert [a.to_dict() for a in result] == [a.to_dict() for a in direct]
        assert result.image == "blocks.png"
        assert result.protocol == direct.protocol


def test_coco_reopens(shot, direct, tmp_path):
    rows = json.loads(load(shot, "coco"))
    found = [k for k, answer in enumerate(direct) if answer.segments]
    assert [row["category_id"] for row in rows] == [k + 1 for k in found]
    for row, k in zip(rows, found, strict=True):
        assert row["query"] == direct[k].text
        assert np.array_equal(coco_mask.decode(row["segmentation"]).astype(bool), direct[k].mask)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1, "height": 120, "width": 160}],
        "annotations": [],
        "categories": [{"id": k + 1, "name": answer.text} for k, answer in enumerate(direct)],
        "info": {},
    }
    truth.createIndex()
    file = tmp_path / "results.json"
    file.write_bytes(load(shot, "coco"))
    loaded = truth.loadRes(str(file))
    assert len(loaded.getAnnIds()) == len(found)


def test_svg_reopens_to_the_same_masks(shot, direct):
    root = ET.fromstring(load(shot, "svg"))
    paths = [node.get("d") for node in root.iter("{http://www.w3.org/2000/svg}path")]
    masks = [answer.mask for answer in direct if answer.segments]
    assert len(paths) == len(masks) > 0
    for path, mask in zip(paths, masks, strict=True):
        assert np.array_equal(path_to_mask(path, mask.shape), mask)


def test_mask_and_cutout(shot, direct, photo):
    found = [k for k, answer in enumerate(direct) if answer.segments]
    for shown in (found, found[:1]):
        union = np.any([direct[k].mask for k in shown], axis=0)
        assert 0.05 < union.mean() < 0.95
        mask = Image.open(io.BytesIO(load(shot, "mask", shown)))
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), union * 255)
        cutout = Image.open(io.BytesIO(load(shot, "cutout", shown)))
        assert cutout.mode == "RGBA"
        pixels = np.asarray(cutout)
        assert np.array_equal(pixels[..., 3], union * 255)
        assert np.array_equal(pixels[..., :3], np.asarray(Image.open(photo)))


@pytest.mark.parametrize("kind", ["coco", "svg"])
def test_hidden_answers_are_left_out(shot, direct, kind):
    found = [k for k, answer in enumerate(direct) if answer.segments]
    text = load(shot, kind, found[1:]).decode()
    assert direct[found[0]].text not in text
    assert direct[found[1]].text in text


@pytest.mark.parametrize("kind", ["coco", "svg", "mask", "cutout"])
def test_nothing_shown_is_no_file(shot, kind):
    with pytest.raises(VLSegError, match="would be empty"):
        download(shot, kind, [], 0.4, 0.45)
    with pytest.raises(VLSegError, match="would be empty"):
        download(shot, kind, range(5), 1.0, 0.45)


def test_an_unknown_kind(shot):
    with pytest.raises(VLSegError, match="no download of the kind"):
        download(shot, "exe", [], None, 0.5)
