"""A run judged on the way: validated, drawn, its best weights kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from vlseg.evaluation.ranks import Ranks
from vlseg.metrics.case import Case
from vlseg.models.modeling import VLSegModel
from vlseg.systems.native import NativeSystem
from vlseg.training import validation
from vlseg.training.merge import merged_state, plain_model
from vlseg.training.outcome import export
from vlseg.training.samples import SampleBatches

if TYPE_CHECKING:
    from vlseg.training.loop import Trainer


def judge(run: Trainer, score: bool, draw: bool) -> None:
    """Validate the averaged weights, draw their answers, log, and keep the best ones. Every rank must call it.

    Leaves a calibration of the presence score in `run.presence`, where there were cases enough.
    """
    better, scores = torch.zeros((), device=run.accelerator.device), dict[str, float]()
    with run.answering(), reading(run) as system:
        if score:
            cases = _cases(run, system)
            if cases:
                scores = validation.scores_of(cases)
                run.journal.write({"step": run.step, "val": {k: round(v, 4) for k, v in scores.items()}})
                if run.val is not None:
                    run.presence = validation.calibrated(cases, run.core.config.presence)
                if scores.get("mIoU", 0.0) > run.best:
                    better += 1
        if draw and run.val is not None and run.main and system is not None:
            sheet = validation.answer_grid(system, run.val)
            if sheet is not None:
                run.journal.picture("grids", sheet, run.step)
    if run.accelerator.reduce(better, "sum") > 0:
        with run.journal.going_on("best"):
            export(run, "best")
            run.best = scores.get("mIoU", run.best)  # else the next good ones are kept
    run.accelerator.wait_for_everyone()


def _cases(run: Trainer, system: NativeSystem | None) -> list[Case]:
    """The scored cases, on the main process; the ranks share the work where each of them has the whole model."""
    data = run.config.data
    if run.val is None:
        if isinstance(run.feed, SampleBatches) or not run.main or system is None:
            return []
        return validation.score_world(system.model, run.processor, data)
    if system is None:
        return []
    here = run.accelerator
    ranks = (
        Ranks(here.process_index, here.num_processes, here.local_process_index) if run.sharding == "none" else Ranks()
    )
    return validation.score_dataset(system, run.val, data.val_limit, ranks, run.out / ".val")


@contextlib.contextmanager
def reading(run: Trainer) -> Iterator[NativeSystem | None]:
    """The model as a system to ask; under sharding a whole copy on the main process, and None on the others."""
    model: VLSegModel | None = run.core
    if run.sharding != "none":
        weights = merged_state(run.plain, held=run.main)
        device = run.accelerator.device
        # The copy stands beside the main process's shard: on a GPU in the number type that it will be asked in.
        half = run.config.mixed_precision == "bf16" and device.type != "cpu"
        dtype = torch.bfloat16 if half else torch.float32
        model = plain_model(run.plain, weights, dtype).to(device) if run.main else None
        del weights
    # Outside of training only a model whose parts are held in different number types needs it.
    mixed = run.config.model.base != "float32" and run.config.mixed_precision == "bf16" and run.sharding == "none"
    training = run.model.training
    try:
        with torch.autocast(run.accelerator.device.type, torch.bfloat16, enabled=mixed):
            yield None if model is None else NativeSystem(model, run.processor, run.out.name)
    finally:
        run.model.train(training)
