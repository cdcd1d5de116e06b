from __future__ import annotations

import json
from pathlib import Path

import pytest
from originals import python2_pickle, ref, write_refcoco

from vlseg.data.dataset import Dataset
from vlseg.data.leaks import GOOGLE, UNC_UMD, held_out, without_leaks
from vlseg.data.registry import open_dataset
from vlseg.types import VLSegError


@pytest.fixture
def family(refcoco: Path) -> Path:
    """RefCOCO evaluates on images 1 (val) and 3 (testA); RefCOCOg (UMD) trains on 1, 2, 3 and evaluates on 2."""
    content = [
        ref(1, 1, 11, "train", "a", "b"),
        ref(2, 2, 21, "train", "c"),
        ref(3, 3, 31, "train", "d", "e", "f"),
        ref(4, 2, 22, "val", "g"),
    ]
    write_refcoco(refcoco, "refcocog", "refs(umd).p", content)
    return refcoco


def test_images_are_taken_out_across_the_family(family: Path):
    train = open_dataset("refcocog-umd", "train", family)
    clean = without_leaks(train, family)
    assert isinstance(clean, Dataset)
    assert (clean.name, clean.split, len(train), len(clean)) == ("refcocog-umd", "train", 3, 0)
    assert clean.removed == {"images": 3, "queries": 6}
    assert clean.by_source == {"refcoco testA": 1, "refcoco val": 1, "refcocog-umd val": 1}
    assert clean.unknown == 0
    assert "refcoco+ val" in clean.unchecked
    assert "refcoco-m val" in clean.unchecked
    assert not any(name.startswith(("refcoco ", "refcocog-umd ")) for name in clean.unchecked)
    assert clean.report()[0] == "leak filter: 3 images with 6 queries taken out, 0 images kept"


def test_what_is_left(family: Path):
    train = open_dataset("refcocog-umd", "train", family)
    clean = without_leaks(train, family, ["refcoco"])
    assert [clean[i].id for i in range(len(clean))] == ["2"]
    assert clean.removed == {"images": 2, "queries": 5}
    assert clean.counts()["queries"] == 1
    assert clean.fingerprint != train.fingerprint
    assert clean.problems == train.problems
    assert clean.unchecked == []
    assert any("taken out" in note for note in clean.notes)


def test_training_images_are_not_held_out(family: Path):
    held = held_out(family)
    assert held.images["refcoco val"] == {1}
    assert "refcoco train" not in held.images
    assert set(UNC_UMD) & set(GOOGLE) == set()
    assert len(without_leaks(open_dataset("refcoco", "train", family), family, ["refcoco"])) == 1


def test_google_partitions_on_request(family: Path):
    path = family / "refcocog" / "refs(google).p"
    path.write_bytes(python2_pickle([ref(1, 3, 31, "val", "x"), ref(2, 2, 21, "train", "y")]))
    assert held_out(family, GOOGLE).images == {"refcocog-google val": {3}}
    assert "refcocog-google val" not in held_out(family).images


def test_data_without_coco_ids_stays_in_and_is_counted(family: Path, tmp_path: Path):
    path = tmp_path / "own.jsonl"
    lines = [{"image": "a.png", "queries": [{"text": "x"}], "meta": meta} for meta in ({}, {"coco_id": 1})]
    path.write_text("\n".join(map(json.dumps, lines)))
    clean = without_leaks(open_dataset(str(path)), family)
    assert (len(clean), clean.unknown, clean.removed["images"]) == (1, 1, 1)
    assert any("1 images have no COCO id" in line for line in clean.report())


def test_broken_files_are_told(family: Path):
    (family / "refcocog" / "refs(umd).p").write_bytes(b"x")
    with pytest.raises(VLSegError, match="not a pickle"):
        held_out(family)
