"""Scoring scenes, and switching parts of a model off."""

import numpy as np
import pytest
import torch
from PIL import Image

from vlseg.data.registry import open_dataset
from vlseg.evaluation.ablate import PARTS, OtherImages, without
from vlseg.evaluation.scenes import score_scenes
from vlseg.models.presets import build_preset
from vlseg.types import VLSegError
from vlseg.worlds.sprites import SpriteWorld


@pytest.fixture(scope="module")
def world():
    return SpriteWorld(styles="train")


@pytest.fixture(scope="module")
def pair(world):
    model, processor = build_preset("tiny", world.vocabulary(), nouns=len(world.nouns), seed=0)
    model.config.presence["bias"] = 10.0  # everything is said to be there
    processor.image["area"] = 64 * 64  # so that pictures are resized, too
    return model.eval(), processor


def test_cases_agree_with_single_calls(pair, world):
    model, processor = pair
    scenes = [world.scene(1, i, (64, 96), 3) for i in range(3)]
    cases = score_scenes(model, processor, scenes, batch=2)
    assert len(cases) == sum(len(s.queries) for s in scenes)
    assert [c.image for c in cases] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    at = 0
    for scene in scenes:
        for query in scene.queries:
            pixels = processor.pixel_values(Image.fromarray(scene.image))
            with torch.no_grad():
                out = model(pixel_values=pixels, **processor.pack([[query.text]]).tensors())
            mask = processor.masks(out, 0, scene.ids.shape, 1)[0]
            truth = np.isin(scene.ids, [t + 1 for t in query.targets])
            assert cases[at].absent == (not query.targets)
            assert cases[at].intersection == (mask & truth).sum()
            assert cases[at].union == (mask | truth).sum()
            assert cases[at].text == query.text
            at += 1


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_off_inside_the_block_only(pair, world, part):
    model, processor = pair
    scene = world.scene(1, 0, (64, 64), 2)
    inputs = {
        "pixel_values": processor.pixel_values(Image.fromarray(scene.image)),
        **processor.pack([[q.text for q in scene.queries]]).tensors(),
    }
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
    with torch.no_grad():
        before = model(**inputs)
        with without(model, part):
            off, off_other = model(**inputs), model(**other)
        after = model(**inputs)
    assert torch.equal(before.mask_logits, after.mask_logits)
    assert not torch.equal(before.mask_logits, off.mask_logits)
    if part == "image-prefix":  # the language model no longer knows which picture it is
        assert torch.equal(off.token_logits, off_other.token_logits)
        assert not torch.equal(off.mask_logits, off_other.mask_logits)


def test_unknown_part(pair):
    with pytest.raises(VLSegError, match="unknown part"), without(pair[0], "wheel"):
        pass


def test_other_images_keep_the_truth_of_the_queries():
    data = open_dataset("sprites?n=3&seed=1&size=64x64&queries=2")
    mixed = OtherImages(data)
    assert len(mixed) == 3
    assert mixed.fingerprint == data.fingerprint
    for n in range(3):
        assert (mixed[n].image == data[(n + 1) % 3].image).all()
        assert (mixed[n].image != data[n].image).any()
        assert mixed[n].queries == data[n].queries
