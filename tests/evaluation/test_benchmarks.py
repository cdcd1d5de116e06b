"""The scripts that score: what they measure, on little."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    """script(name): a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_scoring(script):
    scoring = script("scoring")
    found = scoring.measure(*scoring.blob_pairs(40), rounds=1)
    assert set(found["us_a_pair"]) == {"decode", "lisa", "overlaps", "scores", "cases", "contours"}
    assert found["over_decode"]["decode"] == 1
    assert found["over_decode"]["overlaps"] > 5  # the goal is 40; here four pairs are timed once
    assert 0.7 < found["mean_iou"] < 0.99
    assert 0.001 < found["median_share_of_image"] < 0.2


def test_scoring_from_a_coco_file(script, tmp_path):
    polygon = [10, 10, 50, 12, 48, 60, 12, 55]
    annotation = {"image_id": 1, "segmentation": [polygon], "bbox": [10, 10, 40, 50]}
    (tmp_path / "i.json").write_text(
        json.dumps({"images": [{"id": 1, "height": 80, "width": 90}], "annotations": [annotation]})
    )
    truths, predictions = script("scoring").coco_pairs(tmp_path / "i.json", 3)
    assert len({rle["counts"] for rle in truths}) == 1
    assert len({rle["counts"] for rle in predictions}) == 3


def test_json_and_nothing_else():
    command = [sys.executable, str(ROOT / "benchmarks" / "scoring.py"), "--pairs", "40", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == 40


def test_the_embedded_models_numbers(script, tiny_folder):
    """The tables of the model card, with another model and few scenes."""
    from vlseg.systems.native import NativeSystem

    embedded = script("embedded")
    system = NativeSystem.from_pretrained(tiny_folder, "cpu", name="tiny")
    found = embedded.measure(system, 3, 2)
    assert found["overall"]["gIoU"]["cases"] <= 24
    assert set(found["parts"]["mIoU"]) == {
        "whole model", "queries of another image", "without pixel-encoder", "without image-prefix"
    }  # fmt: skip
    assert all("overall" in scores for scores in found["parts"]["mIoU"].values())  # "all" is a kind of expression
    found |= {"model": "tiny", "presence": embedded.calibrate(system, 3)}
    assert 0 < found["presence"]["threshold"] < 1
    rows = embedded.table(found).splitlines()
    assert rows[0] == "| | cases | mIoU | cIoU | P@0.5 | boundary-IoU | wrong-instance | T-acc | N-acc |"
    assert any(row.startswith("| all, objects ≥ 24 px |") for row in rows)
    assert any(row.startswith("| without image-prefix |") for row in rows)


def test_scores_do_not_depend_on_how_scenes_are_run(tiny_folder):
    """The validation of a training run and the evaluator give the same cases."""
    from vlseg.data.registry import open_dataset
    from vlseg.evaluation.predictor import SystemPredictor
    from vlseg.evaluation.run import evaluate
    from vlseg.evaluation.scenes import score_scenes
    from vlseg.systems.native import NativeSystem
    from vlseg.worlds.sprites import SpriteWorld

    system = NativeSystem.from_pretrained(tiny_folder, "cpu")
    world = SpriteWorld(styles="train")
    one = score_scenes(system.model, system.processor, [world.scene(5, i, (64, 64), 4) for i in range(6)])
    data = open_dataset("sprites?n=6&seed=5&size=64x64&queries=4")
    other = [record.case for record in evaluate(data, SystemPredictor(system)).records]
    facts = ("text", "kind", "absent", "status", "intersection", "union", "area", "extent", "distractors", "activation")
    assert [[getattr(c, f) for f in facts] for c in one] == [[getattr(c, f) for f in facts] for c in other]
    shares = [c.predicted / 64**2 for c in one if c.found]
    assert shares
    assert 0.05 < sum(shares) / len(shares) < 0.95
