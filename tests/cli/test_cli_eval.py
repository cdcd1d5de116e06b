"""`vlseg eval` from call to files: scores, resuming after a kill, two processes, wrong calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.cli import main
from vlseg.evaluation.samples import read_samples
from vlseg.masks import rle as codec

ROOT = Path(__file__).resolve().parents[2]
FILES = {"report.json", "report.md", "samples.parquet", "gallery.html", "shards"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, queries) -> Path:
    """A JSONL file of 24 pictures; per picture three queries with targets, two without, one unlabelled.

    The tiny checkpoint finds queries 0, 2 and 4 and rejects 1 and 3.
    """
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for n in range(24):
        colours = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(colours).resize((64, 48), Image.Resampling.NEAREST).save(folder / f"{n}.png")
        masks = [codec.encode(np.kron(rng.random((6, 8)) < 0.5, np.ones((8, 8), bool))) for _ in range(3)]
        asked = [
            {"text": queries[0], "masks": [masks[0]], "distractors": [masks[2]], "kind": "colour"},
            {"text": queries[2], "masks": masks[:2], "kind": "place"},
            {"text": queries[1], "masks": [masks[1]], "kind": "colour"},
            {"text": queries[3], "masks": [], "kind": "absent"},
            {"text": queries[4], "masks": [], "kind": "absent"},
            {"text": "a mug"},
        ]
        lines.append(json.dumps({"image": f"{n}.png", "queries": asked}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "data.jsonl"


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    code = main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def refused(result, says: str) -> None:
    assert result[0] == 2, result
    assert result[1] == ""
    assert len(result[2]) == 1, result[2]
    assert says in result[2][0]


def timeless(folder: Path) -> str:
    """The report byte for byte, apart from its times, which stand last."""
    text = (folder / "report.json").read_text()
    head, mark, _ = text.partition(' "times": {')
    assert mark
    assert '"metrics"' in head
    return head


@pytest.fixture(scope="module")
def report(tmp_path_factory, data, tiny_folder) -> Path:
    """The report of one process, all at once."""
    folder = tmp_path_factory.mktemp("report")
    assert main(["eval", "--model", str(tiny_folder), "--data", str(data), "--batch", "3", "--out", str(folder)]) == 0
    return folder


def test_what_is_written(report, data):
    assert {path.name for path in report.iterdir()} == FILES
    found = json.loads((report / "report.json").read_text())
    assert found["cases"] == 120
    assert found["counts"]["unlabelled queries skipped"] == 24
    assert (found["counts"]["answered found"], found["counts"]["answered absent"]) == (72, 48)
    assert found["metrics"]["N-acc"]["value"] == 0.5
    assert found["protocol"]["mode"] == "free-running"
    assert found["protocol"]["compute"] == "cpu, default dtype, 1 thread a process"
    assert {"kind: absent", "kind: colour", "kind: place", "presence: absent"} <= set(found["slices"])
    for name in ("mIoU", "cIoU", "P@0.9", "gIoU", "N-acc", "T-acc", "boundary-IoU", "buffered-IoU", "ECE", "AURC"):
        assert name in found["metrics"]
    shares = [codec.area(r.prediction) / (48 * 64) for r in read_samples(report) if r.case.found]
    assert len(shares) > 10
    assert 0.05 < min(shares) < max(shares) < 0.95


def test_the_answers_are_those_of_the_segmenter(report, data, segmenter, queries):
    records = read_samples(report)
    for n in (0, 7):
        result = segmenter(str(data.parent / f"{n}.png"), [queries[k] for k in (0, 2, 1, 3, 4)])
        for record, answer in zip(records[5 * n : 5 * n + 5], result, strict=True):
            assert record.case.status == answer.status
            assert record.case.score == pytest.approx(answer.score, abs=1e-5)
            differing = (codec.decode(record.prediction) != answer.mask).mean()
            assert differing < 0.01  # the batch is another one, and so are the last bits


def test_two_processes_give_the_same_report(report, data, tiny_folder, tmp_path, capsys):
    arguments = ("--model", tiny_folder, "--data", data, "--batch", 3, "--processes", 2, "--out", tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert timeless(tmp_path) == timeless(report)
    assert json.loads((tmp_path / "report.json").read_text())["times"]["processes"] == 2
    for name in ("samples.parquet", "gallery.html"):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_killed_it_goes_on_and_gives_the_same_report(report, data, tiny_folder, tmp_path, capsys):
    arguments = ["--model", str(tiny_folder), "--data", str(data), "--batch", "3", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "vlseg.cli", "eval", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not (tmp_path / "shards" / "000001.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sorted(path.name for path in (tmp_path / "shards").glob("0*.json"))
    assert 2 <= len(done) < 8
    stamps = {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in done}
    assert run(capsys, *arguments)[0] == 0
    assert timeless(tmp_path) == timeless(report)
    assert {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in done} == stamps


def test_json_and_baselines(data, tmp_path, capsys):
    arguments = ("--model", "baseline:oracle-box", "--data", data, "--baselines", "--limit", 6, "--json")
    code, out, err = run(capsys, *arguments, "--out", tmp_path)
    assert (code, err) == (0, [])
    found = json.loads(out)
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert found["cases"] == 30
    assert set(found["baselines"]) == {
        f"baseline:{name}" for name in ("whole-image", "centre-box", "mean-mask", "random-instance")
    }
    assert found["metrics"]["N-acc"]["value"] == 1
    assert found["protocol"]["mode"] == "baseline"


def test_predictions(data, tmp_path, capsys, queries):
    entry = json.loads(data.read_text().splitlines()[0])
    answers = [
        {"text": queries[0], "status": "found", "score": 0.9, "segments": [{"rle": entry["queries"][0]["masks"][0]}]},
        {"text": queries[4], "status": "absent", "score": 0.1, "segments": []},
        {"text": "nobody asked", "status": "absent", "score": 0.1, "segments": []},
    ]
    (tmp_path / "p.jsonl").write_text(json.dumps({"image": "0.png", "answers": answers}))
    arguments = ("--predictions", tmp_path / "p.jsonl", "--data", data, "--limit", 2, "--out", tmp_path / "out")
    code, out, err = run(capsys, *arguments)
    assert code == 1  # eight queries have no prediction
    assert "8 failed" in out
    assert "vlseg: 1 predictions belong to no query of the data and were not scored" in err
    assert any("'nobody asked' is no query" in line for line in err)
    assert sum("p.jsonl has no prediction for it" in line for line in err) == 8
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["metrics"]["N-acc"]["value"] == 0.25
    assert found["metrics"]["mIoU"]["value"] == pytest.approx(1 / 6, abs=1e-6)


def test_what_is_not_by_the_protocol_is_said(data, tiny_folder, tmp_path, capsys):
    arguments = ("--model", tiny_folder, "--data", data, "--limit", 3, "--mask-threshold", 0.35, "--out", tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 0
    assert err == ["vlseg: not by the protocol: mask threshold 0.35 instead of 0.5 (logit > 0): "
                   "not comparable with scores by the protocol"]  # fmt: skip
    assert "Not by the protocol" in (tmp_path / "report.md").read_text()
    assert "Not by the protocol" in (tmp_path / "gallery.html").read_text()
    assert len(json.loads((tmp_path / "report.json").read_text())["protocol"]["deviations"]) == 1


def test_a_broken_image_fails_its_cases_and_no_others(data, tmp_path, capsys, tiny_folder):
    for n in (0, 1, 2):
        (tmp_path / f"{n}.png").write_bytes((data.parent / f"{n}.png").read_bytes() if n != 1 else b"broken")
    (tmp_path / "some.jsonl").write_text("\n".join(data.read_text().splitlines()[:3]))
    code, _, err = run(capsys, "--model", tiny_folder, "--data", tmp_path / "some.jsonl", "--out", tmp_path / "out")
    assert code == 1
    assert len(err) == 5
    assert all("1.png: not an image" in line for line in err)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (found["cases"], found["counts"]["failed by an error"]) == (15, 5)


def test_compare(report, data, tiny_folder, tmp_path, capsys):
    other = tmp_path / "other"
    arguments = ("--model", tiny_folder, "--data", data, "--presence-threshold", 0.99, "--out", other)
    assert run(capsys, *arguments)[0] == 0
    code, out, err = run(capsys, "--compare", report, other, "--out", tmp_path / "both")
    assert (code, err) == (0, [])
    assert "changed hands:" in out
    found = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert found["metrics"]["N-acc"]["difference"] > 0
    assert found["metrics"]["T-acc"]["difference"] < 0
    assert found["won"] + found["lost"] == len(found["changed"]) > 0
    code, out, _ = run(capsys, "--compare", report, other, "--json", "--out", tmp_path / "both")
    assert json.loads(out) == found
    few = tmp_path / "few"
    assert run(capsys, "--model", "baseline:whole-image", "--data", data, "--limit", 3, "--out", few)[0] == 0
    refused(run(capsys, "--compare", report, few, "--out", tmp_path / "x"), "not the same cases")


def test_another_run_in_the_folder_is_refused(report, data, tiny_folder, capsys):
    arguments = ("--model", tiny_folder, "--data", data, "--batch", 3, "--out", report)
    refused(run(capsys, *arguments, "--limit", 5), "evaluation of another limit")
    refused(run(capsys, *arguments, "--seed", 1), "evaluation of another seed")


def test_wrong_calls(data, tiny_folder, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    refused(run(capsys, "--data", data), "--out")
    refused(run(capsys, *out), "--data is missing")
    refused(run(capsys, "--data", data, *out, "--limit", 0), "--limit 0: must be at least 1")
    refused(run(capsys, "--data", data, *out, "--mask-threshold", 1), "--mask-threshold 1: must lie between 0 and 1")
    refused(run(capsys, "--data", data, *out, "--presence-threshold", 7), "must lie in 0..1")
    refused(run(capsys, "--data", data, *out, "--modell", "x"), "did you mean --model?")
    refused(run(capsys, "--data", tmp_path / "no.jsonl", *out), "no.jsonl")
    refused(run(capsys, "--data", data, "--model", "nonsense", *out), "unknown model")
    refused(run(capsys, "--data", data, "--model", "baseline:x", *out), "no such baseline")
    refused(run(capsys, "--data", data, "--predictions", tmp_path / "p.json", *out), "cannot be read")
    refused(run(capsys, "--data", data, "--model", "x", "--predictions", "p", *out), "--model and --predictions")
    refused(run(capsys, "--data", data, "--compare", "a", "b", *out), "takes two reports and no --data")
    refused(run(capsys, "--compare", tmp_path, tmp_path, *out), "report.json: not there")
    refused(run(capsys, "--data", data, "--model", "baseline:oracle-box", "--teacher-forced", *out), "only for a model")
    refused(run(capsys, "--data", data, "--model", tiny_folder, "--teacher-forced", *out), "generates no tokens")
    (tmp_path / "empty.jsonl").write_text(json.dumps({"image": "a.png", "queries": [{"text": "x"}]}))
    refused(run(capsys, "--data", tmp_path / "empty.jsonl", "--model", "baseline:centre-box", *out), "none has labels")


def test_help(capsys):
    assert main(["eval", "--help"]) == 0
    assert "--compare A B" in capsys.readouterr().out
