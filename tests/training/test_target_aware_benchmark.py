"""The script that compares target-aware losses: its world, a run of a few steps, its table."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("target_aware", FOLDER / "target_aware.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "target_aware", module)
    spec.loader.exec_module(module)
    return module


def test_every_case_has_a_look_alike_of_its_own_noun(script):
    world = script.the_world()
    assert len(world.pool) == 40
    seen = set()
    for scene in itertools.islice(script.scenes(world, 1, script.KINDS), 25):
        assert {thing.glyph for thing in scene.objects} <= set(world.pool)
        for query in scene.queries:
            seen.add(query.kind)
            if query.targets:
                nouns = {scene.objects[t].glyph for t in query.targets}
                assert nouns & {scene.objects[d].glyph for d in query.distractors}
        assert sum(bool(q.targets) for q in scene.queries) >= 2
    assert seen == set(script.KINDS)


def test_runs_and_table(script, tmp_path, monkeypatch):
    """Two variants from one start: the same cases in the same order, and a table that pairs them."""
    monkeypatch.setattr(script, "VAL_SCENES", 6)
    monkeypatch.setattr(script, "IMAGES", 2)
    monkeypatch.setattr(script, "WARMUP", {"steps": 1, "images": 2})
    base = ["target_aware.py", "--work", str(tmp_path), "--docs", str(tmp_path / "table.md")]
    run = [*base, "--only", "none", "ours+rca", "talent", "--seed", "1", "--steps", "2", "--warmup", "1"]
    monkeypatch.setattr(script, "PULLS", (1, 0))
    monkeypatch.setattr(sys, "argv", run)
    script.main()
    runs = [json.loads((tmp_path / f"{name}-1.json").read_text()) for name in ("none", "talent", "ours+rca")]
    told = [[(c["id"], c["text"], c["area"]) for c in run["cases"]] for run in runs]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) > 6
    assert set(runs[1]["pulls"][0]) == {"step", "mask", "affinity", "sentence"}
    assert set(runs[2]["pulls"][0]) == {"step", "mask", "target", "stray"}
    before = (tmp_path / "none-1.json").stat().st_mtime_ns
    script.main()  # what is there is not run again
    assert (tmp_path / "none-1.json").stat().st_mtime_ns == before
    monkeypatch.setattr(sys, "argv", [*base, "--table"])
    script.main()
    page = (tmp_path / "table.md").read_text()
    assert "| ours+rca | 1 |" in page
    assert "| talent - none | 1 |" in page
    assert "| ours+rca | stray |" in page


def test_differences_are_paired_by_seed(script):
    case = {"id": "0/0", "image": "0", "text": "", "kind": "", "absent": False, "status": "found", "score": 1.0}
    case |= {"reason": None, "intersection": 5, "union": 10, "predicted": 8, "area": 7, "extent": 9.0, "boundary": None}
    case |= {"buffered": None, "dilated": None, "distractors": 1, "ignored": False}
    better = {**case, "intersection": 8, "activation": {"peak": 0.1, "stray": 0.1, "wrong": False}}
    case["activation"] = {"peak": 0.9, "stray": 0.4, "wrong": True}
    common = {"steps": 1, "warmup": 1, "stray": 0.3, "seconds": 3, "pulls": [{"step": 0, "mask": 2.0, "target": 1.0}]}
    runs = [
        {"variant": "none", "seed": 1, "cases": [case], **common},
        {"variant": "ours", "seed": 1, "cases": [better], **common},
        {"variant": "ours", "seed": 2, "cases": [case], **common},  # no run of the plain one to pair with
    ]
    told = script.report(runs, script.VARIANTS)
    found = told["differences"]["ours - none"]
    assert found["seeds"] == [1]
    assert found["mIoU"]["difference"] == pytest.approx(0.3)
    assert found["wrong-instance"]["difference"] == -1
    assert told["variants"]["ours"]["mIoU"] == pytest.approx(0.65)
    assert told["variants"]["ours"]["pulls"] == {"target": 0.5}
