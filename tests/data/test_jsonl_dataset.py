"""JSONL as a data set: ids, ignored pixels, sizes, and lines that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.data.jsonl import check_sample, read_samples, write_samples
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import Query, Sample, VLSegError


@pytest.fixture
def mask() -> np.ndarray:
    out = np.zeros((12, 16), bool)
    out[2:6, 3:9] = True
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 12)).save(tmp_path / "1.png")
    return tmp_path


def write(folder: Path, *lines) -> str:
    path = folder / "d.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_ids_ignored_pixels_and_sizes(folder: Path, mask: np.ndarray):
    rle = codec.encode(mask)
    queries = [Query("the mug", [rle], [], "name", codec.encode(~mask), "q1"), Query("the zebra", [])]
    sample = Sample(folder / "1.png", queries, "x", {"a": 1}, (12, 16))
    write_samples(folder / "d.jsonl", [sample])
    assert list(read_samples(folder / "d.jsonl")) == [sample]
    dataset = open_dataset(str(folder / "d.jsonl"))
    assert [q.id for q in dataset[0].queries] == ["q1", "x:2"]
    assert dataset[0].queries[0].ignore == codec.encode(~mask)
    assert dataset[0].size == (12, 16)
    assert dataset.counts()["ignore regions"] == 1
    assert check_sample(dataset[0]) == []


def test_polygons_need_no_image_where_the_size_is_said(folder: Path):
    polygon = [[3, 2, 9, 2, 9, 6, 3, 6]]
    path = write(folder, {"image": "none.png", "size": [12, 16], "queries": [{"text": "a", "masks": [polygon]}]},
                 {"image": "none.png", "queries": [{"text": "a", "masks": [polygon]}]})  # fmt: skip
    dataset = open_dataset(path)
    assert dataset.problems == []
    assert codec.area(dataset[0].queries[0].masks[0]) == 24
    with pytest.raises(VLSegError, match=r"d\.jsonl:2: query 1: masks\[0\]: .*no such file"):
        dataset[1]
    assert "no such file" in check_sample(dataset[0])[0]


def test_a_size_that_is_not_the_image_s(folder: Path):
    path = write(folder, {"image": "1.png", "size": [16, 12], "queries": []})
    assert check_sample(open_dataset(path)[0]) == ["the annotations say size [16, 12], the upright image has [12, 16]"]


def test_an_ignore_mask_of_another_size(folder: Path, mask: np.ndarray):
    path = write(folder, {"image": "1.png", "queries": [{"text": "a", "ignore": codec.encode(mask[:5])}]})
    assert "ignore 1 has size [5, 16]" in check_sample(open_dataset(path)[0])[0]


def test_broken_lines_are_problems_and_the_others_stay(folder: Path, mask: np.ndarray):
    good = {"image": "1.png", "queries": [{"text": "a", "masks": [codec.encode(mask)], "id": 7}]}
    broken = [
        "{",
        {"image": "1.png", "queries": [], "size": [0, 1]},
        {"image": "1.png", "queries": [], "size": 5},
        {"image": "1.png", "queries": [{"text": "a", "ignore": []}]},
        {"image": "1.png", "queries": [{"text": "a", "id": []}]},
        {"image": "1.png", "queries": [{"text": "a", "masks": [[[1, 2, 3]]]}]},
        {"image": "1.png", "queries": [{"text": "a", "masks": [[[1, 2, 3, 4, 5, 6, 7]]]}]},
        {"image": "1.png", "queries": [{"text": "a", "masks": [""]}]},
        {"image": "1.png", "id": "d-1", "queries": []},
        {"image": "1.png", "queries": [{"text": "a", "id": "7"}]},
    ]
    path = write(folder, good, "", *broken)
    dataset = open_dataset(path)
    assert len(dataset) == 2  # the last line lost its query only
    assert dataset[0].queries[0].id == "7"
    where = [p.where.removeprefix(f"{path}:").removeprefix(path) for p in dataset.problems]
    assert where[:8] == [str(n) for n in range(3, 11)]
    assert where[8:] == [" sample 'd-1'", " query '7'"]
    assert all("\n" not in p.what for p in dataset.problems)


def test_lines_without_an_id_have_their_number(folder: Path):
    line = json.dumps({"image": "none.png", "queries": [{"text": "a"}, {"text": "b"}]})
    dataset = open_dataset(write(folder, line, "", line))
    assert [dataset[i].id for i in range(2)] == ["d-1", "d-3"]
    assert [q.id for q in dataset[1].queries] == ["d-3:1", "d-3:2"]
