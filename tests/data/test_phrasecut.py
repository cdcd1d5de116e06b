from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from originals import HEIGHT, WIDTH, picture
from pycocotools import mask as coco

from vlseg.data import phrasecut
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError

RING = [[2, 2], [30, 2], [30, 30], [2, 30]]
OTHER = [[34, 10], [60.5, 10], [60.5, 40], [34, 40]]


def task(id: str, image: int = 1, phrase: str = "red car", polygons: Any = None, **extra: Any) -> dict[str, Any]:
    structure = {"name": "car", "attributes": ["red"], "relation_ids": [], "relation_descriptions": [],
                 "type": "attribute"}  # fmt: skip
    return {"task_id": id, "image_id": image, "ann_ids": [1], "instance_boxes": [[0, 0, 9, 9]], "phrase": phrase,
            "Polygons": [[RING]] if polygons is None else polygons, "phrase_structure": structure, **extra}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "phrasecut"
    target.mkdir()
    images = [{"image_id": 1, "coco_id": 42, "flickr_id": None, "width": WIDTH, "height": HEIGHT, "url": ""},
              {"image_id": 2, "coco_id": None, "flickr_id": 3, "width": WIDTH, "height": HEIGHT, "url": ""},
              {"image_id": 3, "width": "x", "height": HEIGHT}]  # fmt: skip
    (target / "image_data_split.json").write_text(json.dumps(images))
    tasks = [
        task("1__0", polygons=[[RING, OTHER], [OTHER]]),
        task("2__0", 2, "sky", [[OTHER]], phrase_structure=None),
        task("1__1", 1, " wheel ", phrase_structure={"type": "name", "name": "wheel"}),
    ]
    (target / "refer_val.json").write_text(json.dumps(tasks))
    for k in (1, 2):
        picture(target / "images" / f"{k}.jpg", seed=k)
    return target


def test_phrases(folder: Path):
    dataset = open_dataset("phrasecut", "val", folder.parent)
    assert (dataset.name, dataset.split, len(dataset), dataset.problems) == ("phrasecut", "val", 2, [])
    first, second = dataset[0], dataset[1]
    assert [(q.id, q.text, q.kind) for q in first.queries] == [
        ("phrasecut:1__0", "red car", "attribute"),
        ("phrasecut:1__1", "wheel", "name"),
    ]
    assert second.queries[0].kind is None
    assert (first.image, first.size) == (folder / "images" / "1.jpg", (HEIGHT, WIDTH))
    assert (first.meta, second.meta) == ({"coco_id": 42}, {})
    flat = [[float(v) for point in ring for v in point] for ring in (RING, OTHER)]
    planes = coco.decode(coco.frPyObjects(flat, HEIGHT, WIDTH)).astype(bool)
    expected = [planes.any(axis=2), planes[..., 1]]
    assert len(first.queries[0].masks) == 2  # one an instance
    for rle, mask in zip(first.queries[0].masks, expected, strict=True):
        assert 0.05 < mask.mean() < 0.95
        assert np.array_equal(codec.decode(rle), mask)
    assert "officially 20316" in dataset.notes[0]


def test_broken_tasks_are_named(folder: Path):
    tasks = [
        task("good"),
        7,
        {"task_id": "short"},
        task("nowhere", 9),
        task("no size", 3),
        task("no words", phrase=" "),
        task("two points", polygons=[[[[1, 2], [3, 4]]]]),
        task("one is sound", polygons=[[RING], [[[1, 2], [3, 4]]]]),
        task("text", polygons=[[[["1", 2], [3, 4], [5, 6]]]]),
        task("triples", polygons=[[[[1, 2, 3], [3, 4, 5], [5, 6, 7]]]]),
        task("far", polygons=[[[[1, 2], [3, 4], [5, 1e8]]]]),
        task("good"),
    ]
    (folder / "refer_val.json").write_text(json.dumps(tasks))
    dataset = open_dataset("phrasecut", "val", folder.parent)
    assert [q.id for q in dataset[0].queries] == ["phrasecut:good", "phrasecut:one is sound"]
    where = [p.where.removeprefix("refer_val.json: ") for p in dataset.problems]
    assert where == [
        "task 2 of the list",
        "task short",
        "task nowhere",
        "task no size",
        "task no words",
        "task two points, instance 1",
        "task two points",
        "task one is sound, instance 2",
        "task text",
        "task triples",
        "task far, instance 1",
        "task far",
        "query 'phrasecut:good'",
    ]


def test_missing_and_wrong_files(folder: Path, monkeypatch):
    (folder / "image_data_split.json").rename(folder / "image_data_split3000.json")
    assert len(open_dataset("phrasecut", "val", folder.parent)) == 2
    with pytest.raises(VLSegError, match=r"refer_test\.json is not there; put the files of PhraseCut there"):
        open_dataset("phrasecut", "test", folder.parent)
    monkeypatch.setitem(phrasecut.PHRASECUT, "val", (3, 9))
    with pytest.raises(VLSegError, match="3 phrases as published, but 2 images instead of 9"):
        open_dataset("phrasecut", "val", folder.parent)
    (folder / "refer_val.json").write_text("{}")
    with pytest.raises(VLSegError, match="no list of tasks"):
        open_dataset("phrasecut", "val", folder.parent)
    (folder / "images" / "1.jpg").unlink()
    (folder / "images" / "2.jpg").unlink()
