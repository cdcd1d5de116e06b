"""Where pictures come from and what is asked of which: Parquet, saved datasets, files of queries."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import cheap
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlseg.bulk.job import Job
from vlseg.bulk.output import read_results
from vlseg.bulk.pictures import FilePictures, ParquetPictures, SavedPictures, is_table, open_picture, open_tables
from vlseg.bulk.questions import read_questions, same_for_all
from vlseg.bulk.run import run_bulk
from vlseg.types import VLSegError

MANY = 10**6


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    cheap.picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def table(path: Path, seeds: range, paths: list[str | None] | None = None) -> Path:
    names = paths or [None] * len(seeds)
    rows = [{"bytes": png(seed), "path": name} for seed, name in zip(seeds, names, strict=True)]
    pq.write_table(pa.table({"image": rows, "id": list(seeds)}), path, row_group_size=2)
    return path


def seen(pictures, index: int) -> np.ndarray:
    return np.asarray(open_picture(pictures, index, MANY))


def test_parquet_with_bytes(tmp_path):
    table(tmp_path / "train-00000-of-00002.parquet", range(5))
    table(tmp_path / "train-00001-of-00002.parquet", range(5, 8))
    table(tmp_path / "val-00000-of-00001.parquet", range(9, 10))
    assert is_table(str(tmp_path))
    pictures = pickle.loads(pickle.dumps(open_tables(str(tmp_path), "train")))
    assert len(pictures.names) == 8
    assert pictures.names[6] == "train-00001-of-00002.parquet#1"
    for seed in (7, 0, 4):
        assert np.array_equal(seen(pictures, seed), np.asarray(cheap.picture(seed)))
    with pytest.raises(VLSegError, match="no split test"):
        open_tables(str(tmp_path), "test")


def test_parquet_with_names_and_with_paths(tmp_path):
    named = ParquetPictures([table(tmp_path / "a.parquet", range(3), ["x/1.png", "x/2.png", "x/3.png"])])
    assert list(named.names) == ["x/1.png", "x/2.png", "x/3.png"]
    assert np.array_equal(seen(named, 2), np.asarray(cheap.picture(2)))
    (tmp_path / "p").mkdir()
    cheap.picture(3).save(tmp_path / "p" / "3.png")
    pq.write_table(pa.table({"image": ["p/3.png", "p/4.png"]}), tmp_path / "b.parquet")
    paths = open_tables(str(tmp_path / "b.parquet"))
    assert np.array_equal(seen(paths, 0), np.asarray(cheap.picture(3)))
    with pytest.raises(VLSegError, match=r"p/4\.png.*no such file"):
        seen(paths, 1)


def test_parquet_that_holds_no_pictures(tmp_path):
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "a.parquet")
    with pytest.raises(VLSegError, match="no column 'image'; it has picture"):
        open_tables(str(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"image": [b"abc", None]}), tmp_path / "b.parquet")
    pictures = open_tables(str(tmp_path / "b.parquet"))
    with pytest.raises(VLSegError, match=r"b\.parquet.*row 0: the picture is broken"):
        seen(pictures, 0)
    with pytest.raises(VLSegError, match="row 1: holds no picture, only None"):
        seen(pictures, 1)


def test_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [cheap.picture(seed) for seed in range(6)]
    data = datasets.Dataset.from_dict({"image": pictures, "id": list(range(6))}).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "one")
    one = pickle.loads(pickle.dumps(open_tables(str(tmp_path / "one"))))
    assert isinstance(one, SavedPictures)
    assert list(one.names) == [f"one#{row}" for row in range(6)]
    assert np.array_equal(seen(one, 4), np.asarray(pictures[4]))
    datasets.DatasetDict({"train": data.select([5, 2]), "val": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(VLSegError, match="say which split with --split; it has train, val"):
        open_tables(str(tmp_path / "two"))
    chosen = open_tables(str(tmp_path / "two"), "train")
    assert np.array_equal(seen(chosen, 1), np.asarray(pictures[2]))
    with pytest.raises(VLSegError, match="no split 'dev'"):
        open_tables(str(tmp_path / "two"), "dev")


def test_a_run_over_parquet(tmp_path):
    pictures = open_tables(str(table(tmp_path / "a.parquet", range(9))))
    job = Job(pictures, same_for_all(cheap.TEXTS, 9), lambda device: cheap.load(0, device), shard=4)
    assert run_bulk(job, tmp_path / "out").errors == []
    results = list(read_results(tmp_path / "out"))
    assert [result["image"] for result in results] == [f"a.parquet#{row}" for row in range(9)]
    assert {answer["status"] for result in results for answer in result["answers"]} == {"found", "absent"}


def test_queries_a_line(tmp_path):
    (tmp_path / "q.txt").write_text("\ufeffthe red mug\n\n  #1 on the list \r\n", encoding="utf-8")
    questions = read_questions(str(tmp_path / "q.txt"), ["a", "b"])
    assert len(questions) == 2
    assert questions.of(1) == ["the red mug", "#1 on the list"]


def test_queries_of_each_image(tmp_path):
    names = [str(tmp_path / "x" / name) for name in ("1.png", "2.png", "3.png")] + ["elsewhere/3.png"]
    lines = [
        {"image": "x/3.png", "queries": ["a", {"text": "b", "masks": []}]},
        {"image": "1.png", "queries": ["c"]},
        {"image": names[2], "queries": ["d"]},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    questions = read_questions(str(tmp_path / "q.jsonl"), names)
    assert list(questions.positions) == [0, 2]
    assert [questions.of(number) for number in range(2)] == [["c"], ["a", "b", "d"]]


def test_one_image_with_its_own_queries(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"image": "b", "queries": ["only this"]}')
    questions = read_questions(str(tmp_path / "q.jsonl"), ["a", "b"])
    assert (list(questions.positions), questions.of(0)) == ([1], ["only this"])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.txt", " \n", "holds no query"),
        ("q.txt", b"\xff\xfe", "not UTF-8"),
        ("q.jsonl", "red", "q.jsonl:1: not JSON"),
        ("q.jsonl", '["red"]', "q.jsonl:1: a line is"),
        ("q.jsonl", '{"image": "a", "queries": [" "]}', "q.jsonl:1: a query must be words"),
        ("q.jsonl", '{"image": "z.png", "queries": ["red"]}', "z.png is none of the 3 images"),
        ("q.jsonl", '{"image": "1.png", "queries": ["red"]}', "several images are called 1.png"),
        ("q.jsonl", '{"image": "a", "queries": []}', "holds no query"),
    ],
)
def test_wrong_queries(tmp_path, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(VLSegError, match=says) as error:
        read_questions(str(tmp_path / name), ["a", "x/1.png", "y/1.png"])
    assert "\n" not in str(error.value)


def test_missing_queries(tmp_path):
    with pytest.raises(VLSegError, match="no such file"):
        read_questions(str(tmp_path / "none.txt"), ["a"])


def test_files_are_named_in_errors(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    pictures = FilePictures([str(tmp_path / "large.png"), str(tmp_path / "gone.png")])
    for index, says in ((0, "--max-pixels"), (1, "no such file")):
        with pytest.raises(VLSegError, match=says) as error:
            open_picture(pictures, index, 100)
        assert pictures.names[index] in str(error.value)
