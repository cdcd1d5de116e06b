"""Every shipped recipe in one process and in two: trains, is interrupted, goes on, and reloads; equal gradients."""

import copy
import json
import shutil

import many_runs
import pytest
import torch
from many_runs import RECIPES, differing, in_ranks, losses, recipe, train_in_two_goes

from vlseg.models.modeling import VLSegModel
from vlseg.segmenter import Segmenter
from vlseg.training import checkpoint, merge, state
from vlseg.training.loop import Trainer, train
from vlseg.types import VLSegError

# Half of them start from a plain vision-language model, as users' runs do, and half from a checkpoint of vlseg.
PLAIN = {"lora", "qlora", "adalora-qat"}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    many_runs.fresh_state()


@pytest.fixture(scope="module")
def source_of(tiny_folder, vlm_folder):
    return lambda name: vlm_folder if name in PLAIN else tiny_folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the interrupted runs, filled by the first test."""
    return tmp_path_factory.mktemp("runs")


# Each recipe is run in one process or in two; qat as the second run of adalora-qat. Slow: all of them in both.
TWO = ("qlora", "adalora-qat")
IN_ONE = [n if n not in (*TWO, "qat") else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES]
IN_TWO = [TWO, pytest.param(RECIPES, marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", IN_ONE)
def test_one_process(name, runs, source_of, blocks_jsonl):
    out = runs / name
    config = recipe(name, out, source_of(name), blocks_jsonl)
    assert train_in_two_goes(config, stop=2)["begins"] == [0, 2]
    assert [folder.name for folder in checkpoint.step_folders(out / "checkpoints")] == ["step-2", "step-3"]
    assert len(losses(out)) == 3
    final = VLSegModel.from_pretrained(out / "final").state_dict()
    again = Trainer(copy.deepcopy(config) if not config.first else with_source(config, out / "first" / "final"))
    state.resume(again)
    assert again.step == 3
    merged = merge.merged_state(again.plain)
    assert {k for k, v in final.items() if not torch.equal(v, merged[k])} == set()
    moved = Trainer(recipe(name, out.with_name("fresh"), source_of(name), blocks_jsonl)).core.state_dict()
    same = [k for k, v in final.items() if k in moved and torch.equal(v, moved[k].float())]
    assert len(same) < len(final)
    assert (out / "final" / "adapter").exists() == (config.adapter.kind != "none")
    answers = Segmenter(out / "final", device="cpu")(blocks_jsonl.parent / "0.png", ["the red mug", "the big cat"])
    assert [answer.text for answer in answers] == ["the red mug", "the big cat"]


def with_source(config, folder):
    """The second run of a recipe with two."""
    second = copy.deepcopy(config)
    second.model.source, second.model.build, second.first = str(folder), {}, {}
    return second


@pytest.mark.parametrize("name", IN_ONE)
def test_an_interrupted_run_ends_at_the_same_bits(name, runs, source_of, blocks_jsonl, tmp_path):
    if not (runs / name / "final").exists():
        pytest.skip("the run of test_one_process failed, or was not chosen")
    train(recipe(name, tmp_path, source_of(name), blocks_jsonl))
    assert differing(tmp_path, runs / name) == []


def test_adalora_leaves_its_ranks(runs):
    if not (runs / "adalora" / "final").exists():
        pytest.skip("the run of test_one_process failed, or was not chosen")
    lines = [json.loads(line) for line in (runs / "adalora" / "metrics.jsonl").read_text().splitlines()]
    ranks = [line["adapters"]["rank"] for line in lines if "adapters" in line]
    assert ranks[0] >= ranks[-1]
    assert ranks[-1] <= 2
    assert (runs / "adalora" / "ranks.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads((runs / "adalora" / "final" / "adapter" / "adapter_config.json").read_text())
    assert len(set(written["rank_pattern"].values())) > 1


def in_two_processes(rank, jobs):
    """Work of one rank: every recipe in two goes, and the gradients of a first step."""
    told = {"recipes": many_runs.in_two_goes(rank, jobs["recipes"])}
    for name, (out, source, data) in jobs["gradients"].items():
        trainer = Trainer(gradient_config(name, *map(many_runs.Path, (out, source, data))))
        assert trainer.accelerator.num_processes == 2
        told["queries"] = int(next(trainer.batches()).packed.valid.sum())
        gradients = first_gradients(trainer)
        if rank == 0:
            torch.save(gradients, f"{out}.pt")
        many_runs.fresh_state()
    return told


def gradient_config(name, out, source, data):
    exact = ["mixed_precision=no", "model.checkpointing=false"]
    if name == "lora":
        exact += ["model.base=float32", "adapter.dropout=0", "adapter.where=[decoder, pixel]"]
    return recipe(name, out, source, data, *exact)


def first_gradients(trainer):
    """Of the first step, before clipping; adapters are no longer at their start, where half of them has none."""
    found = {}
    with torch.no_grad():
        for name, weight in trainer.plain.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))

    def keep(**_):
        found.update({n.removeprefix("module."): p.grad.clone() for n, p in trainer.model.named_parameters()
                      if p.grad is not None})  # fmt: skip

    trainer.config.optim.clip = 1e9
    trainer.engine.clear = keep
    trainer.train_step([next(trainer.batches())])
    return found


@pytest.mark.parametrize("names", IN_TWO, ids=["some", "all"])
def test_two_processes(names, source_of, idle_folder, blocks_jsonl, tmp_path):
    """One launch for all. The processes have different numbers of queries, and step as one process would."""
    jobs = {
        "recipes": [
            *([name, str(tmp_path / name), str(source_of(name)), str(blocks_jsonl), []] for name in names),
            ["full", str(tmp_path / "idle"), str(idle_folder), str(blocks_jsonl), ["mixed_precision=no"]],
        ],
        "gradients": {
            name: [str(tmp_path / f"{name}-gradients"), str(source_of(name)), str(blocks_jsonl)]
            for name in ("lora", "full")
        },
    }
    told = in_ranks(in_two_processes, jobs, 2, tmp_path / "ranks")
    assert told[0]["queries"] != told[1]["queries"]
    for name, found in told[0]["recipes"].items():
        assert (found["processes"], found["sharding"], found["weights"]) == (2, "none", found["all_weights"])
        assert found["begins"] == [0, 1]
        assert len(found["losses"]) == 2
        assert all(0 < loss < 100 for loss in found["losses"])
        assert found["other"] == []
        Segmenter(tmp_path / name / "final", device="cpu")
    assert set(told[0]["recipes"]) == {*names, "idle"}
    for name in jobs["gradients"]:
        config = gradient_config(name, tmp_path / f"{name}-alone", source_of(name), blocks_jsonl)
        same_gradients(first_gradients(Trainer(config)), torch.load(f"{jobs['gradients'][name][0]}.pt"))
        many_runs.fresh_state()
    goes_on_alone(tmp_path / "idle", idle_folder, blocks_jsonl, told[0]["recipes"]["idle"]["losses"])


def same_gradients(alone, both):
    """Of one process and of two; nearly all of them are not zero."""
    assert alone.keys() == both.keys()
    assert len(alone) > 40
    zero = [name for name, value in alone.items() if not value.any()]
    assert len(zero) < 0.1 * len(alone)  # names of nouns in photographs, rows of tokens that are never fed
    assert not [name for name in zero if "lora_" in name]
    for name, value in alone.items():
        scale = max(float(value.abs().max()), 1)
        torch.testing.assert_close(both[name], value, atol=1e-5 * scale, rtol=1e-3, msg=lambda t, n=name: f"{n}: {t}")


def goes_on_alone(out, source, data, before):
    """What two processes left one can finish, on the data where they were, and comes to the same loss."""
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "checkpoints" / "step-2")
    found = checkpoint.load_newest(out / "checkpoints")
    assert (found["step"], found["ranks"]) == (1, 2)
    train(recipe("full", out, source, data, "steps=2", "mixed_precision=no"))
    after = losses(out)
    assert after[0] == before[0]
    assert after[1] == pytest.approx(before[1], rel=1e-4)
    assert before[1] != pytest.approx(before[0], rel=2e-3)  # another step, or other data, would be seen
    assert (out / "final" / "model.safetensors").exists()


def test_a_run_of_another_kind_is_not_taken_up(runs, source_of, blocks_jsonl):
    if not (runs / "lora" / "checkpoints").exists():
        pytest.skip("the run of test_one_process failed, or was not chosen")
    other = Trainer(recipe("lora", runs / "lora", source_of("lora"), blocks_jsonl, "adapter.where=[decoder]"))
    with pytest.raises(VLSegError, match="a run with other adapters"):
        state.resume(other)
    other.sharding = "fsdp2"
    with pytest.raises(VLSegError, match="written with sharding none, this run has fsdp2"):
        state.resume(other)


def test_adapters_are_not_taken_up_on_another_base(runs, tiny_folder, blocks_jsonl, tmp_path):
    """One weight of the base is another since the run was interrupted: its adapters would mean nothing."""
    out, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    config = recipe("adalora", out, base, blocks_jsonl)
    assert train_in_two_goes(config, stop=2)["begins"] == [0, 2]
    state.resume(Trainer(copy.deepcopy(config)))
    model = VLSegModel.from_pretrained(base)
    model.vlm.model.language_model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    model.save_pretrained(base)
    with pytest.raises(VLSegError, match="step-3: its adapters were trained on other weights than"):
        state.resume(Trainer(copy.deepcopy(config)))


def test_full_disk_falls_back_saying_so(runs, source_of, blocks_jsonl, monkeypatch, capsys, tmp_path):
    plain, calls = torch.save, []

    def full(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return plain(*args, **options)

    monkeypatch.setattr(torch, "save", full)
    train(recipe("full", tmp_path, source_of("adalora"), blocks_jsonl, "save_every=1"))
    told = capsys.readouterr().err
    assert "checkpoint of step 2 was not written (No space left on device); the last whole one is step-1" in told
    assert [p.name for p in checkpoint.step_folders(tmp_path / "checkpoints")] == ["step-1", "step-3"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_recipes_name_every_setting_that_they_use():
    for name in RECIPES:
        text = (many_runs.CONFIGS / "train" / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert f"vlseg train {name} " in text
