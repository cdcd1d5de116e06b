"""Reinforcement of path mode: what is drawn, what it is worth, what is learned from it, and that a run is resumable."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from many_runs import CONFIGS, SMALL, fresh_state, in_ranks, recipe
from pycocotools import mask as coco
from test_path_training import learn
from test_training import assert_same, tiny, weights

from vlseg.config import load
from vlseg.losses.path import advantages, policy_terms
from vlseg.masks import rle
from vlseg.masks.path_codec import PathCodec
from vlseg.metrics.boundary import boundary_overlap
from vlseg.models.grammar import PathGrammar
from vlseg.models.modeling import VLSegModel
from vlseg.models.presets import build_preset
from vlseg.systems.native_paths import mask_boxes
from vlseg.training import reinforce_rollouts
from vlseg.training.batches import SceneBatches
from vlseg.training.config import DataSection, PathSection, ReinforceSection, Stage, TrainConfig
from vlseg.training.loop import Stopped, train, trainer
from vlseg.training.paths import PathTargets, learn_paths, truths
from vlseg.training.reinforce import Reinforcer
from vlseg.training.reinforce_rewards import Rewards, worths
from vlseg.training.reinforce_rollouts import choose, draw, log_probabilities, roll_outs
from vlseg.types import VLSegError
from vlseg.worlds.sprites import SpriteWorld

SECTION = PathSection(on=True, grid=4, box_bins=16, max_tokens=12, price=1e-2)


@pytest.fixture(scope="module")
def made():
    """A tiny model with path mode, its processor, and a batch of two scenes."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, SECTION)
    feed = SceneBatches(DataSection(seed=1, queries=4), [Stage(9, 2, [[64, 96]])], processor, 9)
    return model.eval(), processor, feed[4]


@pytest.fixture(scope="module")
def start(tmp_path_factory, made):
    """A checkpoint folder of that model."""
    folder = tmp_path_factory.mktemp("start")
    made[0].save_pretrained(folder)
    made[1].save_pretrained(folder)
    return folder


def drawn_by(model, processor, batch, group=3, temperature=1.3, seed=0):
    chance = np.random.default_rng(seed)
    with torch.no_grad():
        features = model.encode_image(processor.normalise(batch.pixels))
    chosen = choose(batch, 2, chance)
    return features, chosen, draw(model, features, batch, chosen, group, temperature, processor.pad_id, chance)


def test_log_probabilities_are_those_that_were_drawn_from(made, monkeypatch):
    """While paths are written one token at a time over the cache, their log-probabilities are noted; one pass over the
    whole row, with its grammar, its limit and its temperature, gives the same."""
    model, processor, batch = made
    seen = []

    class Noting(PathGrammar):
        def masked(self, logits, state, left=None):
            seen.append(super().masked(logits, state, left))
            return seen[-1]

        def advance(self, state, token):
            seen[-1] = (seen[-1] / 1.3).log_softmax(-1).gather(-1, token[..., None])[..., 0]
            return super().advance(state, token)

    noting = Noting(model.path_grammar.vocabulary)
    plain = reinforce_rollouts.decode_paths
    monkeypatch.setattr(reinforce_rollouts, "decode_paths", lambda *a, **o: plain(*a, **o, grammar=noting))
    features, chosen, drawn = drawn_by(model, processor, batch)
    assert len(chosen) == len(drawn.paths) == 4
    assert [b for b, _ in chosen] == [0, 0, 1, 1]
    lengths = [len(path) for group in drawn.paths for path in group]
    assert len(set(lengths)) > 3, "paths that differ"
    # at step t the rows hold the paths of an image that are not at their end yet, in order
    at_drawing = []
    for b in range(2):
        mine = lengths[6 * b : 6 * b + 6]
        for j, length in enumerate(mine):
            at_drawing += [seen[t][b, sum(other > t for other in mine[:j])] for t in range(length)]
    with torch.no_grad():
        again = log_probabilities(model, features, drawn)
    assert again.shape == drawn.path_of.shape == (sum(lengths),)
    assert drawn.path_of.bincount().tolist() == lengths
    assert float(again.exp().min()) < 0.2
    torch.testing.assert_close(again, torch.stack(at_drawing), atol=1e-4, rtol=0)


@pytest.fixture
def boxed(made):
    """The same, its paths beginning with the box of the mask, and a tenth of the pixels of its masks inside."""
    model, processor, batch = copy.deepcopy(made[0]), *made[1:]
    with torch.no_grad():
        output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
        model.mask_head.bias.bias.sub_(output.mask_logits[batch.packed.valid].flatten().quantile(0.9))
    model.config.paths["box"] = "mask"
    return model, processor, batch


def test_drawn_paths_begin_with_the_box_of_the_mask(boxed, monkeypatch):
    """As answers do: of the same logits, each query's copies with its own box, here with an edge that tells them apart;
    a model that writes all of the path has other boxes."""
    model, processor, batch = boxed
    codec, seen = PathCodec(4, 16), []
    first = codec.vocabulary.first["box"]

    def told_apart(logits, wanted, paths):
        boxes = mask_boxes(logits, wanted, paths)
        seen.append((logits, boxes))
        return {(b, k): [first + k, *box[1:]] for (b, k), box in boxes.items()}

    monkeypatch.setattr(reinforce_rollouts, "mask_boxes", told_apart)
    features, chosen, drawn = drawn_by(model, processor, batch)
    with torch.no_grad():
        masks = model(image_features=features, **batch.packed.tensors()).mask_logits
    ((logits, boxes),) = seen
    assert list(boxes) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for place, (b, k), group in zip(chosen, boxes, drawn.paths, strict=True):
        assert 0.04 < float((masks[place] > 0).float().mean()) < 0.95
        torch.testing.assert_close(logits[b, k], masks[place], atol=1e-4, rtol=1e-4)
        assert {tuple(path[:4]) for path in group} == {(first + k, *boxes[b, k][1:])}
        assert len({tuple(path) for path in group}) > 1, "the rings are the model's"
    assert boxes[0, 0] != boxes[1, 0]
    model.config.paths["box"] = "written"
    written = drawn_by(model, processor, batch)[2]
    assert all(a[0][:4] != b[0][:4] for a, b in zip(written.paths, drawn.paths, strict=True))


def test_the_box_of_the_mask_has_no_log_probability(boxed):
    """The tokens that the model chose have those of the whole path, and a gradient; the box has neither."""
    model, processor, batch = boxed
    features, _, drawn = drawn_by(model, processor, batch)
    lengths = [len(path) for group in drawn.paths for path in group]
    places = drawn.packed.path_targets >= 0
    assert drawn.path_of.bincount().tolist() == [length - 4 for length in lengths]
    assert int((places & ~drawn.chosen).sum()) == 4 * len(lengths)
    first = PathCodec(4, 16).vocabulary.first["box"]
    box = (drawn.packed.path_targets >= first) & (drawn.packed.path_targets < first + 16)
    assert torch.equal(box, places & ~drawn.chosen)
    with torch.no_grad():
        own = log_probabilities(model, features, drawn)
        whole = log_probabilities(model, features, replace(drawn, chosen=places))
    assert whole[~box[places]].shape == own.shape
    torch.testing.assert_close(own, whole[~box[places]])
    assert float(whole[box[places]].sum()) < -1, "the box would have counted"


def test_a_mask_without_a_pixel_leaves_the_box_to_the_model(boxed):
    model, processor, batch = boxed
    with torch.no_grad():
        model.mask_head.bias.bias.sub_(1e4)
    _, _, drawn = drawn_by(model, processor, batch)
    assert torch.equal(drawn.chosen, drawn.packed.path_targets >= 0)
    assert len({tuple(path[:4]) for group in drawn.paths for path in group}) > len(drawn.paths)


def test_what_is_drawn_depends_on_chance_alone(made):
    model, processor, batch = made
    _, chosen, drawn = drawn_by(model, processor, batch)
    _, again, same = drawn_by(model, processor, batch)
    _, _, other = drawn_by(model, processor, batch, seed=1)
    assert drawn.paths == same.paths != other.paths
    assert list(chosen) == list(again)
    for place, truth in chosen.items():
        assert np.array_equal(truth, truths(batch)[place])
        assert 0.005 < truth.mean() < 0.95
    for group in drawn.paths:
        assert all(model.path_grammar.vocabulary.accepts(path) and len(path) <= 12 for path in group)
        assert len({tuple(path) for path in group}) > 1


@pytest.mark.parametrize(("clip", "ratio", "better", "pulls"), [
    (0.2, 1.0, 1.5, True), (0.2, 1.1, -0.5, True), (0.2, 1.5, 1.5, False), (0.2, 1.5, -0.5, True),
    (0.2, 0.5, -0.5, False), (0.2, 0.5, 1.5, True),
])  # fmt: skip
def test_the_gradient_of_two_actions_by_hand(clip, ratio, better, pulls):
    """p = softmax(x, 0) of the action taken. d ratio A / dx = ratio A (1 - p) unless clipped; the estimator of the
    divergence, q / p - 1 - log(q / p), has d / dx = (1 - q / p) (1 - p)."""
    x, weight = torch.tensor(0.3, requires_grad=True), 0.7
    q, p = 0.4, float(torch.sigmoid(torch.tensor(0.3)))
    now = torch.log_softmax(torch.stack([x, torch.tensor(0.0)]), 0)[:1]
    before, reference = now.detach() - np.log(ratio), torch.tensor([q]).log()
    terms = policy_terms(now, before, reference, torch.tensor([better]), clip, weight)
    terms.loss.sum().backward()
    wanted = weight * (1 - q / p) * (1 - p) - pulls * ratio * better * (1 - p)
    assert float(x.grad) == pytest.approx(wanted, abs=1e-6)
    assert bool(terms.clipped[0]) != pulls
    assert float(terms.divergence[0]) == pytest.approx(q / p - 1 - np.log(q / p), abs=1e-6)


def test_the_mean_of_the_divergence_is_the_divergence():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    zero = torch.zeros(3)
    terms = policy_terms(p.log(), p.log(), q.log(), zero, 0.2, 1.0)
    assert float((p * terms.divergence).sum()) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


def test_advantages_are_relative_to_the_group():
    found = advantages(torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]]))
    assert found[0].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], abs=1e-3)
    assert found[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_rewards_are_those_of_pycocotools(workers, made):
    codec, chance = PathCodec(8, 16), np.random.default_rng(0)
    masks = np.zeros((5, 40, 56), bool)
    for mask in masks:
        y, x = chance.integers(0, 20, 2)
        mask[y : y + 18, x : x + 24] = True
    paths = [list(found.tokens) for found in codec.encode_many(list(masks), 1e-3)]
    asked = [(rle.encode(truth), [*paths[i:], *paths[:i]]) for i, truth in enumerate(masks)]
    rewards = Rewards(codec, 0.5, 1e-2, workers)
    try:
        found = rewards(asked)
        assert rewards([]) == []
    finally:
        rewards.close()
    for (truth, written), group in zip(asked, found, strict=True):
        drawn = [coco.encode(np.asfortranarray(codec.decode(path, (40, 56)).astype(np.uint8))) for path in written]
        overlaps = coco.iou(drawn, [truth], [0])[:, 0]
        assert np.std(overlaps) > 0
        for path, overlap, worth in zip(written, overlaps, group, strict=True):
            both, either = boundary_overlap(codec.decode(path, (40, 56)), coco.decode(truth).astype(bool))
            assert worth.iou == pytest.approx(overlap)
            assert worth.boundary == pytest.approx(both / either)
            assert worth.tokens == len(path)
            assert worth.reward == pytest.approx(overlap + 0.5 * both / either - 1e-2 * len(path))
    assert worths(codec, 0.0, 0.0, asked[0])[0].reward == found[0][0].iou


def settings(out, start, **changes):
    return tiny(
        out,
        model={"preset": None, "source": str(start)},
        trackers=[],
        **{
            "reinforce": {"on": True, "group": 4, "queries": 2, "updates": 2},
            "steps": 3,
            "save_every": 1,
            "log_every": 1,
            "mixed_precision": "no",
            **changes,
        },
    )


def test_an_interrupted_run_reaches_the_same_weights(tmp_path, start, made):
    """And only what is to be trained has moved: towers and mask head are the start's."""
    train(settings(tmp_path / "whole", start))
    whole = weights(tmp_path / "whole")
    before = made[0].state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, whole[name])]
    assert len(moved) > 15
    assert all(name.startswith(("vlm.model.language_model.", "vlm.lm_head.")) for name in moved)
    fresh_state()
    run = trainer(settings(tmp_path / "twice", start))
    assert isinstance(run, Reinforcer)
    plain = run.train_step

    def interrupted(batches):
        if run.step == 0:
            run.stop_signal = 15
        return plain(batches)

    run.train_step = interrupted
    with pytest.raises(Stopped):
        run.run()
    assert run.step == 1
    fresh_state()
    train(settings(tmp_path / "twice", start))
    assert_same(weights(tmp_path / "twice"), whole)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    for name in ("reward", "iou", "boundary", "tokens", "policy", "divergence", "clipped", "supervised", "loss"):
        assert all(name in line for line in told if "loss" in line), name
    assert told[0]["divergence"] < told[2]["divergence"]
    model = VLSegModel.from_pretrained(tmp_path / "whole" / "final")
    assert model.config.paths["max_tokens"] == 12
    assert made[0].config.paths == model.config.paths


def test_what_a_tiny_model_draws_gets_better(tmp_path):
    """From a model that has been shown the paths of two scenes for a few steps, and learns on from its own."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    learn_paths(model, processor, SECTION)
    feed = SceneBatches(DataSection(seed=1, queries=3), [Stage(9, 2, [[64, 64]])], processor, 9)
    feed.paths = PathTargets(model.config, processor.pad_id, SECTION.price)
    learn(model.train(), processor, feed[0], 24, lr=1e-2)
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    alone = {"on": True, "group": 16, "queries": 3, "divergence": 0.0, "supervised": 0.0, "cost": 0.0}
    optim = {"lr": 4e-3, "warmup": 1, "schedule": "constant", "ema": 0, "weight_decay": 0.0}
    config = settings(tmp_path / "run", tmp_path / "start", steps=30, reinforce=alone, optim=optim)
    run = trainer(config)
    batch = run.feed[0]
    rewards = [run.train_step([batch])["reward"] for _ in range(config.steps)]
    assert np.mean(rewards[-5:]) > 1.5 * np.mean(rewards[:5]), rewards


def test_with_adapters_the_model_without_them_is_the_reference(tmp_path, start):
    config = settings(
        tmp_path,
        start,
        adapter={"kind": "lora", "rank": 2, "where": ["decoder"], "patience": 0, "tokens": False},
        optim={"lr": 1e-2, "warmup": 1, "ema": 0},
    )
    run = trainer(config)
    assert run.reference is None
    first = run.train_step([run.feed[0]])
    second = run.train_step([run.feed[0]])
    assert abs(first["divergence"]) < second["divergence"]
    frozen = [name for name, p in run.plain.named_parameters() if "mask_head" in name and p.requires_grad]
    assert not frozen


@pytest.fixture(scope="module")
def untied(vlm_folder, tmp_path_factory):
    """A checkpoint folder of a model with path mode whose head has weights of its own."""
    from vlseg.models.build import from_vlm

    folder = tmp_path_factory.mktemp("untied")
    model, processor = from_vlm(vlm_folder, image={"area": 4096}, **copy.deepcopy(SMALL))
    assert model.vlm.get_input_embeddings().weight is not model.vlm.get_output_embeddings().weight
    learn_paths(model, processor, SECTION)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_adapters_train_the_rows_of_path_tokens(tmp_path, untied, blocks_jsonl):
    """As the recipe says; switched off, they are the model's own again, which is the reference."""
    changes = ["reinforce.on=true", "reinforce.group=4", "reinforce.queries=2", "optim.lr=1e-2", "optim.ema=0"]
    run = trainer(recipe("lora", tmp_path, untied, blocks_jsonl, *changes, "adapter.dropout=0"))
    rows = {n: p for n, p in run.plain.named_parameters() if p.requires_grad and "trainable_tokens" in n}
    assert len(rows) == 2, "of the embedding and of the head"
    before = {name: p.detach().clone() for name, p in rows.items()}
    batches = [next(run.batches())]
    assert run.train_step(batches)["divergence"] == pytest.approx(0, abs=1e-6)
    for name, p in rows.items():
        moved = (p != before[name]).any(1)
        assert len(moved) == 2 + len(run.core.path_grammar), "[SEG], [REJ] and the path tokens"
        assert int(moved[2:].sum()) > 5
    assert run.train_step(batches)["divergence"] > 1e-6


def two_steps(rank, argument):
    """Work of one process."""
    out, source = argument
    train(settings(out, source, steps=2))
    return rank


@pytest.mark.slow
def test_two_processes_are_one_with_two_batches(tmp_path, start):
    """The same paths are drawn, and the weights move alike."""
    in_ranks(two_steps, [str(tmp_path / "two"), str(start)], 2, tmp_path / "ranks")
    one = settings(tmp_path / "one", start, steps=2)
    one.optim.accumulate = 2
    train(one)
    told = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for alone, apart in zip(*told, strict=True):
        for name in {"reward", "tokens", "policy", "divergence", "supervised", "grad_norm"} & alone.keys():
            assert apart[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name
    assert sum("reward" in line for line in told[1]) == 2
    whole, apart = (weights(tmp_path / name) for name in ("one", "two"))
    before = VLSegModel.from_pretrained(start).state_dict()
    for name in before:
        moved = (whole[name] - before[name]).abs().max()
        assert (apart[name] - whole[name]).abs().max() <= 0.02 * moved, name


def test_roll_outs_for_a_refiner(made):
    model, processor, batch = made
    found = list(roll_outs(model, processor, [batch, batch], queries=2, group=2, seed=3))
    assert len(found) == 2 * 4 * 2
    codec = PathCodec(4, 16)
    for one in found:
        assert one.image.shape == (64, 96, 3)
        assert one.coarse.shape == one.truth.shape == (64, 96)
        assert np.array_equal(one.coarse, codec.decode(one.tokens, (64, 96)))
    assert len({tuple(one.tokens) for one in found}) > 8
    assert any(0.05 < one.coarse.mean() < 0.95 for one in found)
    assert np.array_equal(found[0].image, batch.pixels[0].numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": {"steps": 5}}, "set warmup.steps=0"),
        ({"adapter": {"kind": "adalora"}}, "use adapter=lora"),
        ({"paths": {"on": True}}, r"reinforce with paths\.on=true: .*set paths\.on=false"),
    ],
)
def test_settings_amiss(tmp_path, start, changes, message):
    with pytest.raises(VLSegError, match=message):
        trainer(settings(tmp_path, start, **changes))


def test_the_shipped_recipe():
    config = load(TrainConfig, CONFIGS / "train" / "reinforce.yaml")
    assert config.reinforce == ReinforceSection(on=True, updates=2)
    assert not config.paths.on


def test_a_model_that_writes_no_paths_is_refused(tmp_path, tiny_folder):
    adapters = {"kind": "lora", "rank": 2, "where": ["decoder"]}
    for adapter in ({}, adapters):
        with pytest.raises(VLSegError, match=r"no path tokens: .*paths\.on=true"):
            trainer(settings(tmp_path, tiny_folder, adapter=adapter))
        fresh_state()
    with pytest.raises(ValueError, match="needs 2 at least"):
        ReinforceSection(group=1)
    with pytest.raises(ValueError, match="must be above 0"):
        ReinforceSection(temperature=0.0)
