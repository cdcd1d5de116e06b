"""A run put away and taken up again: all that decides how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import nn

from vlseg.training import checkpoint
from vlseg.training.adapters import load_trained_state, trained_state
from vlseg.training.shards import load_shards, save_shards
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.training.loop import Trainer


def resume(run: Trainer) -> None:
    """Go back to the newest whole checkpoint of `config.out`, if there is one.

    Raises VLSegError for one of a run that was spread in another way, and where the processes see different ones.
    """
    root = run.out / "checkpoints"
    state = checkpoint.load_newest(root, run.journal.say)
    if run.accelerator.num_processes > 1:
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
        if run.sharding == "none":
            load: Any = load_trained_state if run.adapted else nn.Module.load_state_dict
            load(run.plain, state["model"])
            if run.adapted and state.get("base", run.base) != run.base:
                raise VLSegError(
                    f"{folder}: its adapters were trained on other weights than {run.config.model.source} holds today; "
                    "put those back, or begin anew with another out="
                )
            run.optimizer.load_state_dict(state["optimizer"])
            run.ema.load_state_dict(state["ema"])
        else:
            load_shards(run.engine, run.sharding, folder, run.adapted, (ranks, run.accelerator.num_processes))
            if run.config.optim.ema:
                run.ema.load_state_dict(_read_average(run, folder))
        if run.ranks:
            run.ranks.load_state_dict(state["adalora"])
        run.step, run.seen, run.best = state["step"], state["seen"], state["best"]
        run.presence = state.get("presence")
        run.journal.say(f"resumed at step {run.step}")
    if run.main:
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
    if run.ranks:
        state["adalora"] = run.ranks.state_dict()
    failed = None
    try:
        if run.sharding != "none":
            if run.main:
                checkpoint.begin(root, run.step)
            run.accelerator.wait_for_everyone()
            partial = checkpoint.partial(root, run.step)
            save_shards(run.engine, run.sharding, partial, run.adapted)
            if run.config.optim.ema:
                torch.save(run.ema.state_dict(), _average_file(run, partial))
        elif run.main:
            state["model"] = trained_state(run.plain) if run.adapted else run.plain.state_dict()
            state["optimizer"] = run.optimizer.state_dict()
            state["ema"] = run.ema.state_dict()
            state["base"] = run.base
            checkpoint.save(root, run.step, state, keep)
    except (OSError, RuntimeError) as error:
        failed = _full_disk(error)
    if run.sharding != "none":
        failures = torch.tensor(float(failed is not None), device=run.accelerator.device)
        if run.accelerator.reduce(failures, "sum") == 0 and run.main:
            try:
                checkpoint.finish(root, run.step, state, keep)
            except OSError as error:
                failed = _full_disk(error)
    if failed:
        older = [folder.name for folder in checkpoint.step_folders(root)]
        last = f"the last whole one is {older[-1]}" if older else "there is none yet"
        run.journal.say(f"the checkpoint of step {run.step} was not written ({failed}); {last}; going on")
    run.accelerator.wait_for_everyone()


def _full_disk(error: Exception) -> str:
    """The reason why a file could not be written. Raises the error where it is another's."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if "write" in str(error) or "file" in str(error):  # torch's zip writer tells of a full disk in its own words
        return str(error).splitlines()[0]
    raise error


def _average_file(run: Trainer, folder: Path) -> Path:
    """This rank's averaged weights in a sharded checkpoint."""
    return folder / f"ema-{run.accelerator.process_index}-of-{run.accelerator.num_processes}.pt"


def _read_average(run: Trainer, folder: Path) -> dict[str, Any]:
    file = _average_file(run, folder)
    if not file.exists():
        raise VLSegError(f"{folder}: its averaged weights are dealt to another number of processes; go on with as many")
    average: dict[str, Any] = torch.load(file, weights_only=True)
    return average
