"""What a run tells: its log by data set, its pictures, and before it is started what it will take."""

import json
import sys

import many_runs
import numpy as np
import pytest
from blocks import write_blocks
from many_runs import recipe
from PIL import Image

from vlseg.cli.train import run as train_verb
from vlseg.config import dump_yaml
from vlseg.training import journal
from vlseg.training.dry_run import Memory, dry_run
from vlseg.training.loop import train


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    many_runs.fresh_state()


def test_a_run_on_two_data_sets(tiny_folder, blocks_jsonl, tmp_path, capsys):
    other = write_blocks(tmp_path / "other", seed=1, broken=(0, 1, 2, 3))
    mix = f"data.mix=[{{data: {blocks_jsonl}, weight: 2}}, {{data: {other}}}]"
    changes = [
        "data.train=null",
        mix,
        "steps=6",
        "log_every=3",
        "eval_every=3",
        "grid_every=3",
        "trackers=[tensorboard]",
    ]
    train(recipe("full", tmp_path / "run", tiny_folder, blocks_jsonl, *changes))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, val, last, _ = lines
    assert [line["step"] for line in lines] == [3, 3, 6, 6]
    for line in (first, last):
        assert set(line["loss_of"]) == {str(blocks_jsonl), str(other)}
        weighted = 2 * line["loss_of"][str(blocks_jsonl)] + line["loss_of"][str(other)]
        assert line["loss"] == pytest.approx(weighted / 3, rel=1e-3)
        assert 0 < line["padding"] < 0.6
    assert first["seconds_left"] >= last["seconds_left"] == 0
    assert 0 <= val["val"]["mIoU"] <= 1
    assert last["left_out"] > 0
    told = capsys.readouterr().err
    assert "left out: sample p" in told
    for step in (3, 6):
        sheet = Image.open(tmp_path / "run" / "grids" / f"step-{step}.png")
        assert sheet.width > 500
        assert np.asarray(sheet).std() > 20
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_time_left_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    from vlseg.training.config import TrainConfig

    log = journal.Journal(tmp_path, True)
    log.open(2, TrainConfig(steps=10, trackers=[]))
    log.bar.mininterval = 0
    for _ in range(3):
        log.advance("loss 1.0")
    log.close()
    told = capsys.readouterr().err
    assert "5/10" in told
    assert "<" in told.rpartition("5/10")[2]  # elapsed<remaining


def test_dry_run(tiny_folder, blocks_jsonl, tmp_path, capsys):
    settings = recipe("lora", tmp_path / "run", tiny_folder, blocks_jsonl, "steps=600", "trackers=[tensorboard]")
    (tmp_path / "run.yaml").write_text(dump_yaml(settings))
    assert train_verb([str(tmp_path / "run.yaml"), "--dry-run", "--launch", "zero3", "--processes", "4"]) == 0
    assert not (tmp_path / "run").exists()
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if not line.startswith(" "))
    trained, _, _, total, share = told["parameters"].replace(",", "").split()
    assert 0 < int(trained) < int(total)
    assert share == f"({int(trained) / int(total):.2%})"
    assert told["memory"].startswith("weights ")
    assert "of image and instruction" in told["tokens a row"]
    assert told["steps"].startswith("600, 4 pictures and ")
    assert "s a step in one process here (measured)" in told["time"]


def test_memory_is_computed_for_the_way_it_is_spread():
    memory = Memory(weights=100, gradients=40, optimizer=80, average=40)
    assert memory.on("none", 4) == 260
    assert memory.on("zero2", 4) == 100 + 120 // 4 + 40
    assert memory.on("zero3", 4) == memory.on("fsdp2", 4) == 65


def test_a_dry_run_of_two_runs_tells_of_the_first(vlm_folder, blocks_jsonl, tmp_path):
    told = dry_run(recipe("adalora-qat", tmp_path / "run", vlm_folder, blocks_jsonl))
    assert "first: a run of 3 steps goes before this one" in told
