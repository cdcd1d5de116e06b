"""The loop on the tiny model: exact resume, schedule, checkpoints that are whole or not there."""

import json
import signal

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open

from vlseg.config import from_dict
from vlseg.models.modeling import VLSegModel
from vlseg.training import checkpoint
from vlseg.training.batches import SceneBatches
from vlseg.training.config import OptimSection, TrainConfig
from vlseg.training.loop import Trainer, train
from vlseg.training.optimizer import build_optimizer
from vlseg.training.schedule import rate
from vlseg.types import VLSegError


def tiny(out, **changes):
    tree = {
        "out": str(out),
        "steps": 6,
        "log_every": 2,
        "eval_every": 0,
        "save_every": 2,
        "mixed_precision": "bf16",
        "threads": 1,
        "export_dtype": "float16",
        "model": {"preset": "tiny"},
        "data": {"workers": 0, "queries": 3, "val_scenes": 2, "val_size": [64, 64]},
        "stages": [{"until": 3, "images": 2, "sizes": [[64, 64]]}, {"until": 99, "images": 2, "sizes": [[64, 96]]}],
        "optim": {"warmup": 2, "ema": 0.9},
        **changes,
    }
    return from_dict(TrainConfig, tree)


def weights(out):
    state = checkpoint.load_newest(out / "checkpoints")
    return {**state["model"], **{f"ema.{i}": t for i, t in enumerate(state["ema"]["average"])}}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    train(tiny(out))
    return out


def test_a_run_leaves_what_it_promises(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert lines[0]["loss"] > 0
    assert 0 <= lines[-1]["val"]["mIoU"] <= 1
    assert [p.name for p in checkpoint.step_folders(whole / "checkpoints")] == ["step-4", "step-6"]
    assert list((whole / "tensorboard").glob("events*"))
    assert "warmup: 2" in (whole / "config.yaml").read_text()
    for name in ("best", "final"):
        model = VLSegModel.from_pretrained(whole / name)
        assert model.config.model_type == "vlseg"
        with safe_open(whole / name / "model.safetensors", "pt") as file:
            assert file.get_tensor("mask_head.level").dtype == torch.float16
            assert len([k for k in file.keys() if "lm_head" in k or "embed_tokens" in k]) == 1  # noqa: SIM118


def test_what_is_left_are_the_averages(whole):
    state = checkpoint.load_newest(whole / "checkpoints")
    names = [name for name, _ in Trainer(tiny(whole.parent / "names")).plain.named_parameters()]
    averages = dict(zip(names, state["ema"]["average"], strict=True))
    final = VLSegModel.from_pretrained(whole / "final").state_dict()
    assert [n for n, value in averages.items() if not torch.equal(final[n], value.half().float())] == []
    differ = [n for n, value in averages.items() if not torch.equal(final[n], state["model"][n].half().float())]
    assert len(differ) > 0.8 * len(names)


def test_weights_move_and_the_loss_is_finite(whole):
    before = Trainer(tiny(whole.parent / "fresh")).plain.state_dict()
    after = weights(whole)
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert len(moved) > 0.8 * len(before)
    assert all(torch.isfinite(v).all() for v in after.values())


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 2), (signal.SIGINT, 3)])
def test_a_signal_saves_and_the_same_command_reaches_the_same_bits(whole, tmp_path, monkeypatch, number, at):
    plain_step = Trainer.train_step

    def step_then_signal(self, batches):
        record = plain_step(self, batches)
        if self.step == at:
            signal.raise_signal(number)
        return record

    monkeypatch.setattr(Trainer, "train_step", step_then_signal)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(tmp_path))
    monkeypatch.setattr(Trainer, "train_step", plain_step)
    assert checkpoint.step_folders(tmp_path / "checkpoints")[-1].name == f"step-{at}"
    train(tiny(tmp_path))
    assert_same(weights(whole), weights(tmp_path))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_broken_newest_checkpoint_falls_back_saying_so(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step}, keep=5)
    state = tmp_path / "step-2" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:50])
    said = []
    assert checkpoint.load_newest(tmp_path, said.append) == {"step": 1}
    assert "step-2" in said[0]


def test_checkpoints_are_whole_or_not_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"step": 1}, keep=2)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="space"):
        checkpoint.save(tmp_path, 2, {"step": 2}, keep=2)
    monkeypatch.undo()
    assert [p.name for p in checkpoint.step_folders(tmp_path)] == ["step-1"]
    assert checkpoint.load_newest(tmp_path) == {"step": 1}


def test_nan_stops_with_the_batch_saved(tmp_path, monkeypatch):
    trainer = Trainer(tiny(tmp_path))
    trainer.out.mkdir(exist_ok=True)
    batch = next(trainer.batches())
    with torch.no_grad():
        next(trainer.plain.mask_head.parameters()).fill_(float("nan"))
    with pytest.raises(VLSegError, match=r"not finite.*bad-batch"):
        trainer.train_step([batch])
    (kept,) = torch.load(tmp_path / "bad-batch.pt", weights_only=True)
    assert torch.equal(kept["pixels"], batch.pixels)
    assert torch.equal(kept["distractors"], batch.distractors)
    assert torch.equal(kept["query_ids"], batch.packed.ids)
    assert {"ignored", "nouns", "source", "problems", "regions", "targets"} < kept.keys()


def test_accumulated_batches_give_the_gradient_of_one_big_batch(tmp_path):
    """A loss is a sum over all queries divided once: batches with different numbers of queries weigh as they should."""

    def gradient(batches):
        AcceleratorState._reset_state(True)  # Accelerate keeps the first precision of a process otherwise
        trainer = Trainer(tiny(tmp_path, mixed_precision="no"))
        trainer.optimizer.step = lambda: None
        trainer.optimizer.zero_grad = lambda **_: None
        trainer.config.optim.clip = 1e9
        trainer.train_step(batches)
        return {n: p.grad for n, p in trainer.plain.named_parameters() if p.grad is not None}

    trainer = Trainer(tiny(tmp_path))
    world = trainer.batches()
    first, second = next(world), next(world)
    second.packed.valid[1, 1:] = False  # fewer queries here
    alone = [gradient([first]), gradient([second])]
    counts = [int(b.packed.valid.sum()) for b in (first, second)]
    assert counts[0] != counts[1]
    both = gradient([first, second])
    for name, value in both.items():
        want = sum(g[name] * c for g, c in zip(alone, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(value, want, atol=5e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_schedule():
    optim = OptimSection(warmup=10, schedule="constant-decay", decay=0.5)
    values = [rate(s, 100, optim) for s in range(100)]
    assert values[0] == 0.1
    assert set(values[10:51]) == {1.0}
    assert values[75] == pytest.approx(1 - (25 / 50) ** 0.5)
    cosine = [rate(s, 100, OptimSection(warmup=0, schedule="cosine")) for s in range(101)]
    assert cosine[50] == pytest.approx(0.5)
    assert cosine[100] == pytest.approx(0)
    assert cosine == sorted(cosine, reverse=True)


def test_norms_and_embeddings_do_not_decay(tmp_path):
    model = Trainer(tiny(tmp_path)).plain
    optim = OptimSection(lr=1e-3, weight_decay=0.1, embedding_scale=4.0)
    decayed, free, rows = build_optimizer(model, optim).param_groups
    assert [g["base"] for g in (decayed, free, rows)] == [1e-3, 1e-3, 4e-3]
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all("embed_tokens" in names[id(p)] for p in rows["params"])
    assert len(rows["params"]) == 1
    assert len(decayed["params"]) + len(free["params"]) + 1 == sum(p.requires_grad for p in model.parameters())


def test_what_a_step_sees_does_not_depend_on_the_parts(tmp_path):
    config = tiny(tmp_path, stages=[{"until": 9, "images": 5, "sizes": [[64, 64], [64, 96]]}])
    processor = Trainer(config).processor
    one = SceneBatches(config.data, config.stages, processor, 4, parts=1)
    three = SceneBatches(config.data, config.stages, processor, 4, parts=3)
    assert len(three) == 12
    for step in range(2):
        whole, parts = one[step], [three[step * 3 + p] for p in range(3)]
        assert whole.pixels.shape[:3] == (5, 64, 64 if step == 0 else 96)
        assert torch.equal(whole.pixels, torch.cat([p.pixels for p in parts]))
        assert int(whole.packed.valid.sum()) == sum(int(p.packed.valid.sum()) for p in parts)
    with pytest.raises(VLSegError, match="cannot be dealt"):
        SceneBatches(config.data, config.stages, processor, 4, parts=6)


def test_a_checkpoint_grows_a_new_part_of_its_head(tmp_path):
    first = Trainer(tiny(tmp_path / "a"))
    first.plain.config.head["presence"] = False
    del first.plain.mask_head.presence
    first.plain.mask_head.presence = None
    first.plain.save_pretrained(tmp_path / "old")
    first.processor.save_pretrained(tmp_path / "old")
    AcceleratorState._reset_state(True)
    config = tiny(tmp_path / "b")
    config.model.source, config.model.head = str(tmp_path / "old"), {"presence": True, "presence_dim": 8}
    grown = Trainer(config).plain
    assert grown.mask_head.presence_states.mix[0].weight.abs().sum() > 0
    assert grown.mask_head.presence.mix[0].weight.abs().sum() > 0
    kept = grown.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in first.plain.state_dict().items())
