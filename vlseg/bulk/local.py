"""The engine `local`: the processes of this machine, one a device; each answers shards and writes them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vlseg.bulk.job import Job, Worker
from vlseg.bulk.output import Output


def run_local(job: Job, output: Output, todo: Sequence[int], processes: int = 1) -> None:
    """Answer the shards `todo`. With one process, this one does.

    Raises VLSegError where the model cannot do what is asked, RuntimeError where a process died, KeyboardInterrupt.
    """
    if processes == 1:
        worker = Worker(job, job.device, output.tick)
        for shard in todo:
            output.write(shard, worker.answer(shard))
        return
    from vlseg.evaluation.ranks import launch

    launch(_rank, (job, output, list(todo), os.getpid()), processes)


def _rank(job: Job, output: Output, todo: list[int], parent: int) -> int:
    """One of several processes; returns how many shards it had to write."""
    import signal

    from vlseg.evaluation import ranks

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it ends without a word: the process that started it speaks
    own = ranks.join()
    worker = Worker(job, own.device(job.device), output.tick)
    mine = todo[own.rank :: own.world]
    for shard in mine:
        if os.getppid() != parent:
            break  # it was killed; who runs the same command again must not find this one still writing
        output.write(shard, worker.answer(shard))
    own.wait()
    return len(mine)
