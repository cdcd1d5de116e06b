"""The sprite world: determinism, masks, and the truth of every expression, re-checked from the pixels."""

from __future__ import annotations

import collections
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from vlseg.masks.rle import decode
from vlseg.types import Sample, VLSegError
from vlseg.worlds.absent_words import invented
from vlseg.worlds.sprites import KINDS, Scene, SpriteWorld
from vlseg.worlds.wordings import tokens

COUNT = 300
SIZES = ((128, 128), (96, 144), (160, 120))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    world = SpriteWorld("train")
    return [world.scene(11, i, SIZES[i % 3]) for i in range(COUNT)]


def digest(scene: Scene) -> str:
    text = repr([(q.text, q.kind, q.targets, q.distractors) for q in scene.queries])
    boxes = repr([(o.glyph, o.box, sorted(o.colours)) for o in scene.objects])
    return hashlib.sha256(scene.image.tobytes() + scene.ids.tobytes() + text.encode() + boxes.encode()).hexdigest()


def test_same_arguments_same_bytes_in_any_order() -> None:
    first, second = SpriteWorld("train"), SpriteWorld("train")
    forward = [digest(first.scene(3, i)) for i in range(12)]
    backward = [digest(second.scene(3, i)) for i in reversed(range(12))][::-1]
    assert forward == backward
    assert len(set(forward)) == 12
    assert digest(first.scene(4, 0)) != forward[0]


def test_same_bytes_in_a_fresh_process_with_another_hash_seed() -> None:
    code = (
        "import hashlib; from vlseg.worlds.sprites import SpriteWorld; w = SpriteWorld('train'); h = hashlib.sha256()\n"
        "for i in range(8):\n    s = w.scene(9, i, (96, 128)); h.update(s.image.tobytes() + s.ids.tobytes())\n"
        "    h.update(repr([(q.text, q.kind, q.targets, q.distractors) for q in s.queries]).encode())\n"
        "print(h.hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(runs[0].strip()) == 64
    assert runs[0] == runs[1]


def test_ids_boxes_and_areas_agree(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.ids.shape, 3)
        assert 1 <= len(scene.objects) <= 10
        assert set(np.unique(scene.ids)) <= set(range(len(scene.objects) + 1))
        for i, item in enumerate(scene.objects):
            mask = scene.mask(i)
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            assert item.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert item.area == mask.sum() >= 16
            assert item.area >= 0.45 * item.full_area


def test_masks_of_a_scene_do_not_overlap_and_samples_decode(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
        sample = scene.to_sample("x")
        assert isinstance(sample, Sample)
        assert len(sample.queries) == len(scene.queries)
        for query, asked in zip(sample.queries, scene.queries, strict=True):
            assert query.masks is not None
            assert len(query.masks) == len(asked.targets)
            assert len(query.distractors) == len(asked.distractors)
            for rle, index in zip(query.masks, asked.targets, strict=True):
                assert rle["size"] == list(scene.ids.shape)
                assert np.array_equal(decode(rle).astype(bool), scene.ids == index + 1)


def test_queries_are_well_formed(scenes: list[Scene]) -> None:
    known = set(SpriteWorld().vocabulary())
    made_up = set(invented())
    for scene in scenes:
        texts = [q.text.lower() for q in scene.queries]
        assert len(texts) == len(set(texts))
        for query in scene.queries:
            assert query.kind in KINDS
            assert not set(query.targets) & set(query.distractors)
            assert bool(query.targets) != query.kind.startswith("absent")
            if query.kind not in ("all", "negation", "absent", "absent-hard"):
                assert len(query.targets) == 1, query
            for word in tokens(query.text):
                fresh = {word, word.removesuffix("s"), word.removesuffix("es")} & made_up or word.endswith("ies")
                assert word in known or (query.kind.startswith("absent") and fresh), (word, query)


def test_share_of_absent_and_of_every_kind(scenes: list[Scene]) -> None:
    counts = collections.Counter(q.kind for scene in scenes for q in scene.queries)
    total = sum(counts.values())
    assert total >= 7.8 * COUNT
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 0.02 * total
    missing = counts["absent"] + counts["absent-hard"]
    assert 0.13 <= missing / total <= 0.22
    assert 0.35 <= counts["absent-hard"] / missing <= 0.65
    hard = sum(counts[k] for k in ("superlative", "relation", "negation", "colour"))
    assert hard >= 0.45 * total
    untrue = sum(q.kind == "absent-hard" and bool(q.anchors) for scene in scenes for q in scene.queries)
    assert untrue >= 0.1 * counts["relation"]  # both things are in sight, and yet it is not so


def test_most_scenes_repeat_a_noun(scenes: list[Scene]) -> None:
    repeated = sum(max(collections.Counter(o.glyph for o in s.objects).values()) > 1 for s in scenes)
    assert 0.5 <= repeated / COUNT <= 0.8


def test_kinds_can_be_chosen() -> None:
    world = SpriteWorld()
    queries = [q for i in range(20) for q in world.scene(5, i, kinds={"relation": 1.0, "absent-hard": 0.5}).queries]
    assert {q.kind for q in queries} == {"relation", "absent-hard"}


def test_styles_are_kept_apart() -> None:
    held = {o.style for i in range(15) for o in SpriteWorld("held_out").scene(1, i).objects}
    plain = {o.style for i in range(15) for o in SpriteWorld("plain").scene(1, i).objects}
    train = {o.style for i in range(80) for o in SpriteWorld("train").scene(1, i).objects}
    assert plain == {"original"}
    assert not held & train
    assert len(train) >= 12


@pytest.mark.parametrize("size", [(64, 64), (320, 180), (100, 400), (512, 384)])
def test_sizes_and_aspect_ratios(size: tuple[int, int]) -> None:
    scene = SpriteWorld().scene(2, 1, size)
    assert scene.image.shape == (*size, 3)
    assert scene.objects


def test_wrong_arguments_say_so_in_one_line() -> None:
    world = SpriteWorld()
    with pytest.raises(VLSegError, match="no styles"):
        SpriteWorld("impressionist")
    with pytest.raises(VLSegError, match="at least 32"):
        world.scene(1, 1, (8, 8))
    with pytest.raises(VLSegError, match="unknown kinds"):
        world.scene(1, 1, kinds={"nam": 1})
    with pytest.raises(VLSegError, match="negative"):
        world.scene(-1, 1)
