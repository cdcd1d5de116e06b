"""Runs for tests, one after the other in one process or in several that find each other: importing costs seconds."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPES = ("lora", "adalora", "qlora", "qat", "adalora-qat", "full")
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"

# A pixel encoder and a mask head for a vision-language model of a few thousand weights.
SMALL = {
    "pixel_encoder": {
        "kind": "open_clip",
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_convnext",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "",
            "image_size": 64,
        },
    },
    "head": {"dim": 32, "embed_dim": 16, "detail_dim": 8, "layers": 2},
}


def recipe(name: str, out: Path, source: Path, data: Path, *changes: str) -> Any:
    """The shipped recipe of that name, small enough for a test. changes: further overrides."""
    from vlseg.config import load
    from vlseg.training.config import TrainConfig

    small = ["data.images=4", "data.queries=3", "data.workers=0", "data.val_limit=3", "model.area=4096", "threads=1",
             "log_every=1", "eval_every=0", "grid_every=0", "save_every=2", "keep=9", "optim.warmup=1", "trackers=[]",
             "optim.lr=1e-3", "export_dtype=float32", "steps=3"]  # fmt: skip
    if (source / "preprocessor_config.json").exists():  # not vlseg's own
        small.append(f"model.build={json.dumps(SMALL)}")
    ranks = {"rank": 2, "alpha": 4, "start_rank": 3, "every": 1, "grow": 0.0, "settle": 0.0}
    if name in ("lora", "qlora"):
        small += ["adapter.rank=2", "adapter.alpha=4", "adapter.dropout=0.1"]
    elif name == "adalora":
        small += [f"adapter.{key}={value}" for key, value in ranks.items()]
    elif name == "adalora-qat":
        ranks["settle"] = 0.34  # the last of three steps goes without the ranks that are gone
        small += [f"first.adapter.{key}={value}" for key, value in ranks.items()]
        small += ["first.steps=3", "first.optim.lr=1e-3", "first.optim.warmup=1", "qat.group=16", "qat.measure=false"]
    elif name == "qat":
        small += ["qat.group=16", "qat.measure=false"]
    named = [f"out={out}", f"model={source}", f"data.train={data}", f"data.val={data}"]
    return load(TrainConfig, CONFIGS / "train" / f"{name}.yaml", [*small, *named, *changes])


def fresh_state() -> None:
    """Let Accelerate forget the run before."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def watched(stop: int, told: dict[str, Any]) -> Callable[[], None]:
    """From now on the first run is interrupted after step `stop`, and `told` hears how runs go; the result ends it."""
    from vlseg.training.loop import Trainer

    plain = Trainer.train_step

    def step(self: Any, batches: Any) -> Any:
        if self.config.out.rpartition("/")[2] == "first":
            return plain(self, batches)
        if not hasattr(self, "watched"):
            self.watched = True
            told.setdefault("begins", []).append(self.step)
        if self.step == stop - 1 and "stopped" not in told:
            told["stopped"] = True
            self.stop_signal = 15  # every rank hears it before the step, as from a launcher
        record = plain(self, batches)
        told.update(spread(self))
        return record

    Trainer.train_step = step  # type: ignore[method-assign]

    def undo() -> None:
        Trainer.train_step = plain  # type: ignore[method-assign]

    return undo


def spread(run: Any) -> dict[str, Any]:
    """How a run is spread after a step: this rank's weights and moments of the optimizer, and those of all."""
    from vlseg.training.distributed import sharded_parameters

    mine, total = sharded_parameters(run.model)
    optimizer = run.optimizer
    while hasattr(optimizer, "optimizer"):  # inside the wrappers of Accelerate and DeepSpeed
        optimizer = optimizer.optimizer
    moments = [entry["exp_avg"] for entry in optimizer.state.values() if "exp_avg" in entry]
    return {
        "sharding": run.sharding,
        "processes": run.accelerator.num_processes,
        "weights": mine,
        "all_weights": total,
        "moments": sum(m.to_local().numel() if hasattr(m, "to_local") else m.numel() for m in moments),
        "all_moments": sum(getattr(p, "ds_numel", p.numel()) for p in run.plain.parameters() if p.requires_grad),
    }


def train_in_two_goes(config: Any, stop: int) -> dict[str, Any]:
    """Interrupt a run after step `stop`, and let the same command finish it.

    Returns how it was spread (see `spread`), and as "begins" the step at which each go began.
    """
    import copy

    from vlseg.training.loop import Stopped, train

    told: dict[str, Any] = {}
    undo = watched(stop, told)
    try:
        with contextlib.suppress(Stopped):
            train(copy.deepcopy(config))
            raise AssertionError("the run was not interrupted")
        fresh_state()
        train(copy.deepcopy(config))
    finally:
        undo()
        fresh_state()
    return told


def in_two_goes(rank: int, jobs: list[list[Any]]) -> dict[str, Any]:
    """Work of one rank: [recipe, out, source, data, changes] each of two steps, interrupted after the first.

    Returns by name of `out` what `train_in_two_goes` does, the losses, and as "other" the names of weights that an
    uninterrupted run of the same settings ends with otherwise; or the words in which it was refused.
    """
    from vlseg.training.loop import train
    from vlseg.types import VLSegError

    told: dict[str, Any] = {}
    for name, out, source, data, changes in jobs:
        config = recipe(name, Path(out), Path(source), Path(data), "steps=2", *changes)
        try:
            told[Path(out).name] = train_in_two_goes(config, stop=1)
        except VLSegError as error:
            told[Path(out).name] = {"refused": str(error)}
            continue
        whole = Path(out).with_name(f"{Path(out).name}-whole")
        train(recipe(name, whole, Path(source), Path(data), "steps=2", *changes))
        fresh_state()
        if rank == 0:
            told[Path(out).name] |= {"losses": losses(Path(out)), "other": differing(Path(out), whole)}
    return told


def differing(out: Path, other: Path) -> list[str]:
    """Names of the weights in which what two runs have left differs in any bit."""
    import torch

    mine, theirs = weights(out / "final"), weights(other / "final")
    return sorted(mine.keys() ^ theirs.keys()) + [
        n for n in mine if n in theirs and not torch.equal(mine[n], theirs[n])
    ]


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint folder."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def losses(out: Path) -> list[float]:
    """The loss of every step."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes() -> Any:
    """A multiprocessing context whose processes are forked from one that has imported torch and all else once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["many_runs", "vlseg.training.loop", "vlseg.segmenter", "vlseg.models.build"])
    return context


def in_ranks(
    work: Callable[[int, Any], Any], argument: Any, ranks: int, folder: Path, launch: str = "cpu"
) -> list[Any]:
    """`work(rank, argument)` in new processes as torchrun would start them; their results (JSON) in order of rank.

    launch: the shipped accelerate config whose settings they get. One process is a plain one.
    """
    import torch.multiprocessing as mp

    from vlseg.config import read_yaml
    from vlseg.training.launch import variables

    processes()
    folder.mkdir(parents=True, exist_ok=True)
    settings = variables(read_yaml(CONFIGS / "accelerate" / f"{launch}.yaml"))
    arguments = (work, argument, ranks, free_port(), folder, settings)
    mp.start_processes(_rank, arguments, nprocs=ranks, start_method="forkserver")
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def _rank(
    rank: int,
    work: Callable[[int, Any], Any],
    argument: Any,
    ranks: int,
    port: int,
    folder: Path,
    settings: dict[str, str],
) -> None:
    import torch

    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **settings})
    try:
        result = work(rank, argument)
    except BaseException:
        traceback.print_exc()
        raise
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
