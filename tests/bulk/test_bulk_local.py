"""Bulk runs with the engine `local`: every image once, in order, whatever is broken and whenever it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cheap
import numpy as np
import pytest

from vlseg.bulk.output import Output, read_results
from vlseg.bulk.questions import Questions
from vlseg.bulk.run import run_bulk
from vlseg.types import Result, VLSegError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 45 images, two of them broken (00010, 00030)."""
    folder = tmp_path_factory.mktemp("images")
    names = cheap.draw(folder, 45, broken=20)
    assert [Path(name).stem for name in names] == ["00010", "00030"]
    return folder


def stems(out: Path) -> list[int]:
    return [int(Path(result["image"]).stem) for result in read_results(out)]


def whole(folder: Path, out: Path, count: int) -> None:
    """Every image is answered once, in order, or named as an error; each answer is that of a plain call."""
    broken = [int(Path(json.loads(line)["image"]).stem) for line in (out / "errors.jsonl").read_text().splitlines()]
    done = stems(out)
    assert done == sorted(set(done)), "out of order, or twice"
    assert sorted(done + broken) == list(range(count))
    for data in list(read_results(out))[:: max(1, count // 20)]:
        result, segmenter = Result.from_dict(data), cheap.load(0, None)
        expected = segmenter(data["image"], cheap.TEXTS)
        assert [a.status for a in result] == ["found", "absent"]
        assert 0.05 < result[0].mask.mean() < 0.95
        assert np.array_equal(result[0].mask, expected[0].mask)
    assert not list(out.rglob(".part-*"))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_one_process(images, tmp_path, format):
    summary = run_bulk(cheap.job(images), tmp_path, format=format)
    assert (summary.images, summary.before, len(summary.errors), summary.failed) == (45, 0, 2, [])
    assert "00010.png" in summary.errors[0]["error"]
    assert "2 images failed" in summary.line()
    assert "images/s" in summary.line()
    assert len(list(tmp_path.glob(f"results-*-of-00005.{format}"))) == 5
    whole(images, tmp_path, 45)
    again = run_bulk(cheap.job(images), tmp_path, format=format)
    assert (again.before, len(again.errors)) == (45, 2)


def test_jsonl_and_parquet_hold_the_same(images, tmp_path):
    run_bulk(cheap.job(images), tmp_path / "a")
    run_bulk(cheap.job(images, batch=7, shard=10), tmp_path / "b", format="parquet")
    a, b = (list(read_results(tmp_path / name)) for name in "ab")
    assert len(a) == 43
    for one, other in zip(a, b, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_lost_shard_alone_is_made_again(images, tmp_path):
    run_bulk(cheap.job(images), tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("results-*")}
    (tmp_path / "results-00002-of-00005.jsonl").unlink()
    summary = run_bulk(cheap.job(images), tmp_path)
    assert summary.before == 35
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("results-*")}
    assert [name for name in before if after[name] != before[name]] == ["results-00002-of-00005.jsonl"]
    whole(images, tmp_path, 45)


def test_another_run_is_refused(images, tmp_path):
    run_bulk(cheap.job(images), tmp_path)
    with pytest.raises(VLSegError, match="another queries; name another --out"):
        run_bulk(cheap.job(images, texts=["dog"]), tmp_path)
    with pytest.raises(VLSegError, match="another model"):
        run_bulk(cheap.job(images), tmp_path, key={"model": "x"})
    with pytest.raises(VLSegError, match="another format"):
        run_bulk(cheap.job(images), tmp_path, format="parquet")
    (tmp_path / "shards" / "run.json").unlink()
    with pytest.raises(VLSegError, match="nobody knows"):
        run_bulk(cheap.job(images), tmp_path)


def test_two_runs_at_a_time_are_refused(images, tmp_path):
    with Output(tmp_path, "jsonl", 5).alone(), pytest.raises(VLSegError, match="another run is writing"):
        run_bulk(cheap.job(images), tmp_path)
    assert run_bulk(cheap.job(images), tmp_path).images == 45


@pytest.mark.parametrize(("engine", "format"), [("spark", "jsonl"), ("local", "csv")])
def test_wrong_settings(images, tmp_path, engine, format):
    with pytest.raises(VLSegError, match="unknown; known:"):
        run_bulk(cheap.job(images), tmp_path, engine, format=format)


def test_a_query_that_fails_is_told_and_a_crash_is_tried_again(images, tmp_path):
    rows = [["bright"]] * 45
    rows[3], rows[7] = ["bright", "unreadable"], ["crash"]
    summary = run_bulk(cheap.job(images, texts=Questions(range(45), rows)), tmp_path)
    assert [f["text"] for f in summary.failed] == ["unreadable"]
    assert [(Path(e["image"]).stem, "out of memory" in e["error"]) for e in summary.errors] == [
        ("00007", True),
        ("00010", False),
        ("00030", False),
    ]
    assert len(stems(tmp_path)) == 42
    again = run_bulk(cheap.job(images, texts=Questions(range(45), rows)), tmp_path)
    assert again.before == 35  # the shard of the crash is not done; those of broken pictures are


def test_own_questions_for_some_images(images, tmp_path):
    questions = Questions([4, 8, 15], [["a"], ["b", "c"], ["d"]])
    summary = run_bulk(cheap.job(images, texts=questions, shard=2), tmp_path)
    assert summary.images == 3
    asked = [(int(Path(r["image"]).stem), [a["text"] for a in r["answers"]]) for r in read_results(tmp_path)]
    assert asked == [(4, ["a"]), (8, ["b", "c"]), (15, ["d"])]


def start(*arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(cheap.__file__).parent}"}
    return subprocess.Popen(
        [sys.executable, cheap.__file__, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True
    )


def kill_after(process: subprocess.Popen, out: Path, files: int) -> None:
    """kill -9 as soon as so many shards are there."""
    until = time.monotonic() + 120
    while len(list(out.glob("results-*"))) < files:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_twice_and_gone_on(images, tmp_path):
    for files in (1, 3):
        kill_after(start(images, tmp_path, "--pause", 0.01), tmp_path, files)
        assert not (tmp_path / "errors.jsonl").exists()
    process = start(images, tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1  # two images are broken
    assert json.loads(out)["before"] >= 20
    whole(images, tmp_path, 45)


@pytest.mark.slow
def test_several_processes_killed_and_gone_on(images, tmp_path):
    kill_after(start(images, tmp_path, "--processes", 2, "--pause", 0.05), tmp_path, 2)
    process = start(images, tmp_path, "--processes", 2)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert json.loads(out)["before"] >= 10
    whole(images, tmp_path, 45)


def test_progress_tells_throughput_and_time_left(images, tmp_path, capsys):
    run_bulk(cheap.job(images), tmp_path, progress=True)
    (tmp_path / "results-00001-of-00005.jsonl").unlink()
    first = capsys.readouterr().err
    assert "45/45" in first
    assert "image/s" in first
    run_bulk(cheap.job(images), tmp_path, progress=True)
    second = capsys.readouterr().err
    assert "35/45" in second  # begins where the earlier run has stopped
    assert "45/45" in second
