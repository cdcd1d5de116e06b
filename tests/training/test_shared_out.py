"""Several processes: they must see the same `out`, and do not hold their gradients twice."""

import json
import os
from pathlib import Path

import many_runs
import pytest
import torch
from many_runs import in_ranks

from vlseg.types import VLSegError


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    many_runs.fresh_state()


def in_folders(rank, folders):
    """Work of one rank: begin a run in each of these, "{rank}" its own; what was said, and what is there afterwards."""
    from vlseg.training import shared_out
    from vlseg.training.config import TrainConfig
    from vlseg.training.distributed import make_accelerator

    shared_out.SIGHT = 0.5
    told = []
    for folder in folders:
        out = Path(folder.format(rank=rank))
        try:
            accelerator, _ = make_accelerator(TrainConfig(out=str(out)))
            told.append("")
        except VLSegError as error:
            told.append(str(error))
    accelerator.wait_for_everyone()
    left = [sorted(os.listdir(f.format(rank=rank))) if Path(f.format(rank=rank)).is_dir() else None for f in folders]
    return {"told": told, "left": left, "shared": gradients(accelerator)}


def gradients(accelerator):
    """After a backward pass of `Engine`: (bytes of the gradients, bytes that hold them and the exchange's buffers)."""
    from vlseg.training.config import TrainConfig
    from vlseg.training.distributed import Engine

    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    engine = Engine(accelerator, model, torch.optim.AdamW(model.parameters()), TrainConfig())
    for _ in range(2):  # the buffers are made anew once, in the order in which gradients come
        engine.clear()
        engine.backward(engine.model(torch.ones(2, 8)).square().mean(), True)
    grads = [p.grad for p in model.parameters()]
    held = {g.untyped_storage().data_ptr(): g.untyped_storage().nbytes() for g in grads}
    return [len(grads), len(held), sum(g.nbytes for g in grads), sum(held.values())]


def test_an_out_that_machines_do_not_share_is_refused_on_all_of_them(tmp_path):
    """Before anything is trained: their shares of a checkpoint would never come together."""
    (tmp_path / "file").write_text("in the way")
    folders = [str(tmp_path / "machine-{rank}"), str(tmp_path / "file" / "run"), str(tmp_path / "shared")]
    told = in_ranks(in_folders, folders, 2, tmp_path / "ranks")
    for found in told:
        apart, unwritable, shared = found["told"]
        line = "what process 0 writes there is not seen by process 1; `out` must lie on storage that all machines share"
        assert line in apart
        assert "cannot be written to" in unwritable
        assert shared == ""
        assert found["left"][2] == []  # the token is gone
        tensors, storages, size, held = found["shared"]
        assert storages < tensors  # they are views of the buffers
        assert held == size
    assert told[0]["left"][0] == []
    assert json.dumps(told[1]["left"][0]) == "null"
