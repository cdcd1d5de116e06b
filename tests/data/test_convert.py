"""To JSONL and Parquet and back: the same queries, masks and pictures; `datasets` reads the Parquet, streaming too."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from originals import instances, ref, refs, write_refcoco
from PIL import Image

from vlseg.data import convert
from vlseg.data.convert import to_jsonl, to_parquet
from vlseg.data.dataset import Dataset
from vlseg.data.images import open_image
from vlseg.data.leaks import HeldOut, WithoutLeaks
from vlseg.data.parquet import ParquetDataset
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError


def pixels(dataset: Dataset, index: int) -> np.ndarray:
    return np.asarray(open_image(dataset[index].image)[0])


def assert_equal(a: Dataset, b: Dataset) -> None:
    assert len(a) == len(b) > 0
    assert a.fingerprint == b.fingerprint
    masks = 0
    for i in range(len(a)):
        one, other = a[i], b[i]
        assert (one.id, one.meta) == (other.id, other.meta)
        assert one.queries == other.queries  # kinds and ignored pixels too
        assert np.array_equal(pixels(a, i), pixels(b, i))
        masks += sum(0.05 < codec.decode(m).mean() < 0.95 for q in one.queries for m in q.masks or [])
    assert masks


@pytest.fixture
def grefcoco(tmp_path: Path) -> Dataset:
    content = [ref(1, 1, [11, 12], "val", "both"), ref(2, 2, [-1], "val", "no zebra"), ref(3, 3, [33], "val", "right")]
    return open_dataset("grefcoco", "val", write_refcoco(tmp_path / "data", "grefcoco", "grefs(unc).json", content))


@pytest.fixture
def coco(tmp_path: Path) -> Dataset:
    """With kinds, ignored pixels and absent queries."""
    root = write_refcoco(tmp_path / "data")
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances()))
    return open_dataset(f"{root / 'refcoco' / 'instances.json'}?absent=1&images={root / 'train2014'}")


@pytest.mark.parametrize("source", ["grefcoco", "coco", "sprites"])
@pytest.mark.parametrize("copy", [False, True])
def test_jsonl(source: str, copy: bool, tmp_path: Path, request):
    dataset = open_dataset("sprites?n=3&seed=2") if source == "sprites" else request.getfixturevalue(source)
    path, failed = to_jsonl(dataset, tmp_path / "out", copy)
    assert path.name == ("val.jsonl" if source == "grefcoco" else "data.jsonl")
    assert failed == []
    assert_equal(dataset, open_dataset(str(path)))
    images = tmp_path / "out" / "images"
    assert images.is_dir() == (copy or source == "sprites")
    first = json.loads(path.read_text().splitlines()[0])["image"]
    assert first.startswith("images/" if images.is_dir() else "../data/train2014/")
    if copy and source != "sprites":
        assert (path.parent / first).read_bytes() == Path(dataset[0].image).read_bytes()
    assert not list((tmp_path / "out").rglob(".part*"))


@pytest.mark.parametrize("source", ["grefcoco", "coco", "sprites"])
def test_parquet(source: str, tmp_path: Path, request, monkeypatch):
    monkeypatch.setattr(convert, "SHARD", 2)
    dataset = open_dataset("sprites?n=3&seed=2") if source == "sprites" else request.getfixturevalue(source)
    out, failed = to_parquet(dataset, tmp_path / "out")
    split = dataset.split or "train"
    names = sorted(path.name for path in (out / "data").iterdir())
    assert names == [f"{split}-0000{k}-of-00002.parquet" for k in range(2)]
    assert failed == []
    again = open_dataset(str(out))
    assert isinstance(again, ParquetDataset)
    assert (again.split, again.problems) == (split, [])
    assert_equal(dataset, again)
    assert again[0].size == again.labels(0).size == dataset[0].size
    with pytest.raises(VLSegError, match=f"is there already; delete the split {split}"):
        to_parquet(dataset, tmp_path / "out")
    # and out of Parquet again, pictures as they were stored
    path, _ = to_jsonl(again, tmp_path / "back")
    assert_equal(dataset, open_dataset(str(path)))
    if source != "sprites":
        stored = next((tmp_path / "back" / "images").glob("1.*"))
        assert stored.read_bytes() == Path(dataset[0].image).read_bytes()


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_parquet(coco: Dataset, tmp_path: Path, streaming: bool, monkeypatch):
    import datasets

    monkeypatch.setattr(convert, "SHARD", 2)
    out, _ = to_parquet(coco, tmp_path / "out")
    was = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(str(out), streaming=streaming, cache_dir=str(tmp_path / "hub"))
    finally:
        if was:
            datasets.enable_progress_bars()
    assert list(loaded) == ["train"]
    rows = list(loaded["train"])
    assert len(rows) == len(coco)
    for row, sample in zip(rows, (coco[i] for i in range(len(coco))), strict=True):
        assert isinstance(row["image"], Image.Image)
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(sample.image)))
        assert (row["id"], tuple(row["size"]), json.loads(row["meta"])) == (sample.id, sample.size, sample.meta)
        for query, expected in zip(row["queries"], sample.queries, strict=True):
            assert (query["text"], query["id"], query["kind"]) == (expected.text, expected.id, expected.kind)
            assert query["masks"] == expected.masks
            assert query["distractors"] == expected.distractors
            assert query["ignore"] == expected.ignore


def test_unlabelled_is_not_absent(tmp_path: Path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    lines = {"image": "a.png", "queries": [{"text": "a"}, {"text": "b", "masks": []}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(lines))
    out, _ = to_parquet(open_dataset(str(tmp_path / "d.jsonl")), tmp_path / "out")
    assert [q.masks for q in open_dataset(str(out))[0].queries] == [None, []]


def test_samples_that_fail_are_named_and_left_out(tmp_path: Path, coco: Dataset):
    broken = Path(coco[1].image)
    broken.unlink()
    out, failed = to_parquet(coco, tmp_path / "out")
    assert [p.where for p in failed] == ["sample 1"]
    assert str(broken) in failed[0].what
    assert [s.id for s in (open_dataset(str(out))[i] for i in range(2))] == ["1", "3"]
    path, failed = to_jsonl(coco, tmp_path / "copied", copy_pictures=True)
    assert len(failed) == 1
    assert len(open_dataset(str(path))) == 2


def test_a_filtered_data_set(tmp_path: Path, coco: Dataset):
    """Positions of the filter are not positions of the source."""
    held = HeldOut({"refcoco val": {1}}, [])
    out, _ = to_parquet(WithoutLeaks(coco, held), tmp_path / "out")
    again = open_dataset(str(out))
    assert [again[i].id for i in range(len(again))] == ["2", "3"]
    filtered = WithoutLeaks(again, HeldOut({"refcoco val": {2}}, []))
    path, _ = to_jsonl(filtered, tmp_path / "back")
    (sample,) = (open_dataset(str(path))[i] for i in range(1))
    assert sample.id == "3"
    assert np.array_equal(np.asarray(Image.open(sample.image)), np.asarray(Image.open(coco[2].image)))


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, coco: Dataset, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(VLSegError, match="cannot be written to"):
        to_jsonl(coco, tmp_path / "file")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_quietly", full)
    with pytest.raises(VLSegError, match="No space left on device"):
        to_parquet(coco, tmp_path / "out")
    assert list((tmp_path / "out" / "data").iterdir()) == []


def test_names_that_collide_or_are_no_file_names(tmp_path: Path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    ids = ["a/b", "a:b", "..", "A_b", "x" * 300]
    lines = [{"image": "a.png", "id": id, "queries": [{"text": "a"}]} for id in ids]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path, failed = to_jsonl(open_dataset(str(tmp_path / "d.jsonl")), tmp_path / "out", copy_pictures=True)
    assert failed == []
    again = open_dataset(str(path))
    assert [again[i].id for i in range(5)] == ids
    names = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert len(names) == len({name.lower() for name in names}) == 5


def test_refs_of_refcoco_keep_their_ids(refcoco: Path, tmp_path: Path):
    dataset = open_dataset("refcoco", "val", refcoco)
    path, _ = to_jsonl(dataset, tmp_path / "out")
    assert open_dataset(str(path))[0].queries[0].id == f"refcoco:{refs()[0]['ref_id']}:100"
