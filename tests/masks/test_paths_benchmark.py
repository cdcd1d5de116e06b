"""The script that measures the codec: it counts what it says, goes on where it was stopped, and draws."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from vlseg.masks import rle as runs
from vlseg.masks.path_codec import PathCodec

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
WORLD = ["--data", "sprites", "--side", "64", "--masks", "6", "--effort", "fast", "--prices", "1e-3", "1e-2"]
SPRITES = [*WORLD, "--timed", "0"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("paths", FOLDER / "paths.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "paths", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_CHUNK", 4)
    return module


@pytest.fixture
def call(script, monkeypatch, capsys):
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["paths.py", *words])
        script.main()
        return capsys.readouterr().out

    return run


def test_it_counts_what_the_codec_makes(script, call):
    result = json.loads(call(*SPRITES, "--json"))
    masks = script.load("sprites", script.COCO, 6, 64)
    assert all(runs.area(mask) > 0 for mask in masks)
    found = PathCodec().trade_offs(masks, [1e-3, 1e-2], "fast")
    for i, row in enumerate(result["curve"]):
        assert row["tokens"] == np.mean([len(mine[i].tokens) for mine in found])
        assert row["iou"] == pytest.approx(np.mean([mine[i].iou for mine in found]))
    assert result["curve"][0]["iou"] > 0.97
    assert result["curve"][0]["tokens"] > result["curve"][1]["tokens"] > 5
    for budget, row in result["budgets"].items():
        assert 5 < row["tokens"] <= int(budget)
        assert result["curve"][1]["iou"] <= row["iou"] <= result["curve"][0]["iou"]
        assert 0.9 < row["boundary_iou"] <= 1
        assert sum(part["masks"] for part in row["by_size"].values()) == 6
    assert "45" in result["budgets"]
    spread = [(row["tokens"], row["iou"]) for row in result["spread"]]
    assert spread == sorted(spread)
    assert spread[-1][1] == pytest.approx(result["curve"][0]["iou"])


def test_it_goes_on_where_it_was_stopped(script, call, tmp_path, monkeypatch):
    work = tmp_path / "paths.jsonl"
    first = json.loads(call(*SPRITES, "--json", "--work", str(work)))
    lines = work.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    work.write_text("".join(lines[:2]) + lines[2][:50])
    encoded = []
    trade_offs = PathCodec.trade_offs

    def counting(codec, masks, *rest):
        encoded.append(len(masks))
        return trade_offs(codec, masks, *rest)

    monkeypatch.setattr(PathCodec, "trade_offs", counting)
    again = json.loads(call(*SPRITES, "--json", "--work", str(work)))
    assert encoded == [2]
    assert {**again, "machine": 0, "curve_ms_a_mask": 0} == {**first, "machine": 0, "curve_ms_a_mask": 0}
    with pytest.raises(SystemExit, match="of another run"):
        call(*SPRITES, "--codec", "joint-32", "--work", str(work))


def test_table_and_plot(call, tmp_path):
    pytest.importorskip("matplotlib")
    table = call(*WORLD, "--timed", "2", "--codec", "split-128-curves")
    assert "split-128-curves" in table
    assert "ms a mask: fast, 8 at a time" in table
    files = []
    for codec in ("joint-64", "peucker-64"):
        files.append(tmp_path / f"{codec}.json")
        files[-1].write_text(call(*SPRITES, "--codec", codec, "--json"))
    call("--plot", str(tmp_path / "plot.png"), *map(str, files))
    assert (tmp_path / "plot.png").stat().st_size > 10_000
