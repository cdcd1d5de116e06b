"""The launcher: processes on CPUs are started, told to stop, and go on; what it cannot start is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from many_runs import CONFIGS, recipe

from vlseg.config import dump_yaml, read_yaml
from vlseg.training import checkpoint
from vlseg.training.config import TrainConfig
from vlseg.training.launch import launch, start, variables
from vlseg.types import VLSegError

PATIENCE = 600  # seconds that processes have to come up on a loaded machine


def steps_told(out):
    """Of the whole lines of the log."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def interrupted(command, out, after):
    """Run it, end the parent when the log has passed step `after`, and wait; exit code and stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    until = time.monotonic() + PATIENCE
    try:
        while process.poll() is None and not any(step > after for step in steps_told(out)):
            assert time.monotonic() < until, "no step was done"
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, told


def test_two_processes_are_stopped_and_go_on(tiny_folder, blocks_jsonl, tmp_path):
    """A SIGTERM to the parent reaches the processes, which save; the same command goes on from there."""
    out = tmp_path / "run"
    changes = ["steps=5000", "save_every=5000", "mixed_precision=no", "model.checkpointing=false"]
    (tmp_path / "run.yaml").write_text(dump_yaml(recipe("full", out, tiny_folder, blocks_jsonl, *changes)))
    train = [sys.executable, "-m", "vlseg.cli", "train", str(tmp_path / "run.yaml")]
    command = [*train, "--launch", "cpu", "--processes", "2"]
    code, told = interrupted(command, out, 0)
    assert code == 130, told
    (folder,) = checkpoint.step_folders(out / "checkpoints")
    state = checkpoint.read_state(folder)
    assert state["ranks"] == 2
    assert state["step"] == steps_told(out)[-1]
    code, told = interrupted(command, out, state["step"])
    assert code == 130, told
    assert f"resumed at step {state['step']}" in told
    steps = steps_told(out)
    assert steps == list(range(1, len(steps) + 1))
    assert checkpoint.step_folders(out / "checkpoints")[-1].name == f"step-{steps[-1]}"


def test_fewer_processes_than_asked_for_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda how, run: lambda config: {0: 0})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(VLSegError, match="--processes 3: only 1 came up"):
        start(TrainConfig(), 3)
    assert signal.getsignal(signal.SIGTERM) is before


def test_several_machines_of_cpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    file = tmp_path / "two.yaml"
    file.write_text("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 2\nnum_processes: 4\n")
    with pytest.raises(VLSegError, match=r"two\.yaml: num_machines: 2; .*torchrun on each"):
        launch(TrainConfig(), [], file, None)


def test_cpus_are_kept_to_where_there_are_gpus():
    """Accelerate would take the GPUs otherwise."""
    assert variables(read_yaml(CONFIGS / "accelerate" / "cpu.yaml")) == {"ACCELERATE_USE_CPU": "true"}
    assert variables(read_yaml(CONFIGS / "accelerate" / "ddp.yaml")) == {}
