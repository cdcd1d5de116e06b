"""After AdaLoRA's last pruning a run goes on with the ranks that are left, and comes to what it would have come to."""

import copy
import json

import many_runs
import pytest
import torch
from many_runs import differing, recipe, train_in_two_goes, weights

from vlseg.training import checkpoint, merge, repack
from vlseg.training.adalora import layers
from vlseg.training.adapters import ADAPTER
from vlseg.training.loop import Trainer, train

CHANGES = ["steps=6", "adapter.start_rank=6", "adapter.rank=2", "adapter.settle=0.5", "adapter.dropout=0",
           "save_every=99", "mixed_precision=no", "model.base=float32", "model.checkpointing=false", "optim.ema=0.5",
           "data.val=null"]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    many_runs.fresh_state()


@pytest.fixture(scope="module")
def ask(tiny_folder, blocks_jsonl):
    return lambda out, *changes: recipe("adalora", out, tiny_folder, blocks_jsonl, *CHANGES, *changes)


@pytest.fixture(scope="module")
def whole(ask, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    train(ask(out))
    many_runs.fresh_state()
    return out


def sizes(state):
    """Numbers of weights and of moments in a checkpoint."""
    moments = [entry[key] for entry in state["optimizer"]["state"].values() for key in repack.MOMENTS if key in entry]
    return (sum(t.numel() for n, t in state["model"].items() if "lora_" in n), sum(m.numel() for m in moments),
            sum(t.numel() for t in state["ema"]["average"]))  # fmt: skip


def test_the_run_gets_smaller_and_ends_alike(whole, ask, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    folders = checkpoint.step_folders(whole / "checkpoints")
    assert [folder.name for folder in folders] == ["step-3", "step-6"]  # the first where the last pruning was
    before, after = map(checkpoint.read_state, folders)
    assert (before["adalora"]["packed"], after["adalora"]["packed"]) == (False, True)
    assert after["adalora"]["history"] == before["adalora"]["history"]
    left, began = (sum(after["adalora"]["history"][i][1]) for i in (-1, 0))
    assert left < 0.4 * began
    for large, small in zip(sizes(before), sizes(after), strict=True):
        assert small < large
    assert sizes(after)[0] < 0.5 * sizes(before)[0]
    monkeypatch.setattr(Trainer, "pack", lambda self: None)
    train(ask(tmp_path))
    kept, dropped = weights(tmp_path / "final"), weights(whole / "final")
    assert kept.keys() == dropped.keys()
    assert max(float((kept[name] - value).abs().max()) for name, value in dropped.items()) < 1e-4
    ranks = [json.loads((out / "final" / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
             for out in (tmp_path, whole)]  # fmt: skip
    assert ranks[0] == ranks[1]
    assert sum(ranks[0].values()) == left


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_interrupted_before_at_and_after_it(whole, ask, tmp_path, stop):
    begins = train_in_two_goes(ask(tmp_path), stop=stop)["begins"]
    assert begins == {2: [0, 2, 3], 3: [0, 3], 5: [0, 3, 5]}[stop]
    assert differing(whole, tmp_path) == []


def test_muon_goes_on_with_what_is_left(ask, tmp_path):
    muon = "optim.matrix_lr=0.005"
    train(ask(tmp_path / "whole", muon))
    state = checkpoint.read_state(checkpoint.step_folders(tmp_path / "whole" / "checkpoints")[-1])
    began, left = (sum(state["adalora"]["history"][i][1]) for i in (0, -1))
    assert left < 0.4 * began  # importances come from gradients, which Muon would have spent
    adapters = sum(t.numel() for n, t in state["model"].items() if "lora_A" in n or "lora_B" in n)
    moved = [entry["momentum"].numel() for entry in state["optimizer"]["state"].values() if "momentum" in entry]
    assert sum(moved) >= adapters > 0
    many_runs.fresh_state()
    assert train_in_two_goes(ask(tmp_path / "two", muon), stop=4)["begins"] == [0, 3, 4]
    assert differing(tmp_path / "whole", tmp_path / "two") == []


def test_a_layer_without_any_rank_left_stays_at_zero(whole, ask):
    run = Trainer(copy.deepcopy(ask(whole)))
    assert run.ranks.packed
    assert len(list(layers(run.plain))) > 5
    for (name, layer), mask in zip(layers(run.plain), run.ranks.names, strict=True):
        assert name == mask
        assert len(layer.lora_E[ADAPTER]) == len(layer.lora_A[ADAPTER]) == layer.lora_B[ADAPTER].shape[1] >= 1
    run.ranks.history = [(0, [1] * len(run.ranks.names)), (3, [0, *[1] * (len(run.ranks.names) - 1)])]
    with torch.no_grad():
        for _, layer in layers(run.plain):
            layer.lora_E[ADAPTER].fill_(0.3)
    run.ranks.step(4)
    values = [float(layer.lora_E[ADAPTER].detach().abs().max()) for _, layer in layers(run.plain)]
    assert values[0] == 0
    assert min(values[1:]) == pytest.approx(0.3)


def test_cuts():
    pattern = {"a.b": [True, False, True], "c": [False, False, False]}
    assert repack.by_layer({"a.b.lora_E.default": [True]}) == {"a.b": [True]}
    assert repack._cut("base_model.model.a.b.lora_A.default", pattern)[1].tolist() == [0, 2]
    assert repack._cut("base_model.model.a.b.lora_B.default", pattern)[0] == 1
    assert repack._cut("base_model.model.c.lora_E.default", pattern)[1].tolist() == [0]
    assert [repack._cut(f"base_model.model.{name}.lora_E.default", pattern)[2] for name in pattern] == [True, False]
    assert repack._cut("base_model.model.a.b.bias", pattern) is None


def test_averages_do_not_remember_what_is_pruned(ask, tiny_folder, tmp_path):
    """Without steps after the last pruning nothing is re-packed: folder and adapter must be one model all the same."""
    from peft import PeftModel

    from vlseg.models.modeling import VLSegModel
    from vlseg.systems.quiet import quiet_loading

    train(ask(tmp_path, "adapter.settle=0", "optim.ema=0.9"))
    state = checkpoint.read_state(checkpoint.step_folders(tmp_path / "checkpoints")[-1])
    began, left = (sum(state["adalora"]["history"][i][1]) for i in (0, -1))
    assert left < 0.4 * began
    assert not state["adalora"]["packed"]
    with quiet_loading():
        base = VLSegModel.from_pretrained(tiny_folder)
        adapted = PeftModel.from_pretrained(base, tmp_path / "final" / "adapter")
    expected, merged = merge.merged_state(adapted), weights(tmp_path / "final")
    assert len(merged) > 100
    apart = {n: d for n, v in merged.items() if (d := float((expected[n] - v).abs().max())) > 1e-5}
    assert apart == {}
