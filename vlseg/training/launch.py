"""The processes of a run: started through `accelerate launch` on GPUs, by vlseg itself on CPUs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from vlseg.config import read_yaml
from vlseg.training.config import Sharding, TrainConfig
from vlseg.types import VLSegError

INTERRUPTED = 130


def launch(config: TrainConfig, again: list[str], file: Path, processes: int | None) -> int:
    """Run a configuration as an accelerate config says; the exit code.

    again: arguments of `vlseg train` that name the same configuration, for the processes of `accelerate launch`.
    processes: on this machine, instead of what the file says, whose `num_processes` are those of all its machines.
    Under torchrun or another launcher, which has started the processes already, only the file's settings are taken.
    Raises VLSegError for a file that is none of accelerate's.
    """
    settings = read_yaml(file)
    if "distributed_type" not in settings:
        raise VLSegError(f"{file}: not an accelerate config (no distributed_type); `accelerate config` writes one")
    if "WORLD_SIZE" in os.environ:
        started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        if processes is not None and processes != started:
            raise VLSegError(f"--processes {processes}: {started} were started here already; leave the option out")
        os.environ.update(variables(settings))
        return run_rank(config)
    count, machines = counted(settings, file, processes)
    import torch

    if torch.cuda.is_available() and not settings.get("use_cpu"):
        here, found = count // machines, torch.cuda.device_count()
        if here > found:
            raise VLSegError(
                f"{here} processes need as many GPUs, and this machine has {found}; say --processes {found}"
            )
        call = ["-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(count)]
        os.execv(sys.executable, [sys.executable, *call, "-m", "vlseg.cli", "train", *again])
    if machines > 1:
        raise VLSegError(
            f"{file}: num_machines: {machines}; on CPUs vlseg starts the processes of one machine only: start torchrun "
            "on each (examples/torchrun.sh)"
        )
    os.environ.update(variables(settings))
    if count == 1 and settings["distributed_type"] in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return run_rank(config)
    return start(config, count)


def variables(settings: dict[str, Any]) -> dict[str, str]:
    """The environment variables by which `accelerate launch` would hand an accelerate config on."""
    kind = settings["distributed_type"]
    out = {"ACCELERATE_USE_CPU": "true"} if settings.get("use_cpu") else {}
    if kind == "FSDP":
        out["ACCELERATE_USE_FSDP"] = "true"
        for key, value in settings.get("fsdp_config", {}).items():
            out[key.upper()] = _text(value)
    elif kind == "DEEPSPEED":
        out["ACCELERATE_USE_DEEPSPEED"] = "true"
        for key, value in settings.get("deepspeed_config", {}).items():
            name = {"deepspeed_config_file": "CONFIG_FILE", "zero3_init_flag": "ZERO3_INIT"}.get(key, key.upper())
            prefix = "ACCELERATE_" if key == "gradient_clipping" else "ACCELERATE_DEEPSPEED_"
            out[prefix + name] = _text(value)
    elif kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise VLSegError(f"distributed_type {kind}: not supported; use ddp, fsdp2, zero2 or zero3")
    return out


def counted(settings: dict[str, Any], file: Path, processes: int | None) -> tuple[int, int]:
    """Of an accelerate config: (processes on all machines, machines).

    processes: on each machine, instead of what the file says. Raises VLSegError for a number that accelerate would
    round down without a word.
    """
    machines = int(settings.get("num_machines", 1))
    if processes:
        return processes * machines, machines
    count = int(settings.get("num_processes", 1))
    if count % machines:
        raise VLSegError(
            f"{file}: num_processes: {count} counts those of all machines, and cannot be dealt evenly to "
            f"num_machines: {machines}; say --processes N, those of one machine"
        )
    return count, machines


def sharding_of(file: Path, processes: int | None) -> tuple[Sharding, int]:
    """What an accelerate config spreads a run over: how, and the number of processes on all its machines.

    processes: on each machine, instead of what the file says.
    """
    settings = read_yaml(file)
    count, _ = counted(settings, file, processes)
    if settings.get("distributed_type") == "FSDP":
        return "fsdp2", count
    if settings.get("distributed_type") != "DEEPSPEED":
        return "none", count
    return ("zero3" if settings.get("deepspeed_config", {}).get("zero_stage") == 3 else "zero2"), count


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def run_rank(config: TrainConfig) -> int:
    """One process of a run; its exit code."""
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from vlseg.training import loop

        train = loop.train
        if config.closed.architecture:
            from vlseg.training.closed import train

    try:
        train(config)
    except loop.Stopped:
        return INTERRUPTED
    return 0


def start(config: TrainConfig, processes: int) -> int:
    """Run a configuration in N processes on this machine's CPUs with torchrun's agent; the exit code.

    An interrupt is handed to the processes, which save and end by themselves; one that fails ends the others. Raises
    VLSegError in the words of the first that failed, and where fewer than N come up.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        monitor_interval=0.2,
        signals_to_handle="SIGQUIT",  # the agent would kill whoever takes more than 30 seconds to save
    )
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = {number: signal.signal(number, _hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = elastic_launch(how, run_rank)(config)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message
        text = " ".join(str(message.get("message", message) if isinstance(message, dict) else message).split())
        kind, colon, rest = text.partition(": ")
        if kind == VLSegError.__name__ and colon:
            raise VLSegError(rest) from error
        raise RuntimeError(f"process {rank} of {processes} failed: {text}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if sorted(codes) != list(range(processes)):
        raise VLSegError(f"--processes {processes}: only {len(codes)} came up")
    return max(codes.values())


def _hand_on(number: int, frame: Any) -> None:
    """Tell the processes to save and end; those of a terminal have had the interrupt themselves."""
    del number, frame
    for child in multiprocessing.active_children():
        child.terminate()
