from __future__ import annotations

import base64
import io
import json
import random

import numpy as np
import pytest
from PIL import Image
from vlseg.demo.shot import Picture, Shot
from vlseg.demo.view import _spot, picture_url, stage

from vlseg.masks.svg import path_to_mask
from vlseg.systems.base import segment_of


@pytest.fixture(scope="module")
def shot(segmenter, photo, queries) -> Shot:
    return Shot(segmenter, *Picture.read(str(photo), 10**6), queries)


def test_the_stage_draws_the_answers(shot, queries, assert_foreground):
    answers = shot.answers(None, 0.5)
    assert_foreground(answers)
    view = json.loads(json.dumps(stage([shot], None, 0.5, 3, "data:,")))
    assert view["turn"] == 3
    (run,) = view["runs"]
    assert run["size"] == [120, 160]
    assert run["threshold"] == shot.own_threshold
    assert [row["text"] for row in run["answers"]] == queries
    assert [row["status"] for row in run["answers"]] == [a.status for a in answers]
    for row, answer in zip(run["answers"], answers, strict=True):
        assert (row["spot"] is None) == (not answer.segments)
        assert row["overlap"] is None
        if answer.segments:
            assert np.array_equal(path_to_mask(" ".join(row["paths"]), answer.size), answer.mask)
            assert row["says"] == f"{answer.mask.mean():.1%} of the picture"
        else:
            assert row["says"] == "not in the picture"
    found = [a.text for a in answers if a.status == "found"]
    absent = [a.text for a in answers if a.status == "absent"]
    assert view["summary"] == f"{len(found)} of 5 found. Not in the picture: {', '.join(absent)}."
    assert view["picture"] == "data:,"


def test_two_models_are_named_and_compared(shot):
    view = stage([shot, shot], 0.0, 0.5, 1)
    assert view["summary"].count(f"{shot.model}: 5 of 5 found.") == 2
    assert [row["overlap"] for row in view["runs"][0]["answers"]] == [None] * 5
    assert [row["overlap"] for row in view["runs"][1]["answers"]] == ["100% overlap with the first"] * 5


def test_failed_answers_say_why(segmenter, photo):
    shot = Shot(segmenter, *Picture.read(str(photo), 10**6), ["red " * 2500])
    view = stage([shot], None, 0.5, 1)
    assert view["runs"][0]["answers"][0]["says"].startswith("failed: the query is too long")
    assert "Failed: " in view["summary"]


def test_a_badge_lies_inside_its_mask():
    rng = random.Random(0)
    for _ in range(50):
        mask = np.zeros((rng.randint(1, 40), rng.randint(1, 40)), bool)
        for _ in range(rng.randint(1, 4)):
            y, x = rng.randrange(mask.shape[0]), rng.randrange(mask.shape[1])
            mask[y : y + rng.randint(1, 9), x : x + rng.randint(1, 9)] = True
        segment = segment_of(mask, 1.0)
        assert segment is not None
        x, y = _spot([segment])
        assert mask[int(y), min(int(x), mask.shape[1] - 1)]
    assert _spot([]) is None


@pytest.mark.parametrize("size", [(120, 160), (60, 80)])
def test_the_picture_goes_along(picture, size):
    head, _, data = picture_url(picture(0), size).partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.height, image.width) == size
    close = np.abs(np.asarray(image, int) - np.asarray(picture(0).resize(size[::-1], Image.Resampling.LANCZOS), int))
    assert close.mean() < 6
