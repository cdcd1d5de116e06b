"""The weights inside the package: small, offline, and right on the README's picture and on unseen scenes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg import Segmenter
from vlseg.evaluation.scenes import score_scenes
from vlseg.metrics.referring import summary
from vlseg.systems.registry import EMBEDDED, WEIGHTS
from vlseg.worlds.sprites import SpriteWorld

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "peacocks.png"


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter()


def test_size_on_disk():
    assert sum(f.stat().st_size for f in (WEIGHTS / EMBEDDED).iterdir()) <= 25_000_000


def test_scores_are_those_of_the_card():
    """The card's scores were made with these weights, and on few scenes the score lies near the one that it states."""
    scores = json.loads((WEIGHTS / EMBEDDED / "scores.json").read_text())
    weights = (WEIGHTS / EMBEDDED / "model.safetensors").read_bytes()
    assert scores["weights"] == hashlib.sha256(weights).hexdigest()
    stated = scores["overall"]["mIoU"]["value"]
    native = Segmenter().system
    world = SpriteWorld(styles="train")
    scenes = [world.scene(950_001, i, (256, 256), 8) for i in range(24)]
    cases = score_scenes(native.model, native.processor, scenes)
    got = summary([c for c in cases if c.absent or c.extent >= 24])
    assert got["mIoU"] == pytest.approx(stated, abs=0.12)


def test_right_on_the_picture_of_the_readme(segmenter):
    """The picture is a scene of the world, so the truth is known."""
    scene = SpriteWorld(styles="plain").scene(6081, 0, (480, 640), 10)
    assert np.array_equal(scene.image, np.array(Image.open(EXAMPLE).convert("RGB")))

    def truth(noun):
        return np.isin(scene.ids, [m + 1 for m, thing in enumerate(scene.objects) if thing.noun == noun])

    peacocks, pretzel, pump = segmenter(str(EXAMPLE), ["all the peacocks", "the pretzel", "the fuel pump"])
    for answer, noun in ((peacocks, "peacock"), (pretzel, "pretzel")):
        assert answer.status == "found"
        right = truth(noun)
        assert 0.005 < right.mean() < 0.5
        assert (answer.mask & right).sum() / (answer.mask | right).sum() > 0.7, noun
    assert pump.status == "absent"


def test_all_that_the_weights_promise(segmenter):
    """Path mode is part of the shipped checkpoint, and the shipped refiner takes its masks."""
    assert segmenter.system.modes == ("mask", "path")
    path = segmenter(str(EXAMPLE), "the pretzel", mode="path")[0]
    assert path.status == "found"
    assert path.segments[0].path
    refined = segmenter(str(EXAMPLE), "the pretzel", mode="path", refine="vlseg")[0]
    assert refined.segments[0].stage == "refined"
    assert refined.segments[0].coarse.stage == "path"
    mask = segmenter(str(EXAMPLE), "the pretzel")[0].mask
    overlaps = [(a.mask & mask).sum() / (a.mask | mask).sum() for a in (path, refined)]
    assert overlaps[0] > 0.3
    assert overlaps[1] > max(0.6, overlaps[0])


def test_packed_equals_one_by_one_on_real_weights(segmenter):
    queries = ["the largest peacock", "the orange pretzel", "the wine glass", "the lower peacock"]
    packed = segmenter(str(EXAMPLE), queries, presence_threshold=0.0)
    for query, answer in zip(queries, packed, strict=True):
        share = answer.mask.mean()
        assert 0.001 < share < 0.5, query
        alone = segmenter(str(EXAMPLE), query, presence_threshold=0.0)[0]
        union = (answer.mask | alone.mask).sum()
        assert (answer.mask & alone.mask).sum() / union > 0.999
        assert answer.score == pytest.approx(alone.score, abs=1e-4)


def test_numbers_do_not_depend_on_the_picture_object(segmenter):
    picture = Image.open(EXAMPLE).convert("RGB")
    a, b = segmenter(picture, "the pretzel"), segmenter(np.array(picture), "the pretzel")
    assert a[0].to_dict() == b[0].to_dict()
