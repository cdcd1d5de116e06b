"""Training the refiner: it learns, goes on after a kill to the same weights, and is fed with a model's own masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlseg.config import dump_yaml, load
from vlseg.data.registry import open_dataset
from vlseg.losses.refine import iou_of, refine_loss
from vlseg.masks import rle as codec
from vlseg.models.presets import build_preset
from vlseg.models.refiner import Refiner, RefinerConfig
from vlseg.models.refiner_crop import refine
from vlseg.systems.base import segment_of
from vlseg.systems.devices import pick_device
from vlseg.systems.native import NativeSystem
from vlseg.training.batches import SceneBatches
from vlseg.training.config import DataSection, OptimSection, PathSection, Stage
from vlseg.training.paths import learn_paths
from vlseg.training.refine import RefinerTrainer, RefineTraining, main
from vlseg.training.refine_examples import crops, drawn_examples, load_examples, rollouts, save_examples, scene_examples
from vlseg.training.reinforce_rollouts import RollOut, roll_outs
from vlseg.types import Answer, VLSegError
from vlseg.worlds.sprites import SpriteWorld

TINY = RefinerConfig(tower="test_convnext", size=64, dim=32, fine=[24, 16], tokens=2, blocks=1, heads=2, iterations=2)


@pytest.fixture(autouse=True)
def short_validation(monkeypatch):
    monkeypatch.setattr("vlseg.training.refine.CHECKED", 2)


def settings(out: Path, **changes) -> RefineTraining:
    run = RefineTraining(out=str(out), steps=6, batch=4, sizes=[32, 64], log_every=2, eval_every=4, save_every=2)
    optim = OptimSection(lr=2e-3, matrix_lr=5e-3, warmup=2, ema=0.9)
    return replace(run, model=TINY, optim=optim, bfloat16=False, **changes)


def test_a_tiny_refiner_overfits_a_few_cases():
    torch.manual_seed(0)
    model = Refiner(TINY)
    examples = scene_examples(21, 0, 4, kinds=["written path", "wobbly", "leaked"], size=(128, 128))
    pixels, coarse, truth = crops(examples, TINY)
    assert ((truth.mean((1, 2)) > 0.03) & (truth.mean((1, 2)) < 0.95)).all()
    before = iou_of(coarse - 0.5, truth).mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(50):
        losses = refine_loss([(step.logits, step.iou) for step in model(pixels, coarse, 2)], truth)
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    found = [refine(model, example.image, [example.coarse], 2)[0] for example in examples]
    truths = [codec.decode(example.truth) for example in examples]
    after = np.mean([(f.mask & t).sum() / (f.mask | t).sum() for f, t in zip(found, truths, strict=True)])
    assert before < 0.85
    assert after > before + 0.08  # at the size of the image, not of the crop
    expected = np.mean([f.iou for f in found])
    assert abs(expected - after) < 0.1


def test_examples_are_the_same_each_time_and_large_enough():
    first, again = scene_examples(5, 3, 7), scene_examples(5, 3, 7)
    assert len(first) == 7
    for one, other in zip(first, again, strict=True):
        assert (one.coarse, one.truth, one.kind) == (other.coarse, other.truth, other.kind)
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
        assert max(codec.bbox(one.truth)[2:]) >= 16
        assert codec.area(one.coarse) > 0
        assert one.truth["size"] == [one.image.height, one.image.width]
    assert scene_examples(5, 4, 7)[0].truth != first[0].truth
    assert {e.kind for e in scene_examples(5, 0, 6, kinds=["holes"])} == {"holes"}


def test_mirrored_crops_stay_together():
    examples = scene_examples(5, 0, 6)
    plain = crops(examples, TINY)
    mirrored = crops(examples, TINY, np.random.default_rng(0))
    flipped = [not torch.equal(a, b) for a, b in zip(plain[0], mirrored[0], strict=True)]
    assert any(flipped)
    assert not all(flipped)
    for i, turned in enumerate(flipped):
        for a, b in zip(plain, mirrored, strict=True):
            assert torch.equal(b[i], a[i].flip(-1) if turned else a[i])


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch):
    whole = RefinerTrainer(settings(tmp_path / "whole"))
    whole.run()
    step = RefinerTrainer.train_step

    def dies(self):
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(RefinerTrainer, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        RefinerTrainer(settings(tmp_path / "cut")).run()
    assert not (tmp_path / "cut" / "final").exists()
    monkeypatch.setattr(RefinerTrainer, "train_step", step)
    second = RefinerTrainer(settings(tmp_path / "cut"))
    second.run()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key
    files = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "mask" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "iou_3" in line] == [4, 6]
    assert Refiner.from_pretrained(tmp_path / "cut" / "final").config == TINY
    assert load(RefineTraining, tmp_path / "cut" / "config.yaml") == second.config


def begun(out: Path) -> RefineTraining:
    """The settings of a run of which two steps are done."""
    config = settings(out)
    config.steps = 2
    RefinerTrainer(config).run()
    return config


def test_a_run_goes_on_with_its_own_settings_only(tmp_path: Path, capsys):
    """Another shape and other data are refused in one line; longer it may get, and says so."""
    config = begun(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    for changes, words in (
        ({"model": replace(TINY, dim=16, iterations=3)}, "model.dim=32, now 16; model.iterations=2, now 3"),
        ({"batch": 5}, "batch=4, now 5"),
        ({"optim": replace(config.optim, lr=1.0)}, "optim.lr=0.002, now 1.0"),
    ):
        with pytest.raises(VLSegError, match="this run began with") as told:
            RefinerTrainer(replace(config, **changes)).run()
        assert words in str(told.value)
        assert "choose another folder with out=" in str(told.value)
        assert "\n" not in str(told.value)
        assert (tmp_path / "config.yaml").read_text() == before
    capsys.readouterr()
    longer = RefinerTrainer(replace(config, steps=3, log_every=1))
    longer.run()
    assert longer.step == 3
    assert "steps=3, where the run began with 2" in capsys.readouterr().err
    assert longer.model.device == pick_device(None)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(VLSegError, match=r"config\.yaml"):
        RefinerTrainer(config).run()


class Squares:
    """Answers every query with the same square; "absent" for a query that says "no"."""

    name, protocol, modes, presence_threshold = "squares", "squares", ("mask", "path"), 0.5
    asked: list[str]

    def __init__(self):
        self.asked = []

    def segment_batch(self, images, queries, *, presence_threshold=None, mask_threshold=0.5, mode="mask"):
        assert presence_threshold == 0.0
        self.asked.append(mode)
        mask = np.zeros((64, 64), bool)
        mask[10:30, 10:30] = True
        return [[Answer(t, "found", 0.9, (64, 64), segments=[segment_of(mask, 0.9)]) for t in row] for row in queries]


def labelled(folder: Path) -> str:
    """Two pictures: a square near the one that is answered, one far from it, one without a target."""
    rows = []
    for n in range(2):
        Image.fromarray(np.full((64, 64, 3), 40 * n, np.uint8)).save(folder / f"{n}.png")
        near, far = np.zeros((2, 64, 64), bool)
        near[12:32, 10:30] = far[40:60, 40:60] = True
        queries = [("near", [near]), ("far", [far]), ("none", [])]
        masks = [{"text": text, "masks": [codec.encode(m) for m in own]} for text, own in queries]
        rows.append(json.dumps({"image": f"{n}.png", "queries": masks}))
    (folder / "data.jsonl").write_text("\n".join(rows))
    return str(folder / "data.jsonl")


def test_rollouts_feed_the_training(tmp_path: Path):
    system = Squares()
    found = list(rollouts(system, open_dataset(labelled(tmp_path)), "path"))
    assert system.asked == ["path", "path"]
    assert len(found) == 2  # what is about another object is left out
    for example in found:
        assert example.kind == "squares, path"
        assert codec.area(example.coarse) == codec.area(example.truth) == 400
        assert codec.iou([example.coarse], [example.truth])[0, 0] == pytest.approx(360 / 440)
    assert save_examples(found, tmp_path / "made") == 2
    again = load_examples(tmp_path / "made")
    for one, other in zip(found, again, strict=True):
        assert (one.coarse, one.truth, one.kind) == (other.coarse, other.truth, other.kind)
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
    trainer = RefinerTrainer(settings(tmp_path / "run", rollouts=[str(tmp_path / "made")], rollout_share=0.5))
    kinds = [example.kind for example in trainer.examples(0)]
    assert kinds[:2] == ["squares, path"] * 2
    assert len(kinds) == 4
    assert "squares, path" not in kinds[2:]
    assert np.isfinite(trainer.train_step()["total"])


def test_drawn_masks_are_examples_too():
    image, mask = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), bool)
    mask[5:15, 5:15] = True
    masks = [np.roll(mask, 1, 1), np.roll(mask, 15, 1), mask & False]
    (found,) = drawn_examples([RollOut(image, coarse, mask, []) for coarse in masks], "drawn")
    assert found.image.size == (30, 20)
    assert (found.coarse, found.truth) == (codec.encode(masks[0]), codec.encode(mask))


@pytest.fixture(scope="module")
def writer():
    """A tiny model that writes paths by chance, as a system, and the scenes it is asked about."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, PathSection(on=True, grid=4, box_bins=4, max_tokens=12))
    return NativeSystem(model, processor, "tiny")


def test_what_a_model_draws_trains_a_refiner(tmp_path: Path, writer):
    """`roll_outs` of reinforcement, those of them that are about the object, on disk, and in a step of training."""
    feed = SceneBatches(DataSection(seed=1, queries=4), [Stage(9, 2, [[64, 96]])], writer.processor, 9)
    drawn = list(roll_outs(writer.model, writer.processor, [feed[4]], queries=4, group=16))
    found = list(drawn_examples(drawn, "drawn"))
    overlaps = [(one.coarse & one.truth).sum() / (one.coarse | one.truth).sum() for one in drawn]
    assert 1 <= len(found) == sum(overlap >= 0.2 for overlap in overlaps) < len(drawn)
    assert save_examples(found, tmp_path / "made") == len(found)
    run = settings(tmp_path / "run", rollouts=[str(tmp_path / "made")], rollout_share=0.5)
    trainer = RefinerTrainer(run)
    assert [example.kind for example in trainer.examples(0)][:2] == ["drawn"] * 2
    assert np.isfinite(trainer.train_step()["total"])


def test_paths_are_drawn_at_a_temperature(writer, monkeypatch):
    monkeypatch.setattr("vlseg.training.refine_examples.USELESS", 0.01)  # few that are drawn by chance are better
    data = open_dataset("sprites?n=4&seed=3&size=64x64&queries=8")
    first, again, other = (list(rollouts(writer, data, "path", 1.5, seed)) for seed in (1, 1, 2))
    assert len(first) > 2
    assert [example.coarse for example in first] == [example.coarse for example in again]
    assert [example.coarse for example in first] != [example.coarse for example in other]
    assert {example.kind for example in first} == {"tiny, path drawn at 1.5"}
    assert all(codec.iou([example.coarse], [example.truth])[0, 0] >= 0.01 for example in first)
    for mode, temperature, words in (("mask", 1.0, "only paths are drawn"), ("path", -1.0, "at least 0")):
        with pytest.raises(VLSegError, match=words):
            next(rollouts(writer, data, mode, temperature))


def test_the_command(tmp_path: Path, tiny_folder: Path, capsys):
    data = "sprites?n=1&seed=3&size=96x96&queries=8"
    out = tmp_path / "made"
    assert main(["rollouts", f"out={out}", f"model={tiny_folder}", f"data={data}"]) == 0
    assert (out / "examples.jsonl").exists()
    run = settings(tmp_path / "run", start=str(tiny_folder))
    run.steps = 1
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(run))
    trainer = RefinerTrainer(load(RefineTraining, file))
    from safetensors.torch import load_file

    weights = load_file(tiny_folder / "model.safetensors")
    for key, value in trainer.model.trunk.state_dict().items():
        assert torch.equal(value, weights[f"pixel_encoder.trunk.{key}"].float())
    trainer.model.save_pretrained(tmp_path / "refiner", torch.float32)
    run = settings(tmp_path / "on", start=str(tmp_path / "refiner"))
    run.seed += 1
    before = trainer.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in RefinerTrainer(run).model.state_dict().items())
    run.model.dim *= 2
    with pytest.raises(VLSegError, match="no refiner of this shape"):
        RefinerTrainer(run)
    assert main(["--help"]) == 0
    assert "rollout_share" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stepz=3"], "steps"),
        (["sizes=[50]"], "multiples of 16"),
        (["start=/no/such"], "no model.safetensors"),
        (["rollouts=[/no/such]"], "cannot be read"),
        (["rollouts", "mode=ring"], "mode=ring"),
    ],
)
def test_wrong_calls(tmp_path: Path, capsys, arguments, words):
    assert main([*arguments, f"out={tmp_path}"]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told
    assert told.startswith("vlseg: ")
    assert "\n" not in told


def test_examples_that_are_broken(tmp_path: Path):
    save_examples(scene_examples(5, 0, 2), tmp_path)
    file = tmp_path / "examples.jsonl"
    for text in ("{", '{"image": "00000.png"}'):
        file.write_text(file.read_text().splitlines()[0] + "\n" + text)
        with pytest.raises(VLSegError, match="line 2"):
            load_examples(tmp_path)
