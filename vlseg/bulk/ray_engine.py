"""The engine `ray`: the same stages on Ray Data, for clusters that others run. Nodes may come and go.

The driver deals out shard numbers, a pool of actors that grows with the cluster answers them, and the driver alone
writes. Nodes need to read the images (a shared file system, or Parquet files on one), and not to write. What is lost
with a node is answered again by another; each shard is written once, in order.

A cluster is joined where RAY_ADDRESS names one; else one is started on this machine. Ray's usage statistics are off.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlseg.bulk.job import Answered, Job, Worker
from vlseg.bulk.output import Output
from vlseg.types import VLSegError

# Actors that hold all CPUs leave none to bring back what a lost node held: the run would hang.
CPUS = 0.5
# A node that has gone is given up after a few seconds instead of half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


def run_ray(job: Job, output: Output, todo: Sequence[int], processes: int = 0) -> None:
    """Answer the shards `todo`. processes: the most actors; 0: as many as the cluster holds.

    Raises VLSegError where Ray is not installed, no cluster is to be had, or the model cannot do what is asked.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns on stderr
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise VLSegError('--engine ray: Ray is not installed; pip install "ray[data]"') from error
    own = not ray.is_initialized()
    if own:
        _start(ray)
    try:
        for shard, answered in _answers(ray, job, list(todo), processes):
            output.write(shard, answered)
            output.tick(len(answered.results) + len(answered.errors))
    finally:
        if own:
            ray.shutdown()


def _start(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is None:
        options |= {"include_dashboard": False, "_system_config": HEALTH}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # ConnectionError, RuntimeError, ...: whatever keeps a cluster from coming up
        what = " ".join(str(error).split())[:200]
        place = f"RAY_ADDRESS {address}: no cluster there" if address else "no cluster could be started here"
        raise VLSegError(f"--engine ray: {place} ({what})") from error


def _answers(ray: Any, job: Job, todo: list[int], processes: int) -> Iterator[tuple[int, Answered]]:
    """(shard, what came of it) of each, in the order of `todo`."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    for name in ("ray", "ray.data"):  # they tell their plans on stderr
        logging.getLogger(name).setLevel(logging.ERROR)
    gpus = 1 if float(ray.cluster_resources().get("GPU", 0)) >= 1 and (job.device or "cuda") == "cuda" else 0
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=processes or None)
    shards = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo))
    rows = shards.map_batches(
        _Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=pool,
        num_cpus=CPUS,
        num_gpus=gpus,
    )  # actors are restarted, and what they were at is tried again, without end: Ray Data's default
    for expected, row in zip(todo, rows.iter_rows(), strict=True):
        if row["refused"]:
            raise VLSegError(row["refused"])
        if int(row["shard"]) != expected:
            raise RuntimeError(f"shard {row['shard']} came out of its turn")
        yield expected, Answered(**json.loads(row["answered"]))


class _Actor:
    """A model on some node. What is wrong with the call travels as text, so that Ray does not try it again."""

    def __init__(self, job: Job):
        self.refused = ""
        try:
            self.worker = Worker(job, job.device)
        except VLSegError as error:
            self.refused = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        shards = [int(shard) for shard in batch["shard"]]
        answered = ["" if self.refused else _text(self.worker.answer(shard)) for shard in shards]
        return {"shard": shards, "answered": answered, "refused": [self.refused] * len(shards)}


def _text(answered: Answered) -> str:
    return json.dumps(dataclasses.asdict(answered))
