"""Weights that no forward pass uses are not trained: other processes would wait for their gradients for ever."""

from __future__ import annotations

import pytest
from many_runs import recipe

from vlseg.training.loop import Trainer
from vlseg.training.start import build_model


@pytest.mark.parametrize("name", ["full", "lora"])
def test_what_is_trained_gets_a_gradient(name, idle_folder, blocks_jsonl, tmp_path):
    """FastVLM's timm tower has a head that is never asked; left to train, it makes DDP fail at its second step."""
    run = Trainer(recipe(name, tmp_path, idle_folder, blocks_jsonl, "mixed_precision=no", "model.base=float32"))
    idle = {id(p) for module in run.core.family.idle(run.core.vlm) for p in module.parameters()}
    assert idle
    assert not any(p.requires_grad for p in run.core.parameters() if id(p) in idle)
    without: list[str] = []

    def look():
        without.extend(n for n, p in run.plain.named_parameters() if p.requires_grad and p.grad is None)

    run.engine.clear = look
    run.train_step([next(run.batches())])
    assert without == []


def test_loading_alone_would_train_them(idle_folder, blocks_jsonl, tmp_path, monkeypatch):
    """Without the freeze after loading the test above fails: loading makes new parameters, which all learn."""
    from vlseg.training import start

    config = recipe("full", tmp_path, idle_folder, blocks_jsonl)
    kind = type(build_model(config).model.family)
    loaded = start._from_source(config, None, True, None).model
    idle = [p for module in kind.idle(loaded.family, loaded.vlm) for p in module.parameters()]
    assert any(p.requires_grad for p in idle)
