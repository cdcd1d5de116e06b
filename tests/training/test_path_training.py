"""Targets of path mode, and that a tiny model learns to write them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from many_runs import fresh_state
from PIL import Image
from test_training import tiny

from vlseg.masks.path_codec import PathCodec
from vlseg.models.modeling import VLSegModel
from vlseg.models.path_head import add_paths, codec_of
from vlseg.models.presets import build_preset
from vlseg.systems.native import NativeSystem
from vlseg.training.batches import SceneBatches
from vlseg.training.config import DataSection, LossSection, PathSection, Stage
from vlseg.training.loop import train
from vlseg.training.objective import loss_sums
from vlseg.training.paths import PathTargets, learn_paths, short_paths
from vlseg.types import VLSegError
from vlseg.worlds.sprites import SpriteWorld

SECTION = PathSection(on=True, grid=16, box_bins=32, max_tokens=20, price=4e-3)


@pytest.fixture(scope="module")
def made():
    """A tiny model with path mode, its processor, and a batch of two scenes with paths and without."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, SECTION)
    feed = SceneBatches(DataSection(seed=1, queries=4), [Stage(9, 2, [[64, 96]])], processor, 9)
    plain = feed[4]
    feed.paths = PathTargets(model.config, processor.pad_id, SECTION.price)
    return model, processor, feed[4], plain


def test_rows_go_on_with_the_paths_of_their_targets(made):
    model, _, batch, plain = made
    codec, first = PathCodec(16, 32), model.config.paths["first"]
    seen = 0
    for b in range(2):
        for k in range(int(plain.packed.valid[b].sum())):
            mine = batch.packed.owner[b] == k + 1
            ids, targets = batch.packed.ids[b, mine], batch.packed.path_targets[b, mine]
            words = plain.packed.ids[b, plain.packed.owner[b] == k + 1]
            assert torch.equal(ids[: len(words)], words)
            assert batch.packed.answers[b, k] == mine.nonzero()[0] + len(words) - 1
            assert batch.packed.offset[b, mine].tolist() == list(range(len(ids)))
            path = targets[targets >= 0].tolist()
            assert bool(path) == bool(plain.targets[b, k].any())
            if not path:
                continue
            assert ids[len(words)] == model.config.seg_token_id
            assert (ids[len(words) + 1 :] - first).tolist() == path[:-1]
            assert len(path) <= SECTION.max_tokens
            truth = plain.regions[b, plain.targets[b, k]].amax(0).bool().numpy()
            drawn = codec.decode(path, truth.shape)
            assert (drawn & truth).sum() / (drawn | truth).sum() > 0.6
            seen += 1
    assert seen > 3


def test_some_queries_learn_paths(made):
    """By share: none, some (the same ones for the same batch), all; a batch in which none does has a loss as well."""
    model, processor, whole, _ = made
    feed = SceneBatches(DataSection(seed=1, queries=4), [Stage(9, 2, [[64, 96]])], processor, 9)

    def drawn(share):
        feed.paths = PathTargets(model.config, processor.pad_id, SECTION.price, share=share)
        return feed[4]

    def paths(batch):
        states = (batch.packed.path_targets >= 0).int()
        return [len(set(row[seen > 0].tolist())) for row, seen in zip(batch.packed.owner, states, strict=True)]

    assert paths(drawn(1.0)) == paths(whole)
    assert sum(paths(drawn(0.0))) == 0
    counts = [sum(paths(drawn(share))) for share in (0.2, 0.5, 0.8)]
    assert 0 < counts[1] < sum(paths(whole))
    assert counts == sorted(counts)
    assert torch.equal(drawn(0.5).packed.ids, drawn(0.5).packed.ids)
    batch = drawn(0.0)
    output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
    losses = loss_sums(output, batch, model.config, LossSection(path=1.0, path_spread=0.7))
    assert losses["path"] == 0
    assert all(torch.isfinite(value) for value in losses.values())


def test_paths_fit_their_limit():
    """A ragged mask gets dearer tokens until it fits, at worst its box; what fits already stays as it is."""
    codec = PathCodec(16, 32)
    angle = np.arctan2(*np.mgrid[-32:32, -32:32])
    radius = np.hypot(*np.mgrid[-32:32, -32:32])
    star = radius < 20 + 10 * np.sin(9 * angle)
    square = np.zeros((64, 64), bool)
    square[10:40, 10:40] = True
    free = codec.encode_many([star, square], 1e-4, effort="fast")
    assert len(free[0].tokens) > 24
    for most in (24, 12, 6):
        paths = short_paths(codec, [star, square], most, 1e-4)
        assert all(len(path) <= most and codec.vocabulary.accepts(path) for path in paths)
        if len(free[1].tokens) <= most:
            assert paths[1] == free[1].tokens
    assert short_paths(codec, [], 24, 1e-4) == []


def test_the_loss_is_part_of_the_objective(made):
    model, processor, batch, plain = made
    pixels = processor.normalise(batch.pixels)
    with torch.no_grad():
        with_paths = loss_sums(model(pixel_values=pixels, **batch.packed.tensors()), batch, model.config, LossSection())
        without = loss_sums(model(pixel_values=pixels, **plain.packed.tensors()), plain, model.config, LossSection())
        off = loss_sums(
            model(pixel_values=pixels, **batch.packed.tensors()), batch, model.config, LossSection(path=0.0)
        )
    assert set(with_paths) - set(without) == {"path"}
    assert set(off) == set(without)
    for name, value in without.items():
        assert with_paths[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_settings_amiss(made):
    model, processor, _, _ = made
    with pytest.raises(VLSegError, match="has path tokens already"):
        add_paths(model, processor, PathCodec(8, 32))
    with pytest.raises(VLSegError, match="max_tokens = 5"):
        add_paths(model, processor, PathCodec(16, 32), max_tokens=5)
    learn_paths(model, processor, SECTION)  # the same again changes nothing
    assert model.config.paths["max_tokens"] == 20


def test_what_a_run_leaves_open_stays_as_the_model_has_it():
    """Codec, limit and box: the defaults where there is no path mode yet, the model's own where there is."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, PathSection(on=True, grid=4, box_bins=16))
    first = model.config.paths["first"]
    rest = {"joint": True, "curves": False, "max_tokens": 128, "box": "written", "first": first}
    assert model.config.paths == {"grid": 4, "box_bins": 16, **rest}
    learn_paths(model, processor, PathSection(on=True, max_tokens=12, box="mask"))
    kept = {"grid": 4, "box_bins": 16, **rest, "max_tokens": 12, "box": "mask"}
    assert model.config.paths == kept
    learn_paths(model, processor, PathSection(on=True))
    assert model.config.paths == kept
    for wrong in ({"grid": 64}, {"curves": True}):
        with pytest.raises(VLSegError, match="has path tokens already, with grid=4"):
            learn_paths(model, processor, PathSection(on=True, **wrong))
    assert model.config.paths == kept
    assert codec_of(model.config) == PathCodec(4, 16)


def test_a_run_says_that_it_does_not_train_paths(tmp_path, made, capsys):
    """Once, where the model has path mode and the run has no loss of it."""
    model, processor = made[:2]
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    for name, paths, times in (("masks", {}, 1), ("paths", {"on": True, "price": 1e-2}, 0)):
        fresh_state()
        source = {"preset": None, "source": str(tmp_path / "start")}
        config = tiny(tmp_path / name, model=source, paths=paths, steps=1, mixed_precision="no", trackers=[])
        train(config)
        assert capsys.readouterr().err.count("does not train the model's path mode (paths.on=true does)") == times
    final = VLSegModel.from_pretrained(tmp_path / "paths" / "final")
    assert final.config.paths == model.config.paths


def learn(model, processor, batch, steps, lr=3e-3):
    """Train all weights on one batch; the path loss a query at every step."""
    pixels, count = processor.normalise(batch.pixels), batch.packed.path_targets.ge(0).any(1).sum()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    told = []
    for _ in range(steps):
        losses = loss_sums(
            model(pixel_values=pixels, **batch.packed.tensors()), batch, model.config, LossSection(path=8.0)
        )
        told.append(float(losses["path"].detach() / count))
        optimizer.zero_grad()
        (sum(losses.values()) / batch.packed.valid.sum()).backward()
        optimizer.step()
    return told


def test_twenty_steps_halve_the_loss():
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, SECTION)
    feed = SceneBatches(DataSection(seed=1, queries=4), [Stage(9, 2, [[64, 96]])], processor, 9)
    feed.paths = PathTargets(model.config, processor.pad_id, SECTION.price)
    told = learn(model.train(), processor, feed[4], 21, lr=1e-2)
    assert told[20] < 0.5 * told[0], told


@pytest.mark.slow
def test_a_tiny_model_writes_the_masks_of_a_few_scenes():
    """Free-running, greedy, at the original size: what was learned by teacher forcing is written."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, SECTION)
    feed = SceneBatches(DataSection(seed=1, queries=4), [Stage(9, 3, [[64, 96]])], processor, 9)
    plain = feed[2]
    feed.paths = PathTargets(model.config, processor.pad_id, SECTION.price)
    batch = feed[2]
    learn(model.train(), processor, batch, 220, lr=6e-3)
    model.config.image["area"] = processor.image["area"] = 64 * 96
    system, overlaps = NativeSystem(model.eval(), processor, "tiny"), []
    for b, scene in enumerate(feed.world.scene(1, 2048 + i, (64, 96), 4) for i in range(3)):
        assert np.array_equal(scene.image, plain.pixels[b].numpy())
        texts = [query.text for query in scene.queries]
        answers = system.segment(Image.fromarray(scene.image), texts, presence_threshold=0, mode="path")
        for k, answer in enumerate(answers):
            if plain.targets[b, k].any():
                truth = plain.regions[b, plain.targets[b, k]].amax(0).bool().numpy()
                overlaps.append((answer.mask & truth).sum() / (answer.mask | truth).sum())
    assert len(overlaps) > 5
    assert np.mean(overlaps) > 0.7, overlaps
