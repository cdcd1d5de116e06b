"""Pseudo-labels: the rules by which an answer becomes a label, the signals of doubt, runs that are killed."""

from __future__ import annotations

import csv
import json
import math
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlseg.bulk.label import Labeller, Rules
from vlseg.bulk.label_doubt import LEVELS, bits, disagreement, mask_entropy
from vlseg.bulk.label_run import run_labels
from vlseg.bulk.pictures import FilePictures
from vlseg.bulk.questions import same_for_all
from vlseg.data.jsonl import check_sample, read_samples
from vlseg.masks import rle as codec
from vlseg.systems.base import SoftAnswer, decide, failed, segment_of
from vlseg.types import Answer, VLSegError

SIZE = (48, 64)


class Halves:
    """Answers "left" and "right" with that half of the picture, shifted; others by pixels; "zebra" is absent."""

    protocol, modes, presence_threshold = "by words", ("mask",), 0.5

    def __init__(self, name="halves", shift=0, found=(), calls=None):
        self.name, self.shift, self.found, self.calls = name, shift, found, calls

    def segment(self, image, queries, *, presence_threshold=None, mask_threshold=0.5):
        if self.calls is not None:
            self.calls.append((image.size, list(queries)))
        return [self._one(image, text, presence_threshold or 0.5) for text in queries]

    def segment_batch(self, images, queries, **options):
        return [self.segment(image, row, **options) for image, row in zip(images, queries, strict=True)]

    def _one(self, image, text, threshold):
        grey = np.asarray(image.convert("L"))
        mask = np.zeros(grey.shape, bool)
        if "too long" in text:
            return failed(text, "the query is too long", grey.shape)
        if "crash" in text:
            raise RuntimeError("out of\nmemory")
        if "two" in text:
            mask[:, :8] = mask[:, 40:48] = True
            parts = [mask & (np.arange(mask.shape[1]) < 20), mask & (np.arange(mask.shape[1]) >= 20)]
            parts[1][:] = False if self.shift else parts[1]
            return Answer(text, "found", 0.9, grey.shape, segments=[s for p in parts if (s := segment_of(p, 0.9))])
        middle = mask.shape[1] // 2 + self.shift
        if "left" in text:
            mask[:, :middle] = True
        elif "right" in text:
            mask[:, middle:] = True
        else:
            mask = grey > 128
        score = 0.1 if "zebra" in text and text not in self.found else 0.9
        return decide(text, score, threshold, grey.shape, lambda: mask)


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.full((*SIZE, 3), 60, np.uint8)
    pixels[8:40, 4:30] = 220
    return Image.fromarray(pixels)


def draw(folder: Path, count: int, picture: Image.Image, broken=()) -> list[str]:
    folder.mkdir(parents=True)
    names = []
    for number in range(count):
        path = folder / f"{number}.png"
        picture.save(path)
        if number in broken:
            path.write_bytes(b"no picture")
        names.append(str(path))
    return names


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_become_labels(picture):
    made = Labeller(Halves())(picture, ["the left half", "zebra", "too long"])
    found, absent, unknown = made.queries
    truth = np.zeros(SIZE, bool)
    truth[:, :32] = True
    assert np.array_equal(codec.decode_union(found.masks, SIZE), truth)
    assert absent.masks == []
    assert unknown.masks is None
    assert [q.ignore for q in made.queries] == [None] * 3
    assert made.doubts[2].reason == "failed: the query is too long"
    assert made.doubts[2].uncertainty == 1.0


def test_sides_of_the_mirrored_picture(picture):
    """A system that knows its sides is not in doubt; one that is off by 8 pixels either way is, by that much."""
    calls: list = []
    sure = Labeller(Halves(calls=calls))(picture, ["the left half", "the light part", 'says "left"'])
    assert [doubt.flips for doubt in sure.doubts] == [0.0, 0.0, None]
    assert calls[1] == (picture.size, ["the right half", "the light part"])
    unsure = Labeller(Halves(shift=8))(picture, ["the left half"]).doubts[0]
    assert unsure.flips == pytest.approx(1 - 24 / 40)
    assert Labeller(Halves(shift=8), rules=Rules(flips=False))(picture, ["the left half"]).doubts[0].flips is None


def test_paraphrases(picture):
    calls: list = []
    made = Labeller(Halves(calls=calls), rules=Rules(flips=False))(picture, ["the left half | the light part | left"])
    assert calls == [(picture.size, ["the left half", "the light part", "left"])]
    assert [query.text for query in made.queries] == ["the left half"]
    masks = [a.mask for a in Halves().segment(picture, calls[0][1])]
    expected = np.mean([1 - (a & b).sum() / (a | b).sum() for a, b in combinations(masks, 2)])
    assert made.doubts[0].paraphrases == pytest.approx(expected)
    assert 0.2 < expected < 0.8


def test_a_second_opinion_takes_pixels_and_labels_away(picture):
    texts = ["the left half", "zebra", "zebra two", "the dog"]
    other = Halves("other", shift=6, found=("zebra",))
    made = Labeller(Halves(), other)(picture, ["the left half", "zebra", "a lynx", "the too long"])
    left, zebra, lynx, unknown = made.queries
    apart = np.zeros(SIZE, bool)
    apart[:, 32:38] = True
    assert np.array_equal(codec.decode(left.ignore), apart)
    assert 0.05 < apart.mean() < 0.95
    assert codec.decode_union(left.masks, SIZE)[:, :32].all()
    assert made.doubts[0].against == pytest.approx(1 - 32 / 38)
    assert zebra.masks is None
    assert made.doubts[1].reason == "halves says absent, the other found"
    assert made.doubts[1].against == 1.0
    assert lynx.masks is not None
    assert lynx.ignore is None
    assert made.doubts[2].against == 0.0
    assert unknown.masks is None
    strict = Labeller(Halves(), other, Rules(agree=0.9))(picture, texts[:1])
    assert strict.queries[0].masks is None
    assert strict.doubts[0].reason == "the two mark different regions (IoU 0.84)"


def test_a_target_that_is_all_in_doubt_is_none(picture):
    made = Labeller(Halves(), Halves("other", shift=1), Rules(agree=0.4, flips=False))(picture, ["two stripes"])
    (query,) = made.queries
    assert len(query.masks) == 1
    assert codec.bbox(query.masks[0])[0] == 0
    assert codec.bbox(query.ignore) == [40, 0, 8, 48]


def test_confidence(picture):
    made = Labeller(Halves(), rules=Rules(min_confidence=0.91))(picture, ["left", "zebra"])
    assert [query.masks for query in made.queries] == [None, None]
    assert made.doubts[0].reason == "confidence 0.90 is below 0.91"
    both = Labeller(Halves(), rules=Rules(min_confidence=0.9))(picture, ["left", "zebra"])
    assert both.queries[1].masks == []


def test_entropy_restated():
    assert bits(0.5) == 1
    assert bits(0) == bits(1) == 0
    assert bits(0.2) == pytest.approx(-(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)))
    p = np.random.default_rng(0).random((40, 50))
    soft = SoftAnswer("x", 0.9, lambda size, level: p > level)
    middles = np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])[np.digitize(p, LEVELS, right=True)]
    some = p > 0.1
    expected = np.mean([bits(float(value)) for value in middles[some]])
    assert mask_entropy(soft, p.shape) == pytest.approx(expected)
    assert 0.5 < expected < 1
    sharp = SoftAnswer("x", 0.9, lambda size, level: p > 0.5)
    assert mask_entropy(sharp, p.shape) == 0
    assert mask_entropy(SoftAnswer("x", 0.9, lambda size, level: p > 2), p.shape) is None


def test_disagreement_of_nothing_is_none(picture):
    absent, found = Halves().segment(picture, ["zebra", "left"])
    assert disagreement(absent, absent) == 0
    assert disagreement(absent, found) == disagreement(found, absent) == 1


def test_soft_systems_give_the_same_labels_and_entropies(segmenter, picture, queries, assert_foreground):
    system = segmenter.system
    made = Labeller(system)(picture, queries)
    answers = system.segment(picture, queries)
    assert_foreground(answers)
    entropies = []
    for query, doubt, answer in zip(made.queries, made.doubts, answers, strict=True):
        assert (doubt.status, doubt.score) == (answer.status, pytest.approx(answer.score))
        assert np.array_equal(codec.decode_union(query.masks, SIZE), answer.mask)
        assert (doubt.mask_entropy is None) == (answer.status != "found")
        assert doubt.presence_entropy == pytest.approx(bits(answer.score))
        entropies += [doubt.mask_entropy] if answer.status == "found" else []
        mirror = system.segment(ImageOps.mirror(picture), [{"the mug left of the dog": "the mug right of the dog"}.get(
            answer.text, answer.text)])[0]  # fmt: skip
        assert doubt.flips == pytest.approx(
            disagreement(answer, Answer("", mirror.status, None, SIZE, segments=[
                segment_of(part[:, ::-1].copy(), 1) for part in [mirror.mask] if part.any()
            ])), abs=1e-6)  # fmt: skip
    assert all(0 < entropy <= 1 for entropy in entropies)


def test_files_of_a_run(picture, tmp_path):
    names = draw(tmp_path / "in", 5, picture, broken=(2,))
    out = tmp_path / "out"
    questions = same_for_all(["the left half | left", "zebra", "too long"], 5)
    summary = run_labels(Labeller(Halves(), Halves("other", shift=4)), FilePictures(names), questions, out, shard=2)
    assert (summary.images, summary.queries, summary.labelled) == (5, 12, 8)
    assert [e["image"] for e in summary.errors] == [names[2]]
    assert len(summary.failed) == 4
    samples = list(read_samples(out / "labels.jsonl"))
    assert [os.path.realpath(sample.image) for sample in samples] == [n for n in names if n != names[2]]
    for sample in samples:
        assert check_sample(sample) == []
        assert [query.masks is None for query in sample.queries] == [False, False, True]
        assert codec.area(sample.queries[0].ignore) == 4 * 48
    rows = lines(out / "ranking.jsonl")
    assert [row["rank"] for row in rows] == list(range(1, 13))
    doubts = [row["uncertainty"] for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert {row["text"] for row in rows[:4]} == {"too long"}
    with open(out / "ranking.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["image"], row["text"]) for row in table] == [(row["image"], row["text"]) for row in rows]
    assert [float(row["uncertainty"]) for row in table] == doubts
    maps = sorted((out / "maps").iterdir())
    assert [path.name for path in maps[:2]] == ["000000.0.1.png", "000000.0.2.png"]
    assert len(maps) == 8
    with Image.open(maps[0]) as image:
        values = np.asarray(image)
    assert (values[:, :32] == 1).all()
    assert (values[:, 32:36] == 255).all()
    assert not values[:, 36:].any()
    assert lines(out / "errors.jsonl")[0]["image"] == names[2]


def test_a_killed_run_goes_on_and_broken_pictures_are_tried_again(picture, tmp_path):
    names = draw(tmp_path / "in", 7, picture, broken=(3,))
    questions = same_for_all(["left", "zebra"], 7)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_labels(Labeller(Halves()), FilePictures(names), questions, whole, shard=2)

    def killed(numbers):
        for number in numbers:
            if number == 5:
                raise KeyboardInterrupt
            yield number

    with pytest.raises(KeyboardInterrupt):
        run_labels(Labeller(Halves()), FilePictures(names), questions, out, shard=2, progress=killed)
    assert not (out / "labels.jsonl").exists()
    calls: list = []
    summary = run_labels(Labeller(Halves(calls=calls)), FilePictures(names), questions, out, shard=2)
    assert summary.before == 3  # four were done, one of them is broken and was tried again
    assert len(calls) == 2 * 3
    for name in ("labels.jsonl", "ranking.csv", "ranking.jsonl", "errors.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    picture.save(names[3])
    calls.clear()
    summary = run_labels(Labeller(Halves(calls=calls)), FilePictures(names), questions, out, shard=2)
    assert (len(calls), summary.before, summary.errors) == (2, 6, [])
    assert len(lines(out / "labels.jsonl")) == 7
    with pytest.raises(VLSegError, match=r"holds labels of another model, rules; name another --out"):
        run_labels(Labeller(Halves("b"), rules=Rules(agree=0.6)), FilePictures(names), questions, out, shard=2)


def test_a_model_that_fails_is_named_and_the_others_go_on(picture, tmp_path):
    from vlseg.bulk.questions import Questions

    names = draw(tmp_path / "in", 2, picture)
    questions = Questions([0, 1], [["crash"], ["left"]])
    summary = run_labels(Labeller(Halves()), FilePictures(names), questions, tmp_path / "out")
    assert summary.errors == [{"image": names[0], "error": "RuntimeError: out of memory"}]
    assert summary.labelled == 1
