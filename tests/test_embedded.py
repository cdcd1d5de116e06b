"""The weights inside the package: small, offline, and right on the README's picture and on unseen scenes."""

import json
from pathlib import Path

import numpy as np
import pytest

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
    """On few scenes the score lies near the one that the card states: the card is of these weights."""
    stated = json.loads((WEIGHTS / EMBEDDED / "scores.json").read_text())["overall"]["mIoU"]["value"]
    native = Segmenter().system
    world = SpriteWorld(styles="train")
    scenes = [world.scene(950_001, i, (256, 256), 8) for i in range(24)]
    cases = score_scenes(native.model, native.processor, scenes)
    got = summary([c for c in cases if c.absent or c.extent >= 24])
    assert got["mIoU"] == pytest.approx(stated, abs=0.12)


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
    from PIL import Image

    picture = Image.open(EXAMPLE).convert("RGB")
    a, b = segmenter(picture, "the pretzel"), segmenter(np.array(picture), "the pretzel")
    assert a[0].to_dict() == b[0].to_dict()
