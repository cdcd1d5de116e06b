"""The refiner's benchmark: its numbers are those of the metrics, and what is done is not done again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vlseg.masks import rle as codec
from vlseg.metrics.boundary import boundary_overlap
from vlseg.models.refiner import Refiner, RefinerConfig
from vlseg.models.refiner_crop import refine

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def refiner(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("refiner", None)
    import refiner

    return refiner


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = RefinerConfig(tower="test_convnext", size=64, dim=16, fine=[12, 8], blocks=1, heads=2, iterations=2)
    place = tmp_path_factory.mktemp("tiny-refiner")
    Refiner(config).save_pretrained(place)
    return place


def test_scores_are_those_of_the_metrics(refiner, folder):
    from vlseg.training.refine_examples import scene_examples

    model = Refiner.from_pretrained(folder)
    (example,) = scene_examples(3, 0, 1, ["wobbly"], (128, 128))
    truth = codec.decode(example.truth)
    (found,) = refiner.refined_scores(model, example.image, [example.coarse], [example.truth])
    assert len(found) == refiner.MOST + 1
    for n, (iou, edge, sharp) in enumerate(found):
        mask = refine(model, example.image, [example.coarse], n)[0].mask
        assert iou == pytest.approx((mask & truth).sum() / (mask | truth).sum(), abs=1e-4)
        both, either = boundary_overlap(mask, truth)
        assert edge == pytest.approx(both / either, abs=1e-4)
        assert 0 <= sharp <= 1
    same = refiner.scores(truth, truth)
    assert same == [1.0, 1.0, 1.0]


def test_summary_of_known_numbers(refiner):
    records = [
        {"what": "x", "group": str(i % 5), "steps": [[0.5, 0.4, 0.3]] * 3 + [[0.6, 0.5, 0.5]] * 3} for i in range(20)
    ]
    records[0] = {"what": "x", "group": "0", "steps": [[0.5, 0.4, 0.3]] * 3 + [[0.2, 0.2, 0.2]] * 3}
    found = refiner.summary(records, 3)
    assert (found["masks"], found["scenes"], found["worse"]) == (20, 5, 0.05)
    assert found["mean"]["IoU"] == [0.5, 0.5, 0.5, 0.58, 0.58, 0.58]
    gain = found["gain"]["IoU"]
    assert gain["value"] == pytest.approx(0.08)
    assert gain["ci95"][0] < 0.08 < gain["ci95"][1] + 1e-9


def test_the_script(refiner, folder, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlseg.training.refine_corruptions.KINDS", {"written path": 0.5, "leaked": 0.5})
    work = tmp_path / "work.jsonl"
    call = ["--refiner", str(folder), "--model", str(tiny_folder), "--corruptions", "2", "--scenes", "1"]
    call += ["--work", str(work)]
    refiner.main([*call, "--json"])
    first = json.loads(capsys.readouterr().out)
    assert list(first["rows"]) == ["written path", "leaked", "mask"]
    assert first["rows"]["leaked"]["masks"] == 2
    assert np.shape(first["rows"]["mask"]["mean"]["IoU"]) == (refiner.MOST + 1,)
    assert first["milliseconds a mask"]["1"] > 0
    monkeypatch.setattr(refiner, "refined_scores", None)  # nothing is left to do
    work.write_text(work.read_text() + '\n{"job": "cut')
    refiner.main([*call, "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == first["rows"]
    monkeypatch.undo()


@pytest.mark.slow
def test_the_figure(refiner, folder, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    model = Refiner.from_pretrained(folder)
    refiner.figure(refiner.cases(model, None, ""), tmp_path / "twelve.png")
    assert Image.open(tmp_path / "twelve.png").width > 1000
