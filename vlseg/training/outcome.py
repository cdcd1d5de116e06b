"""What a run leaves: checkpoint folders that `Segmenter` loads, the plot of its ranks, what quantising costs."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch

from vlseg.training import merge, qat
from vlseg.training.samples import SampleBatches
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.training.loop import Trainer


def export(run: Trainer, name: str) -> None:
    """Write the averaged weights as the folder `name`, whole or not at all. Every rank must call it.

    It is a checkpoint that `Segmenter` loads, in `config.export_dtype`. With adapters they are merged in it, and
    lie in its `adapter/` as a PEFT folder; of the best weights during such a run the adapter alone is kept.
    Raises VLSegError where it cannot be written.
    """
    with run.ema.applied():
        packed = merge.adapter_state(run.plain) if run.adapted else None
        weights = merge.merged_state(run.plain) if name == "final" or packed is None else None
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
    except OSError as error:
        reason = error.strerror or error
        raise VLSegError(f"{run.out / name}: cannot be written ({reason}); the checkpoints are whole") from error


def finish(run: Trainer) -> None:
    """Write what is left of a run that has done all its steps. Every rank must call it."""
    export(run, "final")
    if run.main and run.ranks:
        run.ranks.plot(run.out / "ranks.png")
    if run.main and run.rounded and run.config.qat.measure:
        data = run.val or (run.feed.sources[0].data if isinstance(run.feed, SampleBatches) else None)
        run.journal.say(qat.measure_run(run.out, run.rounded, run.config.qat, data, run.config.data.val_limit))
    run.accelerator.wait_for_everyone()
