from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from originals import HEIGHT, WIDTH, picture
from PIL import Image

from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError

LARGE = [[4, 4], [44, 4], [44, 40], [4, 40]]
MIDDLE = [[10, 10], [40, 10], [40, 36], [10, 36]]
SMALL = [[20, 15], [30, 15], [30, 25], [20, 25]]


def shape(label: str, points: Any) -> dict[str, Any]:
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "a.jpg", "points": points,
            "group_id": None, "group_ids": [None], "flags": {}}  # fmt: skip


def labels(*shapes: dict[str, Any], text: Any = ("What is it?",), sentence: bool = True) -> dict[str, Any]:
    return {"text": list(text) if isinstance(text, tuple) else text, "is_sentence": sentence, "shapes": list(shapes)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "reason_seg" / "ReasonSeg" / "val"
    folder.mkdir(parents=True)
    contents = {
        "a": labels(shape("target", MIDDLE), shape("flag", LARGE), text=("first question", "second question")),
        "b": labels(shape("target", LARGE), shape("ignore_region", MIDDLE), shape("TARGET", SMALL), sentence=False),
        "c": labels(shape("ignore", LARGE), shape("target", MIDDLE), text="one"),
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        picture(folder / f"{name}.jpg", seed=ord(name))
    return tmp_path


def reference(content: dict[str, Any]) -> np.ndarray:
    """LISA's rules on our raster: 1 target, 255 ignored, larger shapes first."""
    from pycocotools import mask as coco

    planes = []
    for entry in content["shapes"]:
        if entry["label"].lower() != "flag":
            flat = [float(v) for point in entry["points"] for v in point]
            plane = coco.decode(coco.frPyObjects([flat], HEIGHT, WIDTH))[..., 0].astype(bool)
            planes.append((plane.sum(), 255 if "ignore" in entry["label"].lower() else 1, plane))
    out = np.zeros((HEIGHT, WIDTH), np.uint8)
    for _, value, plane in sorted(planes, key=lambda p: -p[0]):
        out[plane] = value
    return out


def test_targets_and_ignored_pixels(root: Path):
    dataset = open_dataset("reasonseg", "val", root)
    assert (len(dataset), dataset.problems) == (3, [])
    assert dataset.notes == ["3 images, officially 200: a subset or another edition"]
    folder = root / "reason_seg" / "ReasonSeg" / "val"
    for sample, name in zip((dataset[i] for i in range(3)), "abc", strict=True):
        expected = reference(json.loads((folder / f"{name}.json").read_text()))
        assert sample.image == folder / f"{name}.jpg"
        for query in sample.queries:
            mask = codec.decode(query.masks[0])
            assert 0.05 < mask.mean() < 0.95
            assert np.array_equal(mask, expected == 1)
            ignored = np.zeros_like(mask) if query.ignore is None else codec.decode(query.ignore)
            assert np.array_equal(ignored, expected == 255)
    assert [q.id for q in dataset[0].queries] == ["reasonseg:a:0", "reasonseg:a:1"]
    assert [dataset[i].queries[0].kind for i in range(3)] == ["sentence", "phrase", "sentence"]
    assert (dataset[0].queries[0].ignore, dataset[1].queries[0].ignore is None) == (None, False)


def test_a_picture_on_its_side(root: Path):
    path = root / "reason_seg" / "ReasonSeg" / "val" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(path, exif=exif)  # stored upright-less: 64 rows of 48
    assert open_dataset("reasonseg", "val", root)[0].queries[0].masks[0]["size"] == [HEIGHT, WIDTH]


def test_encodings(root: Path):
    path = root / "reason_seg" / "ReasonSeg" / "val" / "a.json"
    content = labels(shape("target", MIDDLE), text=("the café’s sign",))
    for encoding in ("utf-8", "utf-8-sig", "cp1252"):
        path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
        assert open_dataset("reasonseg", "val", root)[0].queries[0].text == "the café’s sign"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (labels(), "no shape is a target"),  # two files of the official test split are like that
        (labels(shape("ignore", LARGE)), "no shape is a target"),
        (labels(shape("target", MIDDLE), text=[]), '"text" must be a list of sentences'),
        (labels(shape("target", MIDDLE), text=[7]), '"text" must be a list of sentences'),
        ({"text": ["a"]}, "no ReasonSeg labels"),
        ([], "no ReasonSeg labels"),
        (labels(shape("target", [[1, 2], [3, 4]])), "at least 3 points"),
        (labels(shape("target", [[1, 2], [3, 4], [5, "6"]])), "must be a list of [x, y]"),
        (labels(shape("target", [[1, 2], [3, 4], [5, float("nan")]])), "must be a list of [x, y]"),
        (labels({"points": LARGE}), "needs a label and points"),
        (labels(shape("target", [[1, 2], [3, 4], [5, 1e9]])), "beyond a million"),
    ],
)
def test_broken_labels_are_named(root: Path, content: Any, says: str):
    folder = root / "reason_seg" / "ReasonSeg" / "val"
    (folder / "a.json").write_text(json.dumps(content))
    dataset = open_dataset("reasonseg", "val", root)
    assert len(dataset) == 2
    assert all(p.where.startswith("a.json") for p in dataset.problems)
    assert any(says in p.what for p in dataset.problems), dataset.problems


def test_missing_parts(root: Path):
    folder = root / "reason_seg" / "ReasonSeg" / "val"
    (folder / "b.jpg").unlink()
    (folder / "c.json").write_bytes(b"{")
    dataset = open_dataset("reasonseg", "val", root)
    assert len(dataset) == 1
    assert "no picture b.jpg" in dataset.problems[0].what
    assert "not JSON" in dataset.problems[1].what
    (folder / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(VLSegError, match=r"a\.jpg"):
        dataset[0]
    with pytest.raises(VLSegError, match="ReasonSeg/test is not there; put the pictures"):
        open_dataset("reasonseg", "test", root)
