from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from originals import HEIGHT, WIDTH, instances, picture
from pycocotools import mask as coco
from pycocotools.coco import COCO

from vlseg.data.index import IndexedDataset
from vlseg.data.jsonl import check_sample
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-small"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """annotations/instances_{val2017, train2017}.json with pictures for val2017."""
    (tmp_path / "annotations").mkdir()
    for split in ("val2017", "train2017"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances()))
    for k in range(1, 4):
        picture(tmp_path / "val2017" / f"COCO_train2014_{k:012d}.jpg", seed=k)
    return tmp_path


def test_class_queries(small: Path):
    dataset = open_dataset(f"coco?root={small}", "val2017")
    assert (dataset.name, dataset.split, len(dataset), dataset.problems) == ("coco", "val2017", 3, [])
    sample = dataset[0]
    assert sample.size == (HEIGHT, WIDTH)
    person, dog = sample.queries
    assert [(q.id, q.text, q.kind) for q in (person, dog)] == [
        ("coco:1:1", "person", "name"),
        ("coco:1:2", "dog", "name"),
    ]
    assert (len(person.masks), len(person.distractors)) == (3, 1)
    assert (len(dog.masks), len(dog.distractors)) == (1, 3)
    assert person.distractors == dog.masks
    assert codec.area(person.ignore) == 200  # the crowd of persons
    assert dog.ignore is None
    assert check_sample(sample) == []


def test_absent_classes_are_the_same_every_time(small: Path):
    first = open_dataset(f"coco?root={small}&absent=2", "val2017")
    again = open_dataset(f"coco?root={small}&absent=2", "val2017")
    assert first.fingerprint == again.fingerprint
    absent = [q for q in first[0].queries if q.kind == "absent"]
    assert [(q.text, q.masks, len(q.distractors)) for q in absent] == [("cup", [], 4)]  # there is no second one


def test_splits_and_places(small: Path):
    assert open_dataset(f"coco?root={small}", "val").split == "val2017"
    with pytest.raises(VLSegError, match=r"say which split; .* has train2017, val2017"):
        open_dataset(f"coco?root={small}")
    with pytest.raises(VLSegError, match=r"no split test; .* has train2017, val2017"):
        open_dataset(f"coco?root={small}", "test")
    with pytest.raises(VLSegError, match=r"the pictures are not there; put .*train2017"):
        open_dataset(f"coco?root={small}", "train2017")
    by_path = open_dataset(str(small / "annotations" / "instances_val2017.json"))
    assert by_path[0].image == small / "val2017" / "COCO_train2014_000000000001.jpg"
    with pytest.raises(VLSegError, match="is not there; put it there"):
        open_dataset(f"coco?root={small / 'none'}")


def test_broken_files(small: Path):
    path = small / "annotations" / "instances_val2017.json"
    data = instances()
    data["annotations"][0]["category_id"] = 99
    data["annotations"][1]["image_id"] = 98
    data["annotations"][2]["segmentation"] = {"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]}
    data["annotations"][3]["segmentation"] = "text"
    data["annotations"][4]["segmentation"]["counts"] = "!!"
    data["categories"] += [{"id": 1, "name": "again"}, {"id": 8}, {"id": 9, "name": " "}]
    path.write_text(json.dumps(data))
    dataset = open_dataset(str(path))
    assert len(dataset) == 2  # nothing of the first image is left
    found = [f"{p.where}: {p.what}" for p in dataset.problems]
    assert "instances_val2017.json: annotation 11: category 99 is not in the file" in found
    assert "instances_val2017.json: annotation 12: image 98 is not in the file" in found
    assert any("annotation 13: the RLE has size [48, 65]" in line for line in found)
    assert any("annotation 14: a segmentation is an RLE" in line for line in found)
    assert any("annotation 15: RLE counts" in line for line in found)
    assert sum("category" in p.where for p in dataset.problems) == 3
    del data["categories"]
    path.write_text(json.dumps(data))
    with pytest.raises(VLSegError, match="holds no category"):
        open_dataset(str(path))


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/coco-small (168 photographs), which is not there")
class TestRealPhotographs:
    def test_every_mask_against_pycocotools(self, capsys):
        api = COCO(str(REAL / "instances.json"))
        dataset = open_dataset(f"coco?root={REAL}")
        assert isinstance(dataset, IndexedDataset)
        assert len(dataset) == 168
        assert dataset.problems == []
        compared = middling = 0
        for sample in (dataset[i] for i in range(0, 168, 4)):
            image = int(sample.id)
            for query in sample.queries:
                category = int(query.id.rsplit(":", 1)[1])
                assert query.text == api.cats[category]["name"]
                expected = [a for a in api.imgToAnns[image] if a["category_id"] == category]
                single = [a for a in expected if not a["iscrowd"]]
                assert len(query.masks) == len(single)
                assert (query.ignore is not None) == (len(single) < len(expected))
                others = [a for a in api.imgToAnns[image] if a["category_id"] != category and not a["iscrowd"]]
                assert len(query.distractors) == len(others)
                for rle, annotation in zip(query.masks, single, strict=True):
                    truth = api.annToMask(annotation).astype(bool)
                    assert np.array_equal(codec.decode(rle), truth)
                    assert truth.any()
                    assert not truth.all()
                    middling += 0.05 < truth.mean() < 0.95
                    compared += 1
        assert compared > 300
        assert middling > 50

    def test_photographs_fit_their_annotations(self):
        dataset = open_dataset(f"{REAL}")
        for i in range(0, 168, 8):
            assert check_sample(dataset[i]) == []

    def test_totals(self):
        dataset = open_dataset(f"coco?root={REAL}&absent=2")
        assert isinstance(dataset, IndexedDataset)
        counts = dataset.counts()
        assert counts["masks"] == 1408  # 1,425 instances, of which 17 are crowds
        assert counts["ignore regions"] <= 17
        assert counts["absent"] == 336
        present = [{q.text for q in dataset[i].queries if q.masks} for i in range(168)]
        missing = [{q.text for q in dataset[i].queries if q.masks == []} for i in range(168)]
        crowds = json.loads((REAL / "instances.json").read_bytes())
        names = {c["id"]: c["name"] for c in crowds["categories"]}
        shown: dict[int, set[str]] = {}
        for annotation in crowds["annotations"]:
            shown.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
        for i in range(168):
            assert not missing[i] & shown[int(dataset.records[i]["id"])]
            assert present[i] <= shown[int(dataset.records[i]["id"])]


def test_the_reference_can_fail():
    truth = coco.decode(coco.frPyObjects([[2.0, 2, 18, 2, 18, 22, 2, 22]], HEIGHT, WIDTH)).sum(axis=2) > 0
    assert not np.array_equal(truth, np.roll(truth, 1, axis=1))
