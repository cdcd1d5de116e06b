"""Runs that survive: kill -9 at random instants, broken checkpoints, other numbers of processes."""

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
from many_runs import processes, weights
from test_training import tiny

from vlseg.training import checkpoint, state
from vlseg.training.loop import Trainer, train
from vlseg.types import VLSegError

STEPS = 8


def config(out):
    return tiny(out, steps=STEPS, log_every=1, save_every=1, trackers=[], mixed_precision="no")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    train(config(out))
    return out


def train_until_killed(settings, step, delay):
    """Train, and be killed `delay` seconds after the beginning of that step; step -1: of the process."""
    torch.set_num_threads(1)
    plain, armed = Trainer.train_step, []

    def arm():
        if not armed:
            armed.append(True)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def train_step(self, batches):
        if self.step >= step:
            arm()
        return plain(self, batches)

    Trainer.train_step = train_step
    if step < 0:
        arm()
    train(settings)
    arm()
    time.sleep(60)


def survive(out, kills, seed):
    """Kill a run so many times at random instants, and let the same command finish it."""
    random = np.random.default_rng(seed)
    for step in sorted(random.integers(-1, STEPS, kills).tolist()):
        process = processes().Process(target=train_until_killed, args=(config(out), step, random.uniform(0, 0.3)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    train(config(out))


@pytest.mark.parametrize(("kills", "seed"), [(3, 0), pytest.param(20, 1, marks=pytest.mark.slow)])
def test_kill_9_at_random_instants(whole, tmp_path, kills, seed):
    survive(tmp_path, kills, seed)
    a, b = weights(whole / "final"), weights(tmp_path / "final")
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert not list(tmp_path.rglob(".*.partial"))
    steps = [int(folder.name[5:]) for folder in checkpoint.step_folders(tmp_path / "checkpoints")]
    assert steps == [STEPS - 1, STEPS]


def test_what_a_kill_left_of_a_checkpoint_is_removed(whole, tmp_path):
    """Of whatever step: gigabytes each. By the next start, and by the next checkpoint of what does not resume."""
    root = tmp_path / "run" / "checkpoints"
    shutil.copytree(whole, tmp_path / "run")
    left = root / ".step-437.partial" / "shards"
    left.mkdir(parents=True)
    (left / "0.distcp").write_bytes(b"weights")
    state.resume(Trainer(config(tmp_path / "run")))
    assert sorted(folder.name for folder in root.iterdir()) == [f"step-{STEPS - 1}", f"step-{STEPS}"]
    left.mkdir(parents=True)
    checkpoint.save(root, STEPS + 1, {"step": STEPS + 1}, 1)
    assert [folder.name for folder in root.iterdir()] == [f"step-{STEPS + 1}"]


def test_a_cut_checkpoint_falls_back_saying_so_and_reaches_the_same_weights(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    file = tmp_path / "run" / "checkpoints" / f"step-{STEPS}" / checkpoint.STATE
    os.truncate(file, file.stat().st_size // 2)
    train(config(tmp_path / "run"))
    told = capsys.readouterr().err
    assert f"step-{STEPS}: state.pt is cut or missing; falling back" in told
    assert f"resumed at step {STEPS - 1}" in told
    a, b = weights(whole / "final"), weights(tmp_path / "run" / "final")
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("harm", [lambda file: os.truncate(file, 3), os.unlink])
def test_a_checkpoint_that_lost_a_shard_is_passed_over(tmp_path, harm):
    for step in (1, 2):
        folder = checkpoint.begin(tmp_path, step) / "shards"
        folder.mkdir()
        (folder / "0.distcp").write_bytes(b"weights")
        checkpoint.finish(tmp_path, step, {"step": step}, 5)
    assert checkpoint.load_newest(tmp_path) == {"step": 2}
    harm(tmp_path / "step-2" / "shards" / "0.distcp")
    said = []
    assert checkpoint.load_newest(tmp_path, said.append) == {"step": 1}
    assert "step-2: shards/0.distcp is cut or missing; falling back" in said[0]


@pytest.mark.parametrize("name", ["shards/0.distcp", checkpoint.STATE, checkpoint.FILES])
def test_one_changed_bit_is_noticed(tmp_path, name):
    """torch reads such a file without a word, and the run would go on with other weights."""
    for step in (1, 2):
        folder = checkpoint.begin(tmp_path, step) / "shards"
        folder.mkdir()
        (folder / "0.distcp").write_bytes(b"weights" * 1000)
        checkpoint.finish(tmp_path, step, {"step": step, "model": torch.zeros(5000)}, 5)
    file = tmp_path / "step-2" / name
    data = bytearray(file.read_bytes())
    data[data.index(b":") + 4 if name == checkpoint.FILES else len(data) // 2] ^= 1
    file.write_bytes(data)
    if name == checkpoint.STATE:
        assert checkpoint.read_state(tmp_path / "step-2")["model"].any()  # as torch reads it
    said = []
    assert checkpoint.load_newest(tmp_path, said.append)["step"] == 1
    assert "step-2: " in said[0]
    assert "falling back" in said[0]


def test_checkpoints_without_checksums_are_read(tmp_path):
    """Of runs that an earlier version began."""
    checkpoint.save(tmp_path, 1, {"step": 1}, 5)
    (tmp_path / "step-1" / checkpoint.FILES).unlink()
    assert checkpoint.load_newest(tmp_path)["step"] == 1


def test_processes_that_see_different_checkpoints_are_told(tmp_path, monkeypatch):
    run = Trainer(config(tmp_path))
    monkeypatch.setattr(state, "gather_object", lambda steps: [*steps, 4])
    monkeypatch.setattr(type(run.accelerator), "num_processes", 2)
    with pytest.raises(VLSegError, match=r"different checkpoints \(steps 0, 4\); .* all machines share"):
        state.resume(run)
