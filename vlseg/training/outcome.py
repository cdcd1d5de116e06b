"""What a run leaves: checkpoint folders that `Segmenter` loads, the plot of its ranks, what quantising costs."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch

from vlseg.training import merge, qat
from vlseg.training.samples import SampleBatches
from vlseg.training.storage import unwritten
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.training.loop import Trainer


def export(run: Trainer, name: str) -> None:
    """Write the averaged weights as the folder `name`, whole or not at all. Every rank must call it.

    It is a checkpoint that `Segmenter` loads, in `config.export_dtype`. With adapters they are merged in it, and
    lie in its `adapter/` as a PEFT folder; of the best weights during such a run the adapter alone is kept.
    Raises what the disk had to say (see `storage.unwritten`), and leaves what was there.
    """
    with run.answering():
        packed = merge.adapter_state(run.plain) if run.adapted else None
        weights = None
        if (name == "final" or packed is None) and (run.main or run.sharding != "none"):
            weights = merge.merged_state(run.plain, held=run.main)
    if not run.main:
        return
    if name == "final" and run.presence:
        run.core.config.presence = run.presence
    partial = run.out / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if weights is not None:
            dtype = getattr(torch, run.config.export_dtype)
            merge.save_merged(run.plain, weights, run.processor, partial, dtype, run.out / name)
        if packed is not None:
            merge.save_adapter(run.plain, packed, partial / "adapter")
        shutil.rmtree(run.out / name, ignore_errors=True)
        os.replace(partial, run.out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def finish(run: Trainer) -> None:
    """Write what is left of a run that has done all its steps. Every rank must call it.

    Raises VLSegError where `final/` cannot be written, and for adapters that never had a gradient.
    """
    if run.watch is not None:
        run.watch.conclude()
    try:
        export(run, "final")
    except Exception as error:
        reason = unwritten(error)
        if reason is None:
            raise
        raise VLSegError(f"{run.out / 'final'}: cannot be written ({reason}); the checkpoints are whole") from error
    if run.main and run.ranks:
        with run.journal.going_on("ranks.png"):
            run.ranks.plot(run.out / "ranks.png")
    if run.main and run.rounded and run.config.qat.measure:
        data = run.val or (run.feed.sources[0].data if isinstance(run.feed, SampleBatches) else None)
        with run.journal.going_on("quantised"):
            device, limit = run.accelerator.device, run.config.data.val_limit
            run.journal.say(qat.measure_run(run.out, run.rounded, run.config.qat, data, limit, device))
    run.accelerator.wait_for_everyone()
