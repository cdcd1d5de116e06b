"""A run put away and taken up again: all that decides how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from vlseg.training import checkpoint
from vlseg.training.adapters import load_trained_state, trained_state
from vlseg.training.shards import load_shards, save_shards
from vlseg.training.storage import unwritten
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.training.loop import Trainer


def resume(run: Trainer) -> None:
    """Go back to the newest whole checkpoint of `config.out`, if there is one.

    Raises VLSegError for one of a run that was spread in another way, and where the processes see different ones.
    """
    root = run.out / "checkpoints"
    if run.main:
        checkpoint.sweep(root)
    state = checkpoint.load_newest(root, run.journal.say) if run.main else None
    if run.accelerator.num_processes > 1:
        step = broadcast_object_list([state["step"] if state else 0])[0]  # one process reads all files for all
        if not run.main and (root / f"step-{step}" / checkpoint.STATE).exists():
            state = checkpoint.read_state(root / f"step-{step}")
        steps = gather_object([state["step"] if state else 0])
        if len(set(steps)) > 1:
            raise VLSegError(
                f"{root}: the processes see different checkpoints (steps {', '.join(map(str, steps))}); `out` must lie "
                "on storage that all machines share"
            )
    if state is not None:
        folder = root / f"step-{state['step']}"
        sharding, ranks = state.get("sharding", "none"), state.get("ranks", 1)
        if sharding != run.sharding:
            raise VLSegError(
                f"{folder}: written with sharding {sharding}, this run has {run.sharding}; go on as it began, or start "
                "a new run with model=.../final"
            )
        if run.ranks and run.ranks.packed and not state["adalora"]["packed"]:
            from vlseg.training import repack  # imports peft, which other runs need not

            repack.shrunk(state, run.plain, run.optimizer, repack.by_layer(state["adalora"]["pattern"]))
        if run.sharding == "none":
            load: Any = load_trained_state if run.adapted else nn.Module.load_state_dict
            load(run.plain, state["model"])
            run.optimizer.load_state_dict(state["optimizer"])
            run.ema.load_state_dict(state["ema"])
        else:
            load_shards(run.engine, run.sharding, folder, run.adapted, (ranks, run.accelerator.num_processes))
            if run.config.optim.ema:
                run.ema.load_state_dict(_read_average(run, folder))
        if run.adapted and state.get("base", run.base) != run.base:
            raise VLSegError(
                f"{folder}: its adapters were trained on other weights than {run.config.model.source} holds today; "
                "put those back, or begin anew with another out="
            )
        if run.ranks:
            run.ranks.load_state_dict(state["adalora"])
        if run.watch is not None and "watch" in state:
            run.watch.load_state_dict(state["watch"])
        run.step, run.seen, run.best = state["step"], state["seen"], state["best"]
        run.presence = state.get("presence")
        run.journal.say(f"resumed at step {run.step}")
    if run.main:
        with run.journal.going_on("metrics.jsonl"):
            checkpoint.drop_lines_after(run.out / "metrics.jsonl", run.step)


def write(run: Trainer) -> None:
    """Write `checkpoints/step-N`; that a disk is full is told, and the run goes on with the checkpoint before."""
    root, keep = run.out / "checkpoints", run.config.keep
    state: dict[str, Any] = {
        "sharding": run.sharding,
        "ranks": run.accelerator.num_processes,
        "step": run.step,
        "seen": run.seen,
        "best": run.best,
        "presence": run.presence,
    }
    if run.adapted:
        state["base"] = run.base
    if run.ranks:
        state["adalora"] = run.ranks.state_dict()
    if run.watch is not None:
        state["watch"] = run.watch.state_dict()
    if run.sharding == "none" and run.main:
        state["model"] = trained_state(run.plain) if run.adapted else run.plain.state_dict()
        state["optimizer"] = run.optimizer.state_dict()
        state["ema"] = run.ema.state_dict()
    # Ranks that wait for each other while one has given up would wait for ever: what each part came to is shared.
    failed = _tried(run, lambda: checkpoint.begin(root, run.step) if run.main else None)
    if run.sharding != "none":
        failed = failed or _tried(run, lambda: _write_share(run, checkpoint.partial(root, run.step)))
    failed = failed or _tried(run, lambda: checkpoint.finish(root, run.step, state, keep) if run.main else None)
    if failed:
        if run.main:
            checkpoint.discard(root, run.step)
        older = [folder.name for folder in checkpoint.step_folders(root)]
        last = f"the last whole one is {older[-1]}" if older else "there is none yet"
        run.journal.say(f"the checkpoint of step {run.step} was not written ({failed}); {last}; going on")


def _tried(run: Trainer, work: Callable[[], Any]) -> str | None:
    """Do this rank's part of writing; why that of any rank could not be written, or None. Every rank must call it.

    Raises the error where it is of another kind.
    """
    failed = None
    try:
        work()
    except BaseException as error:  # torch's CheckpointException is no Exception
        failed = unwritten(error)
        if failed is None:
            raise
    outcomes: list[str | None] = gather_object([failed])
    return next((outcome for outcome in outcomes if outcome), None)


def _write_share(run: Trainer, folder: Path) -> None:
    """This rank's part of a sharded checkpoint."""
    save_shards(run.engine, run.sharding, folder, run.adapted)
    if run.config.optim.ema:
        torch.save(run.ema.state_dict(), _average_file(run, folder))


def _average_file(run: Trainer, folder: Path) -> Path:
    """This rank's averaged weights in a sharded checkpoint."""
    return folder / f"ema-{run.accelerator.process_index}-of-{run.accelerator.num_processes}.pt"


def _read_average(run: Trainer, folder: Path) -> dict[str, Any]:
    file = _average_file(run, folder)
    if not file.exists():
        raise VLSegError(f"{folder}: its averaged weights are dealt to another number of processes; go on with as many")
    average: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return average
