"""RefCOCO and gRefCOCO from files in the original formats, against an independent reading of the same files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from originals import HEIGHT, WIDTH, instances, python2_pickle, python2_pickle_0, ref, refs, write_refcoco
from pycocotools import mask as coco

from vlseg.data import official
from vlseg.data.dataset import Dataset
from vlseg.data.index import IndexedDataset
from vlseg.data.refer import images_by_split
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError


def reference(annotation: dict) -> np.ndarray:
    """The mask as lichengunc/refer makes it: planes of the polygons added up, then anything above 0."""
    planes = coco.decode(coco.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH))
    return planes.sum(axis=2) > 0


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("refs(unc).p", python2_pickle),
        ("refs(unc).p", python2_pickle_0),
        ("refs(unc).p", lambda value: pickle.dumps(value, 4)),
        ("refs(unc).json", lambda value: json.dumps(value).encode()),
    ],
)
def test_a_split_in_every_container(refcoco: Path, file: str, write):
    (refcoco / "refcoco" / "refs(unc).p").unlink()
    (refcoco / "refcoco" / file).write_bytes(write(refs()))
    dataset = open_dataset("refcoco", "val", refcoco)
    assert isinstance(dataset, Dataset)
    assert (dataset.name, dataset.split, len(dataset), dataset.problems) == ("refcoco", "val", 1, [])
    sample = dataset[0]
    assert (sample.id, sample.size, sample.meta) == ("1", (HEIGHT, WIDTH), {"coco_id": 1})
    assert sample.image == refcoco / "train2014" / "COCO_train2014_000000000001.jpg"
    assert [(q.id, q.text, q.kind, q.ignore) for q in sample.queries] == [
        ("refcoco:1:100", "the left person", None, None),
        ("refcoco:1:101", "person in red", None, None),
        ("refcoco:3:300", "the dog", None, None),
        ("refcoco:5:500", "middle one", None, None),
    ]


def test_masks_and_distractors(refcoco: Path):
    by_id = {a["id"]: a for a in instances()["annotations"]}
    dataset = open_dataset("refcoco", "val", refcoco)
    queries = {q.id: q for q in dataset[0].queries}
    expected = {"refcoco:1:100": (11, [12, 13]), "refcoco:5:500": (12, [11, 13]), "refcoco:3:300": (14, [])}
    for id, (target, others) in expected.items():
        mask = codec.decode(queries[id].masks[0])
        assert 0.05 < mask.mean() < 0.95
        assert np.array_equal(mask, reference(by_id[target]))
        found = [codec.decode(d) for d in queries[id].distractors]
        assert len(found) == len(others)  # the crowd of persons is no distractor
        for one, other in zip(found, others, strict=True):
            assert np.array_equal(one, reference(by_id[other]))


def test_raw_sentences_and_counts(refcoco: Path):
    dataset = open_dataset("refcoco?text=raw", "val", refcoco)
    assert dataset[0].queries[0].text == "The Left person"
    assert isinstance(dataset, IndexedDataset)
    counts = dataset.counts()
    assert (counts["images"], counts["queries"], counts["present"], counts["masks"]) == (1, 4, 4, 4)
    assert counts["distractors"] == 6
    assert dataset.coco_ids() == [1]
    assert images_by_split(refcoco / "refcoco" / "refs(unc).p") == {"val": {1}, "train": {2}, "testA": {3}}


def test_no_image_is_opened(refcoco: Path):
    for path in (refcoco / "train2014").iterdir():
        path.write_bytes(b"no picture")
    dataset = open_dataset("refcoco", "val", refcoco)
    assert dataset[0].queries[0].masks
    assert dataset.fingerprint
    with pytest.raises(IndexError):
        dataset[1]
    assert dataset[-1].id == "1"


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("images/mscoco/images/train2014", "COCO_train2014_000000000001.jpg"),
        ("coco/train2014", "COCO_train2014_000000000001.jpg"),
        ("coco/images/train2017", "000000000001.jpg"),
    ],
)
def test_where_pictures_are_found(refcoco: Path, layout: str, name: str):
    picture = refcoco / layout / name
    picture.parent.mkdir(parents=True)
    (refcoco / "train2014" / "COCO_train2014_000000000001.jpg").rename(picture)
    assert open_dataset("refcoco", "val", refcoco)[0].image == picture
    assert open_dataset(f"refcoco?images={picture.parent}", "val", refcoco)[0].image == picture
    picture.unlink()
    with pytest.raises(VLSegError, match=r"pictures are not there; put the COCO train2014 pictures .*train2014"):
        open_dataset("refcoco", "val", refcoco)
    assert len(open_dataset("refcoco", "val", refcoco, pictures=False)) == 1


def test_other_members_and_layouts(tmp_path: Path):
    root = tmp_path / "data"
    write_refcoco(root / "refer_seg", "refcocog", "refs(umd).p")
    dataset = open_dataset("refcocog-umd", "val", root)
    assert dataset[0].queries[0].id == "refcocog-umd:1:100"
    # The folder itself as root; but RefCOCO+ has a refs(unc).p too, and is not RefCOCO.
    write_refcoco(root, "refcoco+")
    assert len(open_dataset("refcoco+", "val", root / "refcoco+")) == 1
    with pytest.raises(VLSegError, match="are not there"):
        open_dataset("refcoco", "val", root / "refcoco+")


def test_grefcoco(tmp_path: Path):
    content = [
        ref(1, 1, [11, 12], "val", "both persons", category=[1, 1]),
        ref(2, 1, [-1], "val", "the zebra", category=[-1]),
        ref(3, 1, [13, 15], "val", "person at the right and the crowd", category=[1, 1]),
        ref(4, 1, [15], "val", "the crowd"),
        ref(5, 1, [11, 99], "val", "nobody"),
        ref(6, 1, [11, 14], "val", "person and dog", category=[1, 2]),
    ]
    root = write_refcoco(tmp_path / "data", "grefcoco", "grefs(unc).json", content)
    dataset = open_dataset("grefcoco", "val", root)
    queries = {q.text: q for q in dataset[0].queries}
    assert len(queries["both persons"].masks) == 2
    assert len(queries["both persons"].distractors) == 1
    assert queries["the zebra"].masks == []
    assert queries["the zebra"].distractors == []
    assert len(queries["person at the right and the crowd"].masks) == 1  # crowds are skipped, as in ReLA
    assert len(queries["person and dog"].masks) == 2
    assert len(queries["person and dog"].distractors) == 2
    assert [p.where for p in dataset.problems] == ["grefs(unc).json: ref 4", "grefs(unc).json: ref 5"]
    assert "crowds" in dataset.problems[0].what
    assert "annotation 99" in dataset.problems[1].what
    assert dataset.counts()["absent"] == 1


def test_broken_refs_are_named(refcoco: Path):
    good = refs()
    broken = [
        "nothing",
        {"ref_id": 70},
        {**ref(71, 1, 11, "val", "a"), "image_id": "1"},
        {**ref(72, 1, "11", "val", "a")},
        {**ref(73, 1, 11, "val", "a"), "sentences": ("a",)},
        ref(74, 99, 11, "val", "a"),
        ref(75, 1, 999, "val", "a"),
        ref(76, 1, 21, "val", "of another image"),
        ref(77, 1, -1, "val", "no target is gRefCOCO's"),
        {**ref(78, 1, 11, "val", "a"),
         "sentences": [{"sent_id": 1, "sent": " "}, {"sent": "x"}, 7, {"sent_id": 2, "sent": b"x"}]},
        {**ref(1, 1, 11, "val", "The Left person")},
        ref(80, 1, [], "val", "a"),
    ]  # fmt: skip
    (refcoco / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(good + broken, 4))
    dataset = open_dataset("refcoco", "val", refcoco)
    assert dataset.counts()["queries"] == 4
    found = {p.where.removeprefix("refs(unc).p: "): p.what for p in dataset.problems}
    assert set(found) == {
        "ref 6 of the list", "ref 70", "ref 71", "ref 72", "ref 73", "ref 80", "ref 75", "ref 76", "ref 77",
        "ref 78, sentence 1", "ref 78, sentence 2", "ref 78, sentence 3", "ref 78, sentence 4", "ref 74",
        "query 'refcoco:1:100'",
    }  # fmt: skip
    assert len(dataset.problems) == len(found)
    assert "'image_id' is missing" in found["ref 70"] or "'ann_id' is missing" in found["ref 70"]
    assert "image 99" in found["ref 74"]
    assert "of image 1" in found["ref 76"]
    assert "occurs before" in found["query 'refcoco:1:100'"]


def test_broken_instances_are_named(refcoco: Path):
    path = refcoco / "refcoco" / "instances.json"
    data = json.loads(path.read_text())
    by_id = {a["id"]: a for a in data["annotations"]}
    by_id[11]["segmentation"] = []  # a few annotations of the original are like that
    by_id[12]["segmentation"] += [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
    by_id[13]["segmentation"] = [[1, 2, 3, 4, 5, None]]
    by_id[14]["bbox"] = [float("nan")] * 4
    data["annotations"].append({**by_id[14]})
    data["annotations"].append({"id": 77, "image_id": 1})
    data["annotations"].append({**by_id[14], "id": "78"})
    data["images"].append(dict(data["images"][0]))
    data["images"].append({"id": 5, "file_name": "x.jpg"})
    path.write_text(json.dumps(data))
    dataset = open_dataset("refcoco", "val", refcoco)
    assert [q.id for q in dataset[0].queries] == ["refcoco:3:300", "refcoco:5:500"]
    assert len(dataset[0].queries[1].masks) == 1
    assert dataset[0].queries[1].distractors == []
    found = [f"{p.where}: {p.what}" for p in dataset.problems]
    for line in (
        "instances.json: image 1: this id occurs before; the second is left out",
        "instances.json: image 5: Object missing required field 'height'",
        "instances.json: annotation 14: this id occurs before; the second is left out",
        "instances.json: annotation 77: Object missing required field 'category_id'",
        "instances.json: annotation 11: a segmentation is an RLE or a list of polygons, got []",
        "instances.json: annotation 12: polygon 3: 4 coordinates; a polygon has at least 3 points; left out",
        "instances.json: annotation 12: polygon 4: 7 coordinates, an odd number; left out",
        "instances.json: annotation 13: polygon 1: a coordinate is no number; left out",
        "refs(unc).p: ref 1: a target has no usable mask",
    ):
        assert line in found, found
    assert any("Expected 'int', got 'str'" in line for line in found)
    assert len(found) == 10


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "no COCO instance file"),
        (b'{"images": []}', "no COCO instance file"),
        (b'{"images": 1, "annotations": []}', "no COCO instance file"),
        ('{"images": ["é"]}'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_instance_files_that_are_none(refcoco: Path, content: bytes, says: str):
    path = refcoco / "refcoco" / "instances.json"
    path.write_bytes(content)
    with pytest.raises(VLSegError, match=says) as caught:
        open_dataset("refcoco", "val", refcoco)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(VLSegError, match=r"instances\.json is not there; it belongs beside refs\(unc\)\.p"):
        open_dataset("refcoco", "val", refcoco)


def test_refs_files_that_are_none(refcoco: Path):
    path = refcoco / "refcoco" / "refs(unc).p"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(VLSegError, match="no refs file"):
        open_dataset("refcoco", "val", refcoco)
    path.write_bytes(pickle.dumps(refs()))
    with pytest.raises(VLSegError, match="no ref of split testB; it has testA, train, val"):
        open_dataset("refcoco", "testB", refcoco)


def test_sizes_of_the_real_files_are_asserted(refcoco: Path, monkeypatch):
    assert sum(official.REFS["refcoco"].values()) == 50_000
    assert sum(official.SENTENCES["refcoco"].values()) == 142_210
    assert any("5 of the official 50000 refs: a subset" in n for n in open_dataset("refcoco", "val", refcoco).notes)
    sizes = {"train": 1, "val": 3, "testA": 1, "testB": 0}
    monkeypatch.setitem(official.REFS, "refcoco", sizes)
    monkeypatch.setitem(official.SENTENCES, "refcoco", {"train": 1, "val": 4, "testA": 3, "testB": 0})
    assert open_dataset("refcoco", "val", refcoco).notes == []
    monkeypatch.setitem(official.SENTENCES, "refcoco", {"train": 1, "val": 5, "testA": 3, "testB": 0})
    with pytest.raises(VLSegError, match="split val has 4 sentences, officially 5"):
        open_dataset("refcoco", "val", refcoco)
    monkeypatch.setitem(official.REFS, "refcoco", {**sizes, "val": 2, "testA": 2})
    with pytest.raises(VLSegError, match="split val has 3 refs, officially 2"):
        open_dataset("refcoco", "val", refcoco)
