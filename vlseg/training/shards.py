"""What the ranks of a sharded run write into a checkpoint, each its own share, and how they read it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlseg.training.config import Sharding
from vlseg.training.distributed import Engine
from vlseg.types import VLSegError

FOLDER = "shards"


def save_shards(engine: Engine, sharding: Sharding, folder: Path, frozen: bool) -> None:
    """Write this rank's share of weights and optimizer into `folder/shards`; every rank must call it.

    frozen: some weights are not trained, and left out (FSDP2). Raises what the disk had to say (`storage.unwritten`);
    under FSDP2 on all ranks, under ZeRO on those whose disk it was.
    """
    if sharding == "fsdp2":
        import torch.distributed.checkpoint as dcp

        dcp.save(_fsdp_state(engine.model, engine.optimizer, frozen), checkpoint_id=str(folder / FOLDER))
        return
    model: Any = engine.model
    with _failing_late(model.checkpoint_engine):
        model.save_checkpoint(str(folder), tag=FOLDER, exclude_frozen_parameters=frozen, save_latest=False)


@contextlib.contextmanager
def _failing_late(writer: Any) -> Iterator[None]:
    """DeepSpeed's ranks wait for each other after writing: one that cannot write says so only behind that."""
    plain, failed = writer.save, []

    def save(*args: Any, **options: Any) -> Any:
        try:
            return plain(*args, **options)
        except Exception as error:
            failed.append(error)

    writer.save = save
    try:
        yield
    finally:
        writer.save = plain
    if failed:
        raise failed[0]


def load_shards(
    engine: Engine, sharding: Sharding, folder: Path, frozen: bool, ranks: tuple[int, int]
) -> None:  # fmt: skip
    """The inverse of `save_shards`. ranks: how many wrote it, how many there are.

    FSDP2's shards are dealt anew to any number of ranks. Raises VLSegError where ZeRO's would have to be.
    """
    if sharding == "fsdp2":
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        state = _fsdp_state(engine.model, engine.optimizer, frozen)
        try:
            dcp.load(state, checkpoint_id=str(folder / FOLDER))
        except CheckpointException as error:  # no Exception
            reason = " ".join(str(next(iter(error.failures.values()))[0]).split())[:160]
            raise VLSegError(
                f"{folder}: its shards do not fit this run ({reason}); go on with the settings it began with, or "
                "choose another folder with out="
            ) from error
        set_state_dict(
            engine.model,
            _plain(engine.optimizer),
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=not frozen, ignore_frozen_params=frozen),
        )
        return
    if ranks[0] != ranks[1]:
        raise VLSegError(
            f"{folder}: written by {ranks[0]} processes under {sharding}, which cannot go on with {ranks[1]}; start "
            f"--processes {ranks[0]}, or a new run with model=.../final"
        )
    model: Any = engine.model
    found, _ = model.load_checkpoint(str(folder), tag=FOLDER, load_module_strict=not frozen)
    if found is None:
        raise VLSegError(f"{folder}: its shards cannot be read; delete the folder to go on from the checkpoint before")


def _fsdp_state(model: nn.Module, optimizer: Any, frozen: bool) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(ignore_frozen_params=frozen)
    weights, moments = get_state_dict(model, _plain(optimizer), options=options)
    return {"model": weights, "optimizer": moments}


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
