"""What a run tells: its log by data set, its pictures, and before it is started what it will take."""

import json
import os
import re
import shutil
import sys
from collections import Counter

import many_runs
import numpy as np
import pytest
import torch
from blocks import write_blocks
from many_runs import recipe
from PIL import Image

from vlseg.cli.train import run as train_verb
from vlseg.config import dump_yaml
from vlseg.training import journal, merge
from vlseg.training.checkpoint import append_line, drop_lines_after
from vlseg.training.dry_run import Memory, built, dry_run, fitting, memory_of
from vlseg.training.loop import Trainer, train
from vlseg.types import VLSegError


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


def no_memory_on_the_cpu(*args):
    torch.empty(2**60, dtype=torch.uint8)


def no_memory_on_the_gpu(*args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB")


def no_memory_of_numpy(*args):
    np.empty(2**60, np.uint8)


@pytest.mark.parametrize("work", [no_memory_on_the_cpu, no_memory_on_the_gpu, no_memory_of_numpy])
def test_a_model_too_big_for_one_process_is_told_of_all_the_same(
    work, tiny_folder, blocks_jsonl, tmp_path, monkeypatch, capsys
):
    """It is just then that one wants to know what each of many processes will hold."""
    settings = recipe("full", tmp_path / "run", tiny_folder, blocks_jsonl, "steps=600")
    (tmp_path / "run.yaml").write_text(dump_yaml(settings))
    monkeypatch.setattr(Trainer, "train_step", work)
    if work is no_memory_on_the_gpu:
        monkeypatch.setattr("vlseg.training.dry_run.image_tokens", work)
    assert train_verb([str(tmp_path / "run.yaml"), "--dry-run", "--launch", "fsdp2", "--processes", "8"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"on each of 8 processes with fsdp2: \d+\.\d+ [MG]iB and the activations \(computed\)", told)
    assert "peak: not measured, for a step does not fit in one process here" in told
    assert "time: not measured, for a step does not fit in one process here" in told
    assert re.search(r"steps: 600, 4 pictures and [1-9]\d* expressions each", told)
    tokens = r"\?" if work is no_memory_on_the_gpu else r"[1-9]\d*"
    assert re.search(rf"tokens a row: {tokens} of image and instruction, [1-9]\d* of queries and padding", told)


def test_weights_too_big_for_the_gpu_are_counted_on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tried = []

    def trainer(config):
        tried.append(os.environ["ACCELERATE_USE_CPU"])
        if config != "small" or tried[-1] != "true":
            no_memory_on_the_gpu()
        return "run"

    monkeypatch.setattr("vlseg.training.dry_run.trainer", trainer)
    assert built("small") == "run"
    assert tried == ["false", "true"]
    with pytest.raises(VLSegError, match="the model does not fit in one process here: its weights alone"):
        built("big")


def test_other_errors_are_no_lack_of_memory():
    def work():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fitting(work)


def test_memory_is_computed_for_the_way_it_is_spread():
    memory = Memory(weights=100, gradients=40, optimizer=80, average=40)
    assert memory.on("none", 4) == memory.on("none", 1, accumulate=2) == 260
    assert memory.on("none", 4, accumulate=2) == 300
    assert memory.on("fsdp2", 4) == 65
    assert memory.on("zero2", 4) == 100 + (80 + 80) // 4 + 40  # ZeRO's own copies of the trained weights
    assert memory.on("zero3", 4) == 75


def test_importances_of_adalora_are_counted(tiny_folder, blocks_jsonl, tmp_path):
    run = Trainer(recipe("adalora", tmp_path / "run", tiny_folder, blocks_jsonl))
    run.model.train()
    run.train_step([next(run.batches())])
    memory, trained = memory_of(run.plain, 0.0), sum(p.numel() for p in run.plain.parameters() if p.requires_grad)
    kept = run.ranks.allocator
    tables = [getattr(kept, name).values() for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")]
    importances = sum(value.nbytes for table in tables for value in table)
    assert importances > 0
    moments = sum(state[name].nbytes for state in run.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert moments == 8 * trained
    assert memory.optimizer == moments + importances


def test_a_dry_run_of_two_runs_counts_both(vlm_folder, blocks_jsonl, tmp_path):
    settings = ["steps=10", "first.steps=100000"]
    told = dry_run(recipe("adalora-qat", tmp_path / "run", vlm_folder, blocks_jsonl, *settings))
    first = re.search(r"first: a run of 100,000 steps goes before this one, (\d+\.\d+) s a step", told)
    hours = re.search(r"(\d+) h \d+ min in all, the first run included", told)
    assert int(hours[1]) >= int(float(first[1]) * 100_000 / 3600 * 0.9)


def test_muon_keeps_one_moment_of_matrices():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    adam, muon = memory_of(model, 0.0), memory_of(model, 0.0, muon=True)
    assert (adam.weights, adam.gradients, adam.optimizer) == (36 * 4, 36 * 4, 36 * 8)
    assert muon.optimizer == 32 * 4 + 4 * 8


@pytest.mark.parametrize("more", [["--dry-run"], []])
@pytest.mark.parametrize("name", ["adalora", "adalora-qat"])
def test_what_cannot_be_is_refused_before_anything_is_loaded(name, more, tmp_path):
    """adalora-qat for its first run, before the processes are started."""
    settings = [name, "data.train=none.jsonl", f"out={tmp_path / 'run'}", "--launch", "fsdp2", "--processes", "2"]
    with pytest.raises(VLSegError, match="adapter=adalora under fsdp2: pruning needs every gradient whole"):
        train_verb([*settings, *more])
    assert not (tmp_path / "run").exists()


def full(*args, **options):
    raise OSError(28, "No space left on device")


def test_a_full_disk_beside_the_checkpoints_does_not_end_a_run(
    tiny_folder, blocks_jsonl, tmp_path, monkeypatch, capsys
):
    """Neither the log nor pictures, TensorBoard or the best weights are worth the run; each is told of once."""
    for name in ("grids", "tensorboard"):
        (tmp_path / name).write_text("in the way")
    plain = merge.save_merged

    def save(model, state, processor, folder, dtype, name):
        (full if folder.name == ".best.partial" else plain)(model, state, processor, folder, dtype, name)

    monkeypatch.setattr(journal, "append_line", full)
    monkeypatch.setattr(merge, "save_merged", save)
    changes = ["steps=4", "eval_every=2", "grid_every=2", "trackers=[tensorboard]", "mixed_precision=no"]
    train(recipe("full", tmp_path, tiny_folder, blocks_jsonl, *changes))
    told = capsys.readouterr().err
    for name in ("metrics.jsonl", "grids", "tensorboard", "best"):
        assert told.count(f"{tmp_path / name}: cannot be written (") == 1
    assert (tmp_path / "final" / "model.safetensors").exists()
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setattr(merge, "save_merged", full)
    shutil.rmtree(tmp_path / "final")
    many_runs.fresh_state()
    with pytest.raises(VLSegError, match=r"final: cannot be written \(No space left on device\); the checkpoints are"):
        train(recipe("full", tmp_path, tiny_folder, blocks_jsonl, *changes))


def test_a_line_that_was_cut(tmp_path):
    """By a full disk: the next line begins anew. By a kill, in a nested record whose end looks like one."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "val": {"mIoU": 0.5}')
    append_line(file, {"step": 3})
    append_line(file, {"step": 4})
    drop_lines_after(file, 3)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 3]


def test_settings_that_do_nothing_are_said(tiny_folder, blocks_jsonl, tmp_path, monkeypatch, capsys):
    with pytest.raises(VLSegError, match="trackers: Accelerate knows no wanbd; did you mean wandb"):
        Trainer(recipe("full", tmp_path, tiny_folder, blocks_jsonl, "trackers=[wanbd]"))
    many_runs.fresh_state()
    monkeypatch.setattr("vlseg.training.loop.layer_classes", lambda model: [])
    changes = ["steps=1", "grid_every=1", "data.val=null", "mixed_precision=no", "model.compile=true"]
    train(recipe("full", tmp_path, tiny_folder, blocks_jsonl, *changes))
    told = capsys.readouterr().err
    assert "grid_every: nothing is drawn without data.val" in told
    assert "model.compile: this model names no repeated blocks; nothing is compiled" in told


def test_tensorboard_and_other_trackers_hear_what_the_log_says(tiny_folder, blocks_jsonl, tmp_path, monkeypatch):
    """A stand-in in the place of wandb, as Accelerate would make it; events are read back with TensorBoard's reader."""
    from accelerate import tracking
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    heard = {}

    class Stub(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "wandb", False, True

        def __init__(self, run_name, **options):
            super().__init__()
            heard["name"] = run_name

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            heard["config"] = values

        def log(self, values, step=None, **options):
            heard.setdefault("log", []).append((step, values))

        def finish(self):
            heard["finished"] = True

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Stub)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.WANDB])
    changes = ["steps=4", "log_every=2", "eval_every=4", "trackers=[tensorboard, wandb]"]
    train(recipe("full", tmp_path, tiny_folder, blocks_jsonl, *changes))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(line.pop("step"), journal.flattened(line)) for line in lines]
    assert [step for step, _ in expected] == [2, 4, 4]
    assert [(step, {k: v for k, v in values.items() if k != "step"}) for step, values in heard["log"]] == expected
    assert (heard["name"], heard["finished"]) == ("vlseg", True)
    assert heard["config"]["optim/lr"] == 1e-3
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for step, values in expected:
        for key, value in values.items():
            assert (step, pytest.approx(value, rel=1e-5)) in [(e.step, e.value) for e in events.Scalars(key)]


def test_recomputed_activations_change_memory_and_nothing_else(tiny_folder, blocks_jsonl, tmp_path, monkeypatch):
    """The same weights, to the bit; decoder layers and blocks of the tower run twice a step instead of once."""
    calls, weights = {}, {}
    for kind in ("false", "true"):
        changes = ["steps=2", "data.val=null", "mixed_precision=no", f"model.checkpointing={kind}"]
        trainer = Trainer(recipe("full", tmp_path / kind, tiny_folder, blocks_jsonl, *changes))
        layer = trainer.core.vlm.model.language_model.layers[0].mlp
        block = trainer.core.pixel_encoder.trunk.stages[0].blocks[0].norm
        calls[kind] = Counter()
        for name, module in (("layer", layer), ("block", block)):
            module.register_forward_pre_hook(lambda *_, name=name, kind=kind: calls[kind].update([name]))
        trainer.run()
        weights[kind] = {k: v.clone() for k, v in trainer.plain.state_dict().items()}
        many_runs.fresh_state()
    assert calls["false"] == {"layer": 2, "block": 2}
    assert calls["true"] == {"layer": 4, "block": 4}
    assert all(torch.equal(weights["true"][key], value) for key, value in weights["false"].items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_blocks_train_to_the_same_weights(tiny_folder, blocks_jsonl, tmp_path):
    weights, compiled = {}, {}
    for kind in ("false", "true"):
        changes = ["steps=2", "mixed_precision=no", f"model.compile={kind}"]
        trainer = Trainer(recipe("full", tmp_path / kind, tiny_folder, blocks_jsonl, *changes))
        compiled[kind] = [m for m in trainer.core.modules() if m._compiled_call_impl is not None]
        trainer.run()
        weights[kind] = {k: v.clone() for k, v in trainer.plain.state_dict().items()}
        many_runs.fresh_state()
    assert not compiled["false"]
    assert "Qwen2DecoderLayer" in {type(module).__name__ for module in compiled["true"]}
    apart = {key: (weights["true"][key].float() - value.float()).abs() for key, value in weights["false"].items()}
    for key in list(apart):  # a softmax does not see what all keys share: there AdamW follows rounding errors
        if "grounding.token" in key and key.endswith("bias"):
            del apart[key]
        elif key.endswith("key_value.bias"):
            apart[key] = apart[key].chunk(2)[1]
    assert len(apart) > 100
    assert {key: float(gap.max()) for key, gap in apart.items() if gap.max() > 1e-4} == {}
