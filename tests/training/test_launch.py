"""The launcher: processes on CPUs are started, told to stop, and go on; what it cannot start is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from many_runs import CONFIGS, recipe

from vlseg.config import dump_yaml, read_yaml
from vlseg.training import checkpoint
from vlseg.training.config import TrainConfig
from vlseg.training.launch import launch, sharding_of, start, variables
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


class Replaced(Exception):
    """This process would be another program now."""


@pytest.fixture
def eight_gpus(monkeypatch):
    """A machine with eight; what it is replaced by is raised."""

    def execv(program, arguments):
        assert program == sys.executable
        raise Replaced(arguments)

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def accelerate_config(folder, machines, processes, kind="MULTI_GPU"):
    file = folder / "machines.yaml"
    written = {"compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "mixed_precision": "no",
               "use_cpu": False, "num_machines": machines, "num_processes": processes, "machine_rank": 0,
               "main_process_ip": "127.0.0.1", "main_process_port": 29500}  # fmt: skip
    file.write_text(json.dumps(written))  # which is YAML
    return file


@pytest.mark.parametrize(
    ("machines", "written", "asked", "count"),
    [(1, 8, None, 8), (1, 8, 4, 4), (2, 16, None, 16), (2, 16, 8, 16), (2, 16, 4, 8), (2, 4, 8, 16)],
)
def test_accelerate_is_told_the_processes_of_all_machines(eight_gpus, tmp_path, machines, written, asked, count):
    """Of which it starts as many here as there are for each."""
    from accelerate.commands import launch as accelerate_launch
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = accelerate_config(tmp_path, machines, written)
    assert sharding_of(file, asked) == ("none", count)
    with pytest.raises(Replaced) as end:
        launch(TrainConfig(), ["run.yaml", "steps=3"], file, asked)
    (call,) = end.value.args
    assert call[1:3] == ["-m", "accelerate.commands.launch"]
    assert call[-5:] == ["-m", "vlseg.cli", "train", "run.yaml", "steps=3"]
    args = accelerate_launch.launch_command_parser().parse_args(call[3:])
    args, _, _ = accelerate_launch._validate_launch_command(args)  # reads the file
    prepare_multi_gpu_env(args)
    assert int(args.nproc_per_node) == count // machines
    assert int(getattr(args, "nnodes", None) or 1) == machines


def test_memory_is_dealt_to_the_processes_of_all_machines(tmp_path):
    """A config of two machines is not counted twice."""
    assert sharding_of(accelerate_config(tmp_path, 2, 16, "FSDP"), None) == ("fsdp2", 16)
    assert sharding_of(accelerate_config(tmp_path, 2, 16, "FSDP"), 4) == ("fsdp2", 8)
    assert sharding_of(accelerate_config(tmp_path, 2, 16, "DEEPSPEED"), None) == ("zero2", 16)


def test_numbers_that_do_not_go_together_are_refused(eight_gpus, tmp_path):
    with pytest.raises(VLSegError, match=r"machines\.yaml: num_processes: 3 counts those of all machines"):
        sharding_of(accelerate_config(tmp_path, 2, 3), None)
    for machines, written, asked in ((1, 16, None), (2, 32, None), (2, 16, 16)):
        with pytest.raises(
            VLSegError, match="16 processes need as many GPUs, and this machine has 8; say --processes 8"
        ):
            launch(TrainConfig(), [], accelerate_config(tmp_path, machines, written), asked)


def test_processes_that_torchrun_started_are_counted_on_this_machine(monkeypatch, tmp_path):
    """Not on all of them; the run itself is not what this is about."""
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("vlseg.training.launch.run_rank", lambda config: 7)
    file = accelerate_config(tmp_path, 1, 8)
    assert launch(TrainConfig(), [], file, 8) == 7
    with pytest.raises(VLSegError, match="--processes 16: 8 were started here already"):
        launch(TrainConfig(), [], file, 16)
