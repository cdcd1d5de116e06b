"""What the benchmark pages claim holds; the scripts run as they are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("backbones", "packing", "timing"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-vl", "paligemma2"])
def test_every_cell_of_a_family_holds(name):
    backbones = importlib.import_module("backbones")
    cells = backbones.run(name)
    assert list(cells) == list(backbones.COLUMNS)
    assert all(cell["holds"] for cell in cells.values()), cells
    text = backbones.page({name: cells})
    assert backbones.FACTS[name][0] in text
    assert "fails" not in text


def test_a_cell_that_does_not_hold_is_marked():
    backbones = importlib.import_module("backbones")
    cells = {column: {"holds": column != "bf16", "cell": "0.42"} for column in backbones.COLUMNS}
    assert backbones.page({"qwen3-vl": cells}).count("**fails: 0.42**") == 1


def test_the_page_is_of_this_script():
    backbones = importlib.import_module("backbones")
    text = backbones.PAGE.read_text(encoding="utf-8")
    head = next(line for line in text.splitlines() if line.startswith("| family"))
    assert head.split(" | ")[3:] == [*list(backbones.COLUMNS)[:-1], f"{list(backbones.COLUMNS)[-1]} |"]
    assert [line.split(" | ")[0][2:] for line in text.splitlines() if line.startswith("| ")][1:] == [
        fact[0] for fact in backbones.FACTS.values()
    ]
    assert "fails" not in text


@pytest.mark.slow
def test_packing_changes_no_gradient():
    packing = importlib.import_module("packing")
    for whole in (False, True):
        worst = packing.compare(packing.Step(packing.build(whole), 3, 16, whole))
        assert worst["max_loss_diff"] <= 1e-5
        assert worst["max_grad_diff"] <= 1e-5
