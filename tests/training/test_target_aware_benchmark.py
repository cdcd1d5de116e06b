"""The script that compares target-aware losses: its world, a run of a few steps, its table."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from vlseg.training.batches import collate_scenes
from vlseg.types import VLSegError
from vlseg.worlds.facts import Facts

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
WAYS = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
WAYS |= {"large": "largest", "small": "smallest"}


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
    kinds, missing = set(), 0
    for scene in itertools.islice(script.scenes(world, 1), 40):
        assert {thing.glyph for thing in scene.objects} <= set(world.pool)
        facts = Facts(scene)
        for query in scene.queries:
            kinds.add(query.kind)
            noun, word = query.text.removeprefix("the ").split(" that is ")
            named = {m for m, thing in enumerate(scene.objects) if thing.noun == noun}
            if query.kind == "absent":
                missing += 1
                assert not named
                assert not query.targets
                assert not query.distractors
            else:
                assert set(query.targets) | set(query.distractors) == named
                assert len(query.targets) == 1
                assert query.distractors
                assert facts.first(query.kind, sorted(named)) == query.targets[0]
                assert word == WAYS[query.kind]
        assert sum(bool(q.targets) for q in scene.queries) >= 2
    assert kinds == {*WAYS, "absent"}
    assert 10 < missing < 30
    assert all(q.targets for s in itertools.islice(script.scenes(world, 1, absent=0.0), 10) for q in s.queries)


def test_fusion_hardly_changes_the_start(script, tmp_path, monkeypatch):
    """Where it is new: every variant of a seed begins with about the same masks."""
    monkeypatch.setattr(script, "START", {"seed": 9, "mosaics": 1, "images": 2, "steps": 1})
    monkeypatch.setattr(script, "IMAGES", 2)
    batch, got = None, {}
    for fusion in ("none", "rca"):
        model, processor = script.begin(1, fusion, tmp_path)
        batch = batch or collate_scenes(list(itertools.islice(script.scenes(script.the_world(), 3), 2)), processor)
        with torch.no_grad():
            output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
        got[fusion] = output.mask_logits[batch.packed.valid]
    assert not torch.equal(got["none"], got["rca"])
    assert (got["none"] - got["rca"]).std() < 0.3 * got["none"].std()


def test_runs_and_table(script, tmp_path, monkeypatch):
    """Three variants from one start: the same cases in the same order, and a table that pairs them."""
    monkeypatch.setattr(script, "VAL_SCENES", 6)
    monkeypatch.setattr(script, "IMAGES", 2)
    monkeypatch.setattr(script, "START", {"seed": 9, "mosaics": 1, "images": 2, "steps": 1})
    monkeypatch.setattr(script, "PULLS", (1, 0))
    base = ["target_aware.py", "--work", str(tmp_path), "--docs", str(tmp_path / "table.md")]
    run = [*base, "--only", "none", "ours+rca", "talent", "--seed", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", run)
    script.main()
    runs = [json.loads((tmp_path / f"{name}-1.json").read_text()) for name in ("none", "talent", "ours+rca")]
    told = [[(c["id"], c["text"], c["area"]) for c in run["cases"]] for run in runs]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) > 6
    assert all(case["distractors"] for case in runs[0]["cases"])
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
    assert "The plain variant does not meet the bars" in page


def test_differences_are_paired_by_seed(script):
    case = {"id": "0/0", "image": "0", "text": "", "kind": "", "absent": False, "status": "found", "score": 1.0}
    case |= {"reason": None, "intersection": 5, "union": 10, "predicted": 8, "area": 7, "extent": 9.0, "boundary": None}
    case |= {"buffered": None, "dilated": None, "distractors": 1, "ignored": False}
    better = {**case, "intersection": 8, "activation": {"peak": 0.1, "stray": 0.1, "wrong": False}}
    case["activation"] = {"peak": 0.9, "stray": 0.4, "wrong": True}
    common = {
        "steps": 1,
        "images": 2,
        "size": [8, 8],
        "judged": 1,
        "rows": 0.3,
        "start": {"mosaics": 1, "steps": 1},
        "seconds": 3,
    }
    common["weights"] = {"target": 0.3, "stray": 0.1, "affinity": 0.1, "sentence": 0.01}
    common["pulls"] = [{"step": 0, "mask": 2.0, "target": 1.0}]
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
    assert found["cut"] == 1
    assert told["variants"]["ours"]["mIoU"] == pytest.approx(0.65)
    assert told["variants"]["ours"]["pulls"] == {"target": 0.5}
    assert "from 1.000 to 0.000, a cut by 100.0% (asked for: a cut by 33.3%; reached)" in script.verdict(told)
    runs[1]["steps"] = 2
    with pytest.raises(VLSegError, match="different settings"):
        script.report(runs, script.VARIANTS)
