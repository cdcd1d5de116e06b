"""The cached index: used while the content is the same, built anew otherwise, and never in the way."""

from __future__ import annotations

import errno
import json
import mmap
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from originals import python2_pickle, refs

from vlseg.data import index as module
from vlseg.data import refer
from vlseg.data.index import Builder, IndexedDataset, cache_folder, content_hash, fingerprint
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Caches however small the files are; the list grows with every index that is built instead of loaded."""
    monkeypatch.setattr(module, "WORTH_CACHING", 0)
    seen: list[str] = []
    build = refer.build

    def counted(name, split, *rest):
        seen.append(split)
        return build(name, split, *rest)

    monkeypatch.setattr(refer, "build", counted)
    return seen


def cached() -> list[Path]:
    folder = cache_folder()
    assert folder is not None
    return sorted(folder.glob("*")) if folder.is_dir() else []


def same(a: IndexedDataset, b: IndexedDataset) -> bool:
    return (
        a.fingerprint == b.fingerprint
        and [a[i] for i in range(len(a))] == [b[i] for i in range(len(b))]
        and (a.problems, a.notes) == (b.problems, b.notes)
    )


def test_the_second_opening_builds_nothing(refcoco: Path, builds: list[str]):
    (refcoco / "refcoco" / "refs(unc).p").write_bytes(python2_pickle([*refs(), {"ref_id": 9}]))
    first = open_dataset("refcoco", "val", refcoco)
    second = open_dataset("refcoco", "val", refcoco)
    assert builds == ["val"]
    assert len(first.problems) == 1
    assert same(first, second)
    open_dataset("refcoco", "train", refcoco)
    open_dataset("refcoco?text=raw", "val", refcoco)
    assert builds == ["val", "train", "val"]
    assert len(cached()) == 3


def test_every_kind_of_source_has_a_file_in_the_cache_folder(refcoco: Path, builds: list[str], tmp_path: Path):
    line = json.dumps({"image": "a.png", "queries": [{"text": "a", "masks": []}]})
    (tmp_path / "own.jsonl").write_text(line)
    for spec in (str(tmp_path / "own.jsonl"), str(refcoco / "refcoco" / "instances.json"), f"refcoco?root={refcoco}"):
        before = len(cached())
        first = open_dataset(spec, pictures=False)
        again = open_dataset(spec, pictures=False)
        assert len(cached()) == before + 1
        assert same(first, again)
    assert all(path.suffix == ".index" for path in cached())


def test_small_files_are_not_cached(refcoco: Path):
    open_dataset("refcoco", "val", refcoco)
    assert cached() == []


def test_other_content_is_built_anew(refcoco: Path, builds: list[str]):
    path = refcoco / "refcoco" / "instances.json"
    open_dataset("refcoco", "val", refcoco)
    stat, data = path.stat(), path.read_bytes()
    changed = data.replace(b"30.5", b"30.0")
    assert len(changed) == len(data)
    assert changed != data
    path.write_bytes(changed)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time: only the content tells
    open_dataset("refcoco", "val", refcoco)
    assert builds == ["val", "val"]
    assert len(cached()) == 1  # the old index is replaced, not kept beside the new one
    path.touch()
    open_dataset("refcoco", "val", refcoco)
    assert builds == ["val", "val"]


def test_damaged_indexes_are_built_anew(refcoco: Path, builds: list[str]):
    first = open_dataset("refcoco", "val", refcoco)
    (file,) = cached()
    whole = file.read_bytes()
    damages = [
        b"",
        b"x",
        whole[:20],
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"x",
        whole.replace(b"person", b"parson"),
    ]
    damages += [module.MAGIC + b"{}\n", module.MAGIC + b"[1]\n", module.MAGIC + b"no JSON\n", module.MAGIC]
    for count, damage in enumerate(damages, 2):
        file.write_bytes(damage)
        assert same(first, open_dataset("refcoco", "val", refcoco))
        assert len(builds) == count
        assert file.read_bytes() == whole
    file.unlink()
    file.mkdir()
    assert same(first, open_dataset("refcoco", "val", refcoco))


def test_a_cache_that_cannot_be_written(refcoco: Path, builds: list[str], monkeypatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLSEG_CACHE", str(tmp_path / "file" / "below"))
    assert len(open_dataset("refcoco", "val", refcoco)) == 1

    def full(*args):
        raise VLSegError("no space left on device")

    monkeypatch.setenv("VLSEG_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(module, "whole_file", full)
    assert len(open_dataset("refcoco", "val", refcoco)) == 1
    assert builds == ["val", "val"]


@pytest.mark.parametrize("off", ["off", "", "0"])
def test_the_cache_can_be_switched_off(refcoco: Path, builds: list[str], monkeypatch, off: str):
    monkeypatch.setenv("VLSEG_CACHE", off)
    open_dataset("refcoco", "val", refcoco)
    open_dataset("refcoco", "val", refcoco)
    assert builds == ["val", "val"]


def test_where_the_cache_lies(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("VLSEG_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "vlseg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vlseg"


def test_data_sets_can_be_pickled(refcoco: Path, builds: list[str]):
    first = open_dataset("refcoco", "val", refcoco)
    again = pickle.loads(pickle.dumps(open_dataset("refcoco", "val", refcoco)))
    assert builds == ["val"]
    assert same(first, again)


def test_the_hash_is_of_the_content(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    data = np.random.default_rng(0).bytes(3_000_001)
    a.write_bytes(data)
    b.write_bytes(data)
    assert content_hash(a) == content_hash(b)
    b.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert content_hash(a) != content_hash(b)
    with pytest.raises(VLSegError, match="cannot be read"):
        content_hash(tmp_path / "c")


@settings(max_examples=40)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=9), max_size=3), max_size=6))
def test_records_come_back_as_they_were(values):
    builder = Builder()
    for value in values:
        builder.add(value, "x")
    records = builder.index().records
    kept = [v for v in values if _is_json(v)]
    assert list(records) == kept
    assert len(builder.problems) == len(values) - len(kept)
    assert records[-2:] == kept[-2:]


def _is_json(value) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def test_a_record_that_is_no_json_is_a_problem():
    builder = Builder()
    builder.add({"id": "\ud800"}, "there")
    builder.add({"id": object()}, "here")
    assert [p.where for p in builder.problems] == ["there", "here"]
    assert len(builder.index().records) == 0


def test_fingerprints_tell_data_apart(refcoco: Path):
    dataset = open_dataset("refcoco", "val", refcoco)
    samples = [dataset[0]]
    one = fingerprint(samples)
    assert one == dataset.fingerprint
    assert len(one) == 64
    for change in ("text", "id"):
        sample = dataset[0]
        setattr(sample.queries[0], change, "other")
        assert fingerprint([sample]) != one
    sample = dataset[0]
    sample.queries[0].masks = []
    assert fingerprint([sample]) != one
    assert fingerprint([]) != one


def large_jsonl(path: Path, samples: int) -> int:
    """A file of 1,000 bytes a sample and more, whose pictures need not be there; its bytes."""
    rle = {"size": [50, 40], "counts": codec.encode(np.eye(50, 40, dtype=bool))["counts"]}
    with open(path, "w") as file:
        for i in range(samples):
            queries = [{"text": f"thing {k} " + "x" * 100, "masks": [rle]} for k in range(5)] + [{"text": "unlabelled"}]
            file.write(json.dumps({"image": f"{i}.png", "size": [50, 40], "queries": queries}) + "\n")
    return path.stat().st_size


@pytest.mark.parametrize("cached", [False, True])
def test_an_index_larger_than_its_share_of_memory_is_mapped(tmp_path: Path, monkeypatch, cached: bool):
    size = large_jsonl(tmp_path / "a.jsonl", 6000)
    monkeypatch.setenv("VLSEG_CACHE", str(tmp_path / "cache") if cached else "off")
    whole = open_dataset(str(tmp_path / "a.jsonl"))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    monkeypatch.setattr(module, "IN_MEMORY", 100_000)
    rounds = 2 if cached else 1  # built, then from the cache
    for number in range(rounds):
        tracemalloc.start()
        mapped = open_dataset(str(tmp_path / "a.jsonl"))
        assert [mapped.load(i) for i in range(len(mapped))] == [((50, 40), 5)] * 6000
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(mapped.records.blob, mmap.mmap)
        assert held < (0.2 if number else 0.8) * size  # the ids of 30,000 queries while it is built
    assert cached == any((tmp_path / "cache").glob("*.index"))
    for i in (0, 3017, 5999):
        assert mapped[i] == whole[i]
    sent = pickle.dumps(mapped)
    assert (len(sent) < 2000) == cached  # another process maps the file itself
    again = pickle.loads(sent)
    assert again[3017] == whole[3017]
    if cached:
        next((tmp_path / "cache").glob("*.index")).write_bytes(b"another")
        with pytest.raises(VLSegError, match="has changed while it was in use"):
            pickle.loads(sent)


def test_a_full_disk_of_temporary_files_is_told(tmp_path: Path, monkeypatch):
    large_jsonl(tmp_path / "a.jsonl", 10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.write", full)
    with pytest.raises(VLSegError, match=r"cannot be kept \(No space left on device\); set TMPDIR"):
        open_dataset(str(tmp_path / "a.jsonl"))
