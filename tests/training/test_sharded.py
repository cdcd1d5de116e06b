"""Weights spread over processes: FSDP2 and ZeRO on gloo train, are interrupted, go on, and leave whole weights."""

import contextlib
import copy
import importlib.util
import io
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import many_runs
import pytest
import torch
from many_runs import RECIPES, free_port, in_ranks, in_two_goes, losses, recipe

from vlseg.config import dump_yaml
from vlseg.segmenter import Segmenter
from vlseg.systems.registry import EMBEDDED, WEIGHTS
from vlseg.training import checkpoint
from vlseg.training.loop import train

ROOT = Path(__file__).resolve().parents[2]

EXACT = ["mixed_precision=no", "model.checkpointing=false"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    many_runs.fresh_state()


def check_spread(told, launch):
    """Two processes, each with about half of what this way of sharding spreads."""
    assert [found["processes"] for found in told] == [2, 2]
    assert {found["sharding"] for found in told} == {launch}
    for found in told:
        assert 0.3 * found["all_moments"] < found["moments"] < 0.7 * found["all_moments"]
        if launch == "zero2":
            assert found["weights"] == found["all_weights"]
        else:
            assert 0.3 * found["all_weights"] < found["weights"] < 0.7 * found["all_weights"]


@pytest.mark.parametrize(
    "launch", ["fsdp2", pytest.param("zero2", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)]
)
def test_full_fine_tuning(launch, tiny_folder, blocks_jsonl, tmp_path):
    """Steps as one process, whichever way the weights are spread."""
    jobs = [["full", str(tmp_path / "run"), str(tiny_folder), str(blocks_jsonl), EXACT]]
    told = in_ranks(in_two_goes, jobs, 2, tmp_path / "ranks", launch)
    check_spread([found["run"] for found in told], launch)
    settings = recipe("full", tmp_path / "alone", tiny_folder, blocks_jsonl, "steps=2", *EXACT)
    train(copy.deepcopy(settings))
    alone = losses(tmp_path / "alone")
    assert told[0]["run"]["losses"] == pytest.approx(alone, rel=1e-3)
    whole, apart = (many_runs.weights(tmp_path / name / "final") for name in ("alone", "run"))
    assert whole.keys() == apart.keys()
    assert all(whole[name].shape == apart[name].shape for name in whole)
    far = {name: float((whole[name] - apart[name]).abs().max()) for name in whole}
    assert sum(distance > 1e-4 for distance in far.values()) < 0.1 * len(whole)
    # A step of AdamW moves no weight further than its rate; where a gradient is noise about zero, one run may go up
    # and the other down.
    optim = settings.optim
    most = 2.1 * settings.steps * optim.lr * max(1.0, optim.head_scale, optim.embedding_scale)
    assert {name: distance for name, distance in far.items() if distance > most} == {}
    start = many_runs.weights(tiny_folder)
    moved = [name for name in apart if (apart[name] - start[name].float()).abs().max() > optim.lr / 10]
    assert len(moved) > 0.8 * len(apart)
    Segmenter(tmp_path / "run" / "final", device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["fsdp2", "zero3"])
def test_the_embedded_model_as_the_recipe_trains_it(launch, blocks_jsonl, tmp_path):
    """With all that the tiny model lacks: groups, a tower of timm that recomputes, bf16, several steps of one graph."""
    jobs = [["full", str(tmp_path / "run"), "vlseg-mini", str(blocks_jsonl), ["model.area=4096", "steps=4"]]]
    told = in_ranks(in_two_goes, jobs, 2, tmp_path / "ranks", launch)
    check_spread([found["run"] for found in told], launch)
    assert len(told[0]["run"]["losses"]) == 4
    if launch == "fsdp2":  # ZeRO-3 comes near (test_full_fine_tuning), not to the same bits
        assert told[0]["run"]["other"] == []
    start, end = (many_runs.weights(folder) for folder in (WEIGHTS / EMBEDDED, tmp_path / "run" / "final"))
    moved = [name for name in end if not torch.equal(end[name].float(), start[name].float())]
    assert len(moved) > 0.8 * len(end)
    Segmenter(tmp_path / "run" / "final", device="cpu")


def on_a_full_disk(rank, job):
    """Work of one rank: four steps, each saved. At the second the other rank's disk is full, at the third main's.

    Then adapters whose base is another when the same command goes on; the line in which that was refused.
    """
    from torch import distributed

    from vlseg.models.modeling import VLSegModel
    from vlseg.training import checkpoint, state
    from vlseg.training.loop import Trainer
    from vlseg.types import VLSegError

    out, base, data = map(Path, job)
    plain_share, plain_begin = state.save_shards, checkpoint.begin

    def share(engine, sharding, folder, frozen):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 1 and folder.name == ".step-2.partial":
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            plain_share(engine, sharding, folder, frozen)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def begin(root, step):
        if step == 3:
            raise OSError(28, "No space left on device")
        return plain_begin(root, step)

    state.save_shards, checkpoint.begin = share, begin
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        train(recipe("full", out / "full", base, data, "steps=4", "save_every=1", *EXACT))
    state.save_shards, checkpoint.begin = plain_share, plain_begin
    many_runs.fresh_state()
    settings = recipe("lora", out / "lora", base, data, "steps=2", "model.base=float32", *EXACT)
    train(copy.deepcopy(settings))
    many_runs.fresh_state()
    if rank == 0:
        model = VLSegModel.from_pretrained(base)
        model.vlm.model.language_model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
        model.save_pretrained(base)
    distributed.barrier()
    try:
        state.resume(Trainer(settings))
    except VLSegError as error:
        return {"said": said.getvalue(), "refused": str(error)}


@pytest.mark.parametrize(
    "launch", ["fsdp2", pytest.param("zero2", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)]
)
def test_a_full_disk_and_another_base(launch, tiny_folder, blocks_jsonl, tmp_path):
    """No rank waits for one that could not write; nothing half written is left; the next checkpoint is whole."""
    shutil.copytree(tiny_folder, tmp_path / "base")
    job = [str(tmp_path), str(tmp_path / "base"), str(blocks_jsonl)]
    told = in_ranks(on_a_full_disk, job, 2, tmp_path / "ranks", launch)
    for step, reason in ((2, r".*(File too large|takes no file so large)"), (3, "No space left on device")):
        line = rf"checkpoint of step {step} was not written \({reason}\); the last whole one is step-1; going on"
        assert re.search(line, told[0]["said"])
    root = tmp_path / "full" / "checkpoints"
    assert sorted(folder.name for folder in root.iterdir()) == ["step-1", "step-4"]
    assert checkpoint.damage(root / "step-4") is None
    assert (tmp_path / "full" / "final" / "model.safetensors").exists()
    assert all("step-2: its adapters were trained on other weights than" in found["refused"] for found in told)


def in_one_go(rank, job):
    """Work of one rank: train to the end, whatever is there; the line in which that was refused."""
    from vlseg.types import VLSegError

    out, source, data = map(Path, job)
    try:
        train(recipe("full", out, source, data, "steps=3", *EXACT))
    except VLSegError as error:
        return str(error)
    return losses(out) if rank == 0 else None


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["fsdp2", "zero2", "zero3"])
def test_another_number_of_processes(launch, tiny_folder, blocks_jsonl, tmp_path):
    """FSDP2's shards are dealt anew; ZeRO's cannot be, and that is said."""
    out, source, data = str(tmp_path / "run"), str(tiny_folder), str(blocks_jsonl)
    in_ranks(in_two_goes, [["full", out, source, data, EXACT]], 2, tmp_path / "two", launch)
    told = in_ranks(in_one_go, [out, source, data], 3, tmp_path / "three", launch)
    if launch == "fsdp2":
        train(recipe("full", tmp_path / "alone", tiny_folder, blocks_jsonl, "steps=3", *EXACT))
        assert told[0] == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
        Segmenter(tmp_path / "run" / "final", device="cpu")
    else:
        assert all(f"written by 2 processes under {launch}, which cannot go on with 3" in line for line in told)


@pytest.fixture
def script(monkeypatch):
    """benchmarks/recipes.py as a module."""
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "benchmarks" / "recipes.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


REFUSED = {
    ("adalora", "fsdp2"), ("adalora", "zero2"), ("adalora", "zero3"),
    ("adalora-qat", "fsdp2"), ("adalora-qat", "zero2"), ("adalora-qat", "zero3"),
    ("qlora", "fsdp2"), ("qlora", "zero3"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["fsdp2", "zero2", "zero3"])
def test_every_recipe(launch, script, vlm_folder, blocks_jsonl, tmp_path):
    """What the committed table says."""
    cells = script.cells(launch, list(RECIPES), vlm_folder, blocks_jsonl, tmp_path)
    page = script.PAGE.read_text()
    for name, cell in cells.items():
        assert ("refused" in cell) == ((name, launch) in REFUSED), (name, cell)
        if "refused" not in cell:
            assert cell["resumed"]
            assert cell["reloaded"]
            assert cell["processes"] == 2
            assert cell["moments"] < 0.7
            assert (cell["weights"] < 0.7) == (launch != "zero2")
        assert script.shown(cell) in next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))


def test_the_table_tells_what_failed(script):
    good = {"processes": 2, "sharding": "fsdp2", "resumed": True, "reloaded": True, "weights": 0.5, "moments": 0.51}
    table = {
        "single": {"lora": {**good, "sharding": "none"}},
        "fsdp2": {"lora": {**good, "resumed": False}},
        "zero3": {"lora": {"refused": "model.base=nf4 under zero3: quantised weights cannot be sharded"}},
    }
    lines = script.page(table).splitlines()
    assert "| recipe | 1 process | FSDP2 | ZeRO-3 |" in lines
    assert (
        "| `lora` | ran, resumed, reloaded | ran, DID NOT RESUME, reloaded, 50% of the weights and 51% of the moments "
        "a process | refused: quantised weights cannot be sharded |" in lines
    )


@pytest.mark.slow
def test_two_nodes(tiny_folder, blocks_jsonl, tmp_path):
    """Two starts of torchrun that know each other by address, as two machines would."""
    settings = recipe("full", tmp_path / "run", tiny_folder, blocks_jsonl, "steps=2", *EXACT)
    (tmp_path / "run.yaml").write_text(dump_yaml(settings))
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    address = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    call = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *address]
    ends = ["-m", "vlseg.cli", "train", str(tmp_path / "run.yaml")]
    nodes = [subprocess.Popen([*call, "--node-rank", str(node), *ends], env=variables) for node in range(2)]
    assert [node.wait(500) for node in nodes] == [0, 0]
    train(recipe("full", tmp_path / "alone", tiny_folder, blocks_jsonl, "steps=2", *EXACT))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-2" / "state.pt", weights_only=True)
    assert state["ranks"] == 2
