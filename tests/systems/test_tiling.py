"""Tiles: one seamless mask whatever the size, the answer that there is without tiles, no word believed blindly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from vlseg.masks import rle as codec
from vlseg.masks.svg import path_to_rle
from vlseg.systems.base import SoftAnswer, System, decide, failed
from vlseg.systems.tile_merge import RunLengths, columns, starts
from vlseg.systems.tiling import TiledSystem
from vlseg.types import Answer, VLSegError

SIZE = (700, 1000)  # (height, width)
TILE = 256


class Reds:
    """Finds the red pixels; "leftmost": of the leftmost red object in view; a view with fewer pixels is absent."""

    name, protocol, modes, presence_threshold = "reds", "by colour", ("mask",), 0.5

    def __init__(self, least: int = 12, blind: float = 0.0):
        self.least, self.blind, self.views = least, blind, []

    def segment(self, image: Image.Image, queries: Sequence[str], *, presence_threshold=None, mask_threshold=0.5):
        self.views.append(image.size)
        pixels = np.asarray(image).astype(int)
        red = (pixels[..., 0] > 128) & (pixels[..., 1:] < 128).all(-1)
        draw = np.random.default_rng(int(pixels.sum()) % 2**32).random()
        return [self._answer(text, red, draw < self.blind) for text in queries]

    def segment_batch(self, images, queries, **options):
        return [self.segment(image, row, **options) for image, row in zip(images, queries, strict=True)]

    def _answer(self, text: str, red: np.ndarray, blind: bool) -> Answer:
        size = red.shape
        if text == "broken":
            return failed(text, "cannot be read", size)
        labels, _ = ndimage.label(red)
        if text == "leftmost" and red.any():
            red = labels == labels[:, np.flatnonzero(red.any(0))[0]].max()
        present = red.sum() >= self.least and text != "zebra" and not (blind and max(size) == TILE)
        return decide(text, 0.9 if present else 0.1, 0.5, size, lambda: red)


class SoftReds(Reds):
    """The same with logits: the distance to the edge of the red pixels over two pixels."""

    def soft_answers(self, image: Image.Image, queries: Sequence[str]) -> list[SoftAnswer]:
        out = []
        for answer in self.segment(image, queries):
            mask = answer.mask
            logits = (ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)) / 2

            def at(size, threshold, logits=logits):
                assert logits.shape == size
                return logits > np.log(threshold / (1 - threshold))

            out.append(SoftAnswer(answer.text, answer.score, at if answer.score is not None else None, answer.reason))
        return out


def scene(large: bool = True, small: bool = True) -> tuple[Image.Image, np.ndarray]:
    """A large red ellipse over many tiles and small red dots, and where they are."""
    image = Image.new("RGB", SIZE[::-1], (40, 90, 60))
    draw = ImageDraw.Draw(image)
    if large:
        draw.ellipse((150, 100, 850, 600), fill=(220, 30, 20))
    if small:
        for x, y in ((30, 40), (500, 650), (940, 30), (60, 600)):
            draw.ellipse((x, y, x + 30, y + 24), fill=(220, 30, 20))
    return image, (np.asarray(image)[..., 0] > 128)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def sound(answer: Answer) -> np.ndarray:
    """The mask of a found answer, once its parts have been looked at: box, area and outline belong to it."""
    assert answer.status == "found"
    (segment,) = answer.segments
    assert segment.bbox == codec.bbox(segment.rle)
    assert segment.area == codec.area(segment.rle)
    assert path_to_rle(segment.path, SIZE) == segment.rle
    return answer.mask


@pytest.mark.parametrize("kind", [Reds, SoftReds])
@pytest.mark.parametrize("tile", [100, TILE, 300, 512])
def test_an_object_over_many_tiles_is_one_mask_without_seams(kind, tile):
    image, truth = scene(small=False)
    assert 0.05 < truth.mean() < 0.95
    mask = sound(TiledSystem(kind(), tile).segment(image, ["red"])[0])
    np.testing.assert_array_equal(mask, truth)


@pytest.mark.parametrize("blind", [0.3, 0.7, 1.0])
def test_tiles_that_see_nothing_leave_no_seam(blind):
    image, truth = scene(small=False)
    mask = sound(TiledSystem(SoftReds(blind=blind), TILE).segment(image, ["red"])[0])
    assert iou(mask, truth) > 0.98
    assert ndimage.label(mask)[1] == 1
    # nowhere off by more than one pixel of the overview, which is four of the image
    away = np.maximum(ndimage.distance_transform_edt(truth), ndimage.distance_transform_edt(~truth))
    assert away[mask != truth].max(initial=0) <= 4


def test_small_things_come_from_tiles():
    image, truth = scene(large=False)
    system = Reds(least=200)  # too few pixels in the overview, where a dot has 8 x 6
    answer = TiledSystem(system, TILE).segment(image, ["red"])[0]
    assert answer.score == 0.9
    np.testing.assert_array_equal(sound(answer), truth)


def test_the_overview_says_which_object_is_meant():
    image, truth = scene()
    labels, _ = ndimage.label(truth)
    meant = labels == labels[:, np.flatnonzero(truth.any(0))[0]].max()
    whole = TiledSystem(Reds(), TILE).segment(image, ["leftmost"])[0]
    np.testing.assert_array_equal(sound(whole), meant)
    anywhere = TiledSystem(Reds(), TILE, "any").segment(image, ["leftmost"])[0]
    assert sound(anywhere).sum() > meant.sum()


def test_scope_any_adds_what_the_overview_misses():
    image, truth = scene()
    big = ndimage.label(truth)[0]
    big = big == np.bincount(big[truth]).argmax()

    class Coarse(Reds):
        def _answer(self, text, red, blind):
            objects, _ = ndimage.label(red)
            few = np.flatnonzero(np.bincount(objects.ravel()) < 200)
            return super()._answer(text, red & ~np.isin(objects, few), blind)

    np.testing.assert_array_equal(sound(TiledSystem(Coarse(), TILE).segment(image, ["red"])[0]), big)
    mask = sound(TiledSystem(Coarse(), TILE, "any").segment(image, ["red"])[0])
    np.testing.assert_array_equal(mask, truth)


def test_absent_and_failed():
    image, _ = scene()
    answers = TiledSystem(Reds(), TILE).segment(image, ["zebra", "broken", "red"])
    assert [answer.status for answer in answers] == ["absent", "failed", "found"]
    assert answers[0].score == 0.1
    assert answers[1].reason == "cannot be read"
    assert {answer.size for answer in answers} == {SIZE}


def test_a_small_image_needs_no_tiles(segmenter, picture, queries, assert_foreground):
    tiled = TiledSystem(segmenter.system, 256)
    assert isinstance(tiled, System)
    plain = segmenter.system.segment_batch([picture(0), picture(1)], [queries, queries[:2]])
    assert_foreground(plain[0])
    assert tiled.segment_batch([picture(0), picture(1)], [queries, queries[:2]]) == plain


def test_batches_of_small_and_large_images(segmenter, picture, queries):
    tiled = TiledSystem(segmenter.system, 128)
    pictures = [picture(0, 90, 120), picture(1, 300, 400), picture(2, 90, 120)]
    together = tiled.segment_batch(pictures, [queries] * 3)
    assert [row[0].size for row in together] == [(90, 120), (300, 400), (90, 120)]
    assert together[1] == tiled.segment(pictures[1], queries)
    with pytest.raises(VLSegError, match="one list an image"):
        tiled.segment_batch(pictures, [queries])


def test_the_embedded_model_on_a_scene(assert_foreground):
    from vlseg.segmenter import Segmenter
    from vlseg.worlds.sprites import SpriteWorld

    sample = SpriteWorld(styles="train").scene(77, 0, (480, 640), 4).to_sample()
    texts = [query.text for query in sample.queries[:3]]  # two large footballs, the left one, both
    system = Segmenter(device="cpu").system
    image = sample.image if isinstance(sample.image, Image.Image) else Image.fromarray(sample.image)
    plain, tiled = system.segment(image, texts), TiledSystem(system, 320).segment(image, texts)
    assert_foreground(plain)
    assert_foreground(tiled)
    for query, before, after in zip(sample.queries, plain, tiled, strict=False):
        assert iou(before.mask, after.mask) > 0.9
        truth = codec.decode_union(query.masks, before.size)
        assert iou(after.mask, truth) > iou(before.mask, truth) - 0.03


def test_few_queries_a_pass_change_nothing(monkeypatch):
    image, _ = scene()
    texts = ["red", "leftmost", "broken"]
    together = TiledSystem(Reds(), 512).segment(image, texts)
    monkeypatch.setattr("vlseg.systems.tiling.BUDGET", 1)
    assert TiledSystem(Reds(), 512).segment(image, texts) == together


@pytest.mark.parametrize(
    ("tile", "scope", "says"), [(32, "whole", "at least 64"), (256, "all", "unknown; known: whole, any")]
)
def test_wrong_settings(tile, scope, says):
    with pytest.raises(VLSegError, match=says):
        TiledSystem(Reds(), tile, scope)


@given(st.integers(1, 5000), st.integers(16, 700))
def test_tiles_cover_a_side_and_overlap(length, tile):
    overlap = tile // 4
    begin = starts(length, tile, overlap)
    assert begin[0] == 0
    assert begin[-1] == max(0, length - tile)
    assert all(b - a <= tile - overlap for a, b in pairwise(begin))
    assert len(begin) == 1 or len(begin) <= -(-length // (tile - overlap)) + 1


def test_every_small_object_is_seen_whole():
    places = [place for column in columns(SIZE, TILE, TILE // 4) for place in column]
    side = TILE // 4 - 2
    for x, y in np.random.default_rng(0).integers(0, [SIZE[1] - side, SIZE[0] - side], (200, 2)):
        assert any(
            (x > p.x or not p.cut[0])
            and (y > p.y or not p.cut[1])
            and (x + side < p.x + p.w or not p.cut[2])
            and (y + side < p.y + p.h or not p.cut[3])
            and p.x <= x <= p.x + p.w - side
            and p.y <= y <= p.y + p.h - side
            for p in places
        )


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=60)
def test_run_lengths_of_strips(seed, widths):
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 6)), sum(widths))) < rng.random()
    runs, x = RunLengths(), 0
    for width in widths:
        runs.add(mask[:, x : x + width])
        x += width
    assert runs.rle(mask.shape) == codec.encode(mask)
