"""The processes of one evaluation: who this one is among them, and how vlseg starts them itself."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vlseg.types import VLSegError

# One process may be done long before another whose images are larger.
PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Ranks:
    """rank: 0 .. world - 1, the one that writes reports is 0; local: number of this process on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def main(self) -> bool:
        """Speaks, and writes what all have found."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def device(self, wanted: str | None) -> str | None:
        """The device of this process: with several on a machine with GPUs, each takes its own."""
        if self.world == 1 or wanted not in (None, "auto", "cuda"):
            return wanted
        import torch

        return f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else wanted


ALONE = Ranks()


def join(expected: int | None = None) -> Ranks:
    """Take part in the run that torchrun, accelerate or `launch` has started; alone where none has.

    expected: the number of processes that the user asked for. Raises VLSegError where there are others.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if expected is not None and expected != world:
        raise VLSegError(f"--processes {expected}: {world} came up; leave the option out under torchrun")
    if world == 1:
        return ALONE
    from accelerate import PartialState

    # Processes only wait for each other here, so gloo will do, whatever device each of them computes on.
    state = PartialState(cpu=True, timeout=PATIENCE)
    if state.num_processes != world:
        raise VLSegError(f"{world} processes were started, and {state.num_processes} found each other")
    return Ranks(state.process_index, world, state.local_process_index)


def started() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(function: Callable[..., Any], arguments: tuple[Any, ...], processes: int) -> list[Any]:
    """Run `function(*arguments)` in N processes of this machine with torchrun's agent; its results in order of rank.

    function: of a module, as are its arguments and results, so that they can be pickled. Where one process fails the
    others are stopped. Raises VLSegError in the words of the first that failed and where fewer than N come up,
    RuntimeError where one died of something else, KeyboardInterrupt where this process was told to stop.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
        monitor_interval=0.2,
    )
    for name in list(logging.root.manager.loggerDict):  # the agent's loggers have a level each
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")):
            results = elastic_launch(config, function)(*arguments)
    except SignalException as stop:
        raise KeyboardInterrupt(f"stopped by signal {int(stop.sigval)}") from stop
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = failure.message
        text = message.get("message", message) if isinstance(message, dict) else message
        kind, colon, rest = " ".join(str(text).split()).partition(": ")
        if kind == VLSegError.__name__ and colon:
            raise VLSegError(rest) from error
        raise RuntimeError(f"process {rank} of {processes} failed: {text}") from error
    if sorted(results) != list(range(processes)):
        raise VLSegError(f"--processes {processes}: only {len(results)} came up")
    return [results[rank] for rank in range(processes)]


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """What processes that are started within the block find in their environment."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
