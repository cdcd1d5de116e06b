from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.data.jsonl import check_sample, read_samples, scan, write_samples
from vlseg.masks import rle as codec
from vlseg.types import Query, Sample, VLSegError


@pytest.fixture
def mask() -> np.ndarray:
    out = np.zeros((12, 16), bool)
    out[2:6, 3:9] = True
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 12)).save(tmp_path / "images" / "1.png")
    return tmp_path


def one_line(folder: Path, queries, **extra) -> Path:
    path = folder / "d.jsonl"
    path.write_text(json.dumps({"image": "images/1.png", "queries": queries, **extra}) + "\n\n")
    return path


def test_round_trip(folder: Path, mask: np.ndarray):
    rle = codec.encode(mask)
    queries = [Query("the mug", [rle], [rle], "name"), Query("the zebra", []), Query("the dog")]
    sample = Sample(folder / "images" / "1.png", queries, "x", {"split": "val"})
    assert write_samples(folder / "d.jsonl", [sample]) == 1
    assert json.loads((folder / "d.jsonl").read_text())["image"] == "images/1.png"
    assert list(read_samples(folder / "d.jsonl")) == [sample]
    assert check_sample(sample) == []


def test_every_kind_of_mask(folder: Path, mask: np.ndarray):
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "m.png")
    Image.fromarray(np.dstack([mask.astype(np.uint8) * 9] * 3)).save(folder / "rgb.png")
    Image.fromarray(np.dstack([mask.astype(np.uint8) * 9] * 3 + [np.full_like(mask, 255, np.uint8)])).save(
        folder / "rgba.png"
    )
    runs = codec.runs(codec.encode(mask)).tolist()
    polygon = [[3, 2, 9, 2, 9, 6, 3, 6]]
    masks = [codec.encode(mask), {"size": [12, 16], "counts": runs}, polygon, "m.png", "rgb.png", "rgba.png"]
    (sample,) = read_samples(one_line(folder, [{"text": "a", "masks": masks}]))
    for rle in sample.queries[0].masks:
        assert rle == codec.encode(mask)


def test_unlabelled_is_not_absent(folder: Path):
    (sample,) = read_samples(one_line(folder, [{"text": "a"}, {"text": "b", "masks": []}]))
    assert sample.queries[0].masks is None
    assert sample.queries[1].masks == []


@pytest.mark.parametrize(
    ("queries", "says"),
    [
        ([{"text": "a", "mask": []}], "did you mean 'masks'"),
        ([{"masks": []}], "'text' is missing"),
        ([{"text": " "}], "must be words"),
        ([{"text": "a", "masks": {}}], "must be a list"),
        ([{"text": "a", "masks": [{"size": [12, 16], "counts": [5]}]}], "masks[0]"),
        ([{"text": "a", "masks": [7]}], "a mask is"),
        ([{"text": "a", "masks": ["none.png"]}], "none.png"),
        ("a", "must be a list"),
        (["a"], "must be an object"),
    ],
)
def test_broken_lines_say_what(folder: Path, queries, says: str):
    path = one_line(folder, queries)
    with pytest.raises(VLSegError) as caught:
        list(read_samples(path))
    assert says in str(caught.value)
    assert f"{path}:1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scan_goes_on_after_a_broken_line(folder: Path):
    path = one_line(folder, [])
    path.write_bytes(b"{\n\xff\xfe\n" + path.read_bytes())
    assert [(n, isinstance(s, VLSegError)) for n, s in scan(path)] == [(1, True), (2, True), (3, False)]
    with pytest.raises(VLSegError, match="cannot be read"):
        list(scan(folder / "missing.jsonl"))


def test_check_finds_wrong_sizes_and_empty_masks(folder: Path, mask: np.ndarray):
    rles = [codec.encode(mask[:5]), codec.empty((12, 16))]
    (sample,) = read_samples(one_line(folder, [{"text": "a", "masks": rles}]))
    problems = check_sample(sample)
    assert len(problems) == 2
    assert "size [5, 16]" in problems[0]
    assert "no pixel" in problems[1]
    sample.image = folder / "gone.png"
    assert "no such file" in check_sample(sample)[0]


def test_a_failed_write_leaves_the_old_file(folder: Path):
    path = folder / "d.jsonl"
    path.write_text("old")
    with pytest.raises(VLSegError, match="in memory"):
        write_samples(path, [Sample(Image.new("RGB", (2, 2)), [])])
    assert path.read_text() == "old"
    with pytest.raises(VLSegError, match="cannot be written"):
        write_samples(path / "below", [])
    assert sorted(p.name for p in folder.iterdir()) == ["d.jsonl", "images"]
