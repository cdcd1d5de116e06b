"""Batches of data sets: what a step sees, whatever the ranks; broken samples; mixtures; thin strokes."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from blocks import write_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlseg.config import from_dict
from vlseg.data.leaks import HeldOut, WithoutLeaks
from vlseg.data.registry import open_dataset
from vlseg.masks.rle import decode, encode
from vlseg.models.processing import VLSegProcessor
from vlseg.training.config import TrainConfig
from vlseg.training.plan import Plan, labelled, load_of, picture_size, turns
from vlseg.training.samples import SampleBatches, Source, at_size
from vlseg.training.sources import describe, open_feed
from vlseg.types import VLSegError


@pytest.fixture(scope="module")
def processor(tiny_folder):
    made = VLSegProcessor.from_pretrained(tiny_folder)
    made.image["area"] = 4096
    return made


def feed(processor, file, **options):
    settings = {"images": 4, "queries": 3, "steps": 6, "seed": 1, **options}
    return SampleBatches([Source(open_dataset(str(file)))], processor, **settings)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=4), st.integers(1, 200))
def test_turns_keep_to_the_weights_at_every_moment(weights, steps):
    who = turns(weights, steps)
    assert len(who) == steps
    for i, weight in enumerate(weights):
        due = np.arange(1, steps + 1) * weight / sum(weights)
        assert np.abs(np.cumsum(who == i) - due).max() <= len(weights)


def test_turns_refuse_a_weight_of_nothing():
    with pytest.raises(VLSegError, match="above 0"):
        turns([1.0, 0.0], 5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([(64, 64), (64, 96), (96, 64), (32, 128)]), min_size=1, max_size=40), st.integers(1, 5))
def test_every_picture_is_in_every_epoch_and_batches_have_one_size(sizes, images):
    plan = Plan(sizes, [i % 7 for i in range(len(sizes))], images, seed=3)
    for epoch in range(2):
        seen = [plan.batch(epoch * plan.batches + n) for n in range(plan.batches)]
        assert set().union(*(set(chosen) for _, chosen in seen)) == set(range(len(sizes)))
        assert all(len(chosen) == images for _, chosen in seen)
        extra = Counter(i for _, chosen in seen for i in chosen)
        assert max(extra.values()) <= images  # only what fills the last batch of a bucket comes again
    common = {size for size, n in Counter(sizes).items() if n >= images} or {Counter(sizes).most_common(1)[0][0]}
    assert {size for size, _ in seen} <= common


def test_a_batch_holds_what_the_file_says(processor, blocks_jsonl):
    lines = [json.loads(line) for line in blocks_jsonl.read_text().splitlines()]
    pictures = [np.asarray(Image.open(blocks_jsonl.parent / line["image"])) for line in lines]
    checked = 0
    made = feed(processor, blocks_jsonl)
    for batch in (made[0], made[1]):
        assert batch.pixels.dtype == batch.regions.dtype == torch.uint8
        for b, pixels in enumerate(batch.pixels.numpy()):
            line = next((one for one, p in zip(lines, pictures, strict=True) if np.array_equal(p, pixels)), None)
            if line is None:
                continue  # one that was resized
            for k in range(int(batch.packed.valid[b].sum())):
                ids = batch.packed.ids[b][batch.packed.owner[b] == k + 1].tolist()
                query = next(q for q in line["queries"] if processor.query_ids(q["text"]) == ids)
                truth = np.logical_or.reduce([np.zeros((64, 64), bool), *(decode(mask) for mask in query["masks"])])
                assert np.array_equal(batch.regions[b, batch.targets[b, k]].any(0).numpy(), truth)
                assert int(batch.distractors[b, k].sum()) == len(query.get("distractors", []))
                if query["masks"]:
                    assert 0.05 < truth.mean() < 0.95
                    checked += 1
    assert checked >= 8


def test_what_a_step_sees_does_not_depend_on_the_parts(processor, tmp_path):
    file = write_blocks(tmp_path, 12, broken=(1, 5))
    whole, three = feed(processor, file, steps=8), feed(processor, file, steps=8, parts=3)
    for step in range(8):
        alone, parts = whole[step], [three[3 * step + p] for p in range(3)]
        assert torch.equal(alone.pixels, torch.cat([p.pixels for p in parts]))
        assert int(alone.packed.valid.sum()) == sum(int(p.packed.valid.sum()) for p in parts)
        assert set(alone.problems) == {problem for p in parts for problem in p.problems}
    with pytest.raises(VLSegError, match="cannot be dealt"):
        feed(processor, file, parts=5)


def test_broken_pictures_are_named_and_replaced_the_same_way_every_time(processor, tmp_path):
    file = write_blocks(tmp_path, 9, broken=(4,))
    first, second = feed(processor, file, steps=6), feed(processor, file, steps=6)
    told = set()
    for step in range(6):
        a, b = first[step], second[step]
        assert len(a.pixels) == 4
        assert torch.equal(a.pixels, b.pixels)
        assert a.problems == b.problems
        told |= set(a.problems)
    assert len(told) == 1
    assert "sample p4" in told.pop()


def test_pictures_of_unknown_size_that_cannot_be_read_are_left_out_before(processor, tmp_path):
    made = feed(processor, write_blocks(tmp_path, 6, broken=(2,), sized=False))
    assert len(made.kept[0]) == 5
    assert "2.png" in made.problems[0]


@pytest.mark.parametrize("filtered", [False, True])
def test_a_large_file_is_planned_without_looking_at_its_masks(processor, blocks_jsonl, monkeypatch, filtered):
    data = open_dataset(str(blocks_jsonl))
    assert [load_of(data, i) for i in range(len(data))] == [
        (picture_size(data.labels(i)), len(labelled(data.labels(i)))) for i in range(len(data))
    ]
    expected = feed(processor, blocks_jsonl)[2].pixels

    def unwanted(*_):
        raise AssertionError("masks were looked at")

    if filtered:
        data = WithoutLeaks(data, HeldOut({}, []))
    with monkeypatch.context() as patch:
        patch.setattr(type(data), "labels", unwanted)
        made = SampleBatches([Source(data)], processor, images=4, queries=3, steps=6, seed=1)
    assert torch.equal(made[2].pixels, expected)


def test_nothing_usable_is_one_line(processor, tmp_path):
    file = write_blocks(tmp_path / "a", 3, broken=(0, 1, 2))
    with pytest.raises(VLSegError, match=r"no picture of input size .* can be used: sample p\d"):
        feed(processor, file)[0]
    (tmp_path / "b.jsonl").write_text(json.dumps({"image": "x.png", "queries": [{"text": "a dog"}], "size": [9, 9]}))
    with pytest.raises(VLSegError, match="no labelled query"):
        feed(processor, tmp_path / "b.jsonl")


def test_a_mask_of_another_size_and_a_query_too_long_are_left_out(processor, tmp_path):
    file = write_blocks(tmp_path, 2)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["queries"][0]["masks"] = [encode(np.ones((10, 10), bool))]
    lines[1]["queries"][0]["text"] = "red " * 200
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = feed(processor, file, images=2, queries=9)[0]
    assert sorted(batch.packed.valid.sum(1).tolist()) == [1, 3]
    assert len(batch.problems) == 2
    assert any("a mask has size [10, 10]" in problem for problem in batch.problems)
    assert any("too long" in problem for problem in batch.problems)


def test_ignored_pixels_reach_the_batch(processor, tmp_path):
    file = write_blocks(tmp_path, 1)
    line = json.loads(file.read_text())
    corner = np.zeros((64, 64), bool)
    corner[:16, :16] = True
    line["queries"][1]["ignore"] = encode(corner)
    file.write_text(json.dumps(line))
    batch = feed(processor, file, images=1, queries=9)[0]
    assert torch.equal(batch.ignored[0, 1], torch.from_numpy(corner))
    assert not batch.ignored[0, 0].any()


def test_a_thin_stroke_survives_a_smaller_picture():
    mask = np.zeros((256, 256), bool)
    mask[100, 20:240] = True
    small = at_size(encode(mask), (64, 64))
    assert small[25, 6:59].all()
    assert small.sum() <= 56
    block = np.zeros((256, 256), bool)
    block[64:128, 64:128] = True
    assert torch.equal(at_size(encode(block), (64, 64)), torch.from_numpy(block[::4, ::4]))


def test_mixtures_epochs_and_the_log_of_it(processor, tmp_path):
    a, b = write_blocks(tmp_path / "a", 8), write_blocks(tmp_path / "b", 4, seed=5)
    mix = [{"data": str(a), "weight": 3}, {"data": str(b)}]
    config = from_dict(TrainConfig, {"steps": 8, "data": {"mix": mix, "images": 4, "queries": 3}})
    made = open_feed(config, processor, 1)
    names = Counter(made.source_of(step) for step in range(8))
    assert names == {str(a): 6, str(b): 2}
    assert made[0].source in (str(a), str(b))
    assert any("pictures" in line for line in describe(made))
    config.data.mix, config.data.train, config.data.epochs = [], str(a), 2.5
    again = open_feed(config, processor, 1)
    assert again.epochs()[str(a)] == pytest.approx(2.5, abs=0.5)
    assert again.steps == len(again)
    config.data.train, config.data.world = None, None
    with pytest.raises(VLSegError, match="say what to train on"):
        open_feed(config, processor, 1)


def test_rows_of_a_batch_are_about_equally_long(processor, tmp_path):
    """Pictures with equally many queries find each other; dealt at random, more of the rows would be padding."""
    file = write_blocks(tmp_path, 48)
    sorted_feed, random_feed = feed(processor, file, queries=9, steps=12), feed(processor, file, queries=9, steps=12)
    for plan in random_feed.plans:
        plan.loads = [0] * len(plan.loads)

    def padding(made):
        owners = [made[step].packed.owner for step in range(12)]
        return sum(int((o == -1).sum()) for o in owners) / sum(o.numel() for o in owners)

    assert padding(sorted_feed) < 0.5 * padding(random_feed)


def test_scenes_of_one_size_are_rendered_when_they_are_asked_for(processor, monkeypatch):
    """To render a whole stream of scenes first would take minutes, at every start of a run."""
    from vlseg.worlds.geometry.diagrams import GeometryWorld

    rendered, plain = [], GeometryWorld.scene

    def scene(self, seed, index, *rest):
        rendered.append(index)
        return plain(self, seed, index, *rest)

    monkeypatch.setattr(GeometryWorld, "scene", scene)
    made = feed(processor, "geometry?n=5000&seed=3&size=96x96&queries=3")
    assert rendered == []
    first = made[0]
    assert len(rendered) == len(first.pixels) == 4
    assert first.packed.valid.sum() > 8
    assert made.epochs() == {made.names[0]: pytest.approx(6 / 1250)}
