"""The scripts that measure path mode, on a tiny model and few scenes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest

from vlseg.models.modeling import VLSegModel
from vlseg.models.presets import build_preset
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.native import NativeSystem
from vlseg.training.config import PathSection
from vlseg.training.paths import learn_paths
from vlseg.training.start import build_model
from vlseg.worlds.sprites import SpriteWorld

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A checkpoint folder of a tiny model that writes paths, of random weights."""
    world, folder = SpriteWorld(), tmp_path_factory.mktemp("writing")
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, PathSection(on=True, grid=4, box_bins=16, max_tokens=12))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_where_a_path_loses(writing):
    import path_model

    system = NativeSystem.from_pretrained(writing, "cpu", dtype="float32", name="tiny")
    result = path_model.measure(system, 3, 64)
    assert tuple(result["rows"]) == path_model.ROWS
    assert result["cases"] > 5
    scores = {row: entry["mIoU"]["value"] for row, entry in result["rows"].items()}
    assert scores["the true box"] > 0.4 > scores["path mode"]
    assert path_model.table(result).count("\n| ") == 6
    for _, one, drawn in path_model.answers(system, next(path_model.batches(3, 64))):
        box = drawn["the true box"]
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        inside = (box & one).sum() / one.sum()
        assert inside > 0.9, "bins are 4 pixels wide"
        assert box.sum() <= (np.ptp(rows) + 7) * (np.ptp(columns) + 7)


def test_a_table_goes_between_its_marks(tmp_path):
    import path_model

    page = tmp_path / "page.md"
    page.write_text(f"above\n{path_model.MARKS[0]}\nold\n{path_model.MARKS[1]}\nbelow\n")
    path_model.write(page, "new")
    assert page.read_text() == f"above\n{path_model.MARKS[0]}\nnew\n{path_model.MARKS[1]}\nbelow\n"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="has no"):
        path_model.write(page, "new")


def test_both_ways_go_on_with_the_box_of_the_start(writing, tmp_path):
    """And with its codec and its limit: a run that wrote the box itself would be another model."""
    import path_reinforce

    model, processor = VLSegModel.from_pretrained(writing), VLSegProcessor.from_pretrained(writing)
    model.config.paths["box"] = "mask"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    args = argparse.Namespace(start=str(tmp_path), out=tmp_path / "out", steps=2, set=[])
    for way in path_reinforce.WAYS:
        config = path_reinforce.settings(args, way, 0)
        assert (config.paths.on, config.reinforce.on) == (way == "supervised", way == "reinforced")
        assert build_model(config).model.config.paths == model.config.paths


@pytest.mark.slow
def test_supervised_against_reinforced(writing, tmp_path):
    import path_reinforce

    small = ["stages=[{until: 9, images: 1, sizes: [[64,64]]}]", "reinforce.group=2", "data.workers=0"]
    args = argparse.Namespace(
        start=str(writing), out=tmp_path, steps=2, seeds=2, scenes=2, size=64, set=[*small, "mixed_precision=no"]
    )
    result = path_reinforce.measure(args)
    assert len(result["path, reinforced"]["mIoU"]["seeds"]) == 2
    for mode in ("mask", "path"):
        difference = result[f"{mode}, reinforced - supervised"]["mIoU"]["difference"]
        means = [np.mean(result[f"{mode}, {way}"]["mIoU"]["seeds"]) for way in path_reinforce.WAYS]
        assert difference == pytest.approx(means[1] - means[0], abs=2e-4)
    again = path_reinforce.measure(args)  # nothing is trained or asked twice
    assert {k: v for k, v in again.items() if k != "cpu minutes a run"} == {
        k: v for k, v in result.items() if k != "cpu minutes a run"
    }
    assert path_reinforce.table(result).count("\n| ") == 10
