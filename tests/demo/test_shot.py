"""Thresholds after the run: the answers are those of a call with these thresholds, and no model runs again."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from vlseg.demo.shot import Picture, Shot, agreement

from vlseg.masks import rle as codec
from vlseg.segmenter import Segmenter
from vlseg.systems.base import SoftSystem
from vlseg.types import VLSegError


class Plain:
    """A system without soft answers: another one behind the bare interface."""

    modes = ("mask",)

    def __init__(self, system):
        self.inner, self.name, self.protocol = system, "plain", "plain"
        self.calls: list[tuple] = []

    @property
    def presence_threshold(self):
        return self.inner.presence_threshold

    def segment(self, image, queries, **options):
        return self.inner.segment(image, queries, **options)

    def segment_batch(self, images, queries, **options):
        self.calls.append(tuple(options.items()))
        return self.inner.segment_batch(images, queries, **options)


def shoot(segmenter, photo, queries, **options) -> Shot:
    picture, image = Picture.read(str(photo), 10**6)
    return Shot(segmenter, picture, image, queries, **options)


@pytest.mark.parametrize(("presence", "level"), [(None, 0.5), (0.0, 0.5), (0.5, 0.2), (0.3, 0.7), (1.0, 0.5)])
def test_equals_a_direct_call(segmenter, photo, queries, assert_foreground, monkeypatch, presence, level):
    assert_foreground(segmenter(photo, queries, 0.0, level))
    direct = segmenter(photo, queries, presence, level)
    shot = shoot(segmenter, photo, queries)
    monkeypatch.setattr(segmenter.system.model, "forward", lambda **_: pytest.fail("a model ran"))
    for _ in range(2):  # worked out, and from the cache
        later = shot.result(presence, level)
        assert [a.to_dict() for a in later] == [a.to_dict() for a in direct]
    assert later.protocol == direct.protocol
    assert (later.size, later.model, later.image) == (direct.size, direct.model, photo.name)


def test_thresholds_in_any_order(segmenter, photo, queries):
    shot = shoot(segmenter, photo, queries)
    for presence, level in [(0.9, 0.5), (0.0, 0.5), (0.0, 0.3), (0.6, 0.3), (None, 0.5)]:
        direct = segmenter(photo, queries, presence, level)
        assert [a.to_dict() for a in shot.answers(presence, level)] == [a.to_dict() for a in direct]


def test_without_soft_answers_scores_sort(segmenter, photo, queries, assert_foreground):
    plain = Plain(segmenter.system)
    assert not isinstance(plain, SoftSystem)
    shot = shoot(Segmenter(plain), photo, queries, mask_threshold=0.4)
    assert not shot.soft
    assert_foreground(shot.answers(0.0, 0.5))
    for presence in (0.0, 0.5, None, 1.0):
        direct = segmenter(photo, queries, presence, 0.4)
        assert [a.to_dict() for a in shot.answers(presence, 0.9)] == [a.to_dict() for a in direct]
    assert len(plain.calls) == 1
    assert "p > 0.4" in shot.result(None, 0.9).protocol


def test_a_query_that_fails_stays_failed(segmenter, photo, queries):
    shot = shoot(segmenter, photo, [queries[0], "red " * 2500])
    for presence in (0.0, 1.0):
        assert shot.answers(presence, 0.5)[1].status == "failed"


def test_large_pictures_are_drawn_smaller(segmenter, picture, tmp_path, queries):
    path = tmp_path / "large.png"
    picture(1, 1500, 2000).save(path)
    shot = Shot(segmenter, *Picture.read(str(path), 10**7), queries)
    height, width = shot.view_size
    assert height * width <= 1_210_000
    assert height / width == pytest.approx(0.75, abs=0.01)
    small, full = shot.answers(0.0, 0.5, shot.view_size)[0], shot.answers(0.0, 0.5)[0]
    assert small.size == shot.view_size
    assert full.size == (1500, 2000)
    assert 0.05 < full.mask.mean() < 0.95
    assert small.mask.mean() == pytest.approx(full.mask.mean(), abs=0.005)


def test_agreement(segmenter, photo, queries):
    answers = shoot(segmenter, photo, queries[:2]).answers(0.0, 0.5)
    first, second = (answer.mask for answer in answers)
    overlap = (first & second).sum() / (first | second).sum()
    assert agreement(answers, answers[::-1]) == pytest.approx([overlap, overlap])
    assert agreement(answers, answers) == [1.0, 1.0]
    absent = shoot(segmenter, photo, queries[:2]).answers(1.0, 0.5)
    assert agreement(answers, absent) == [None, None]


def test_a_picture_is_upright_and_reopens(tmp_path, picture):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # on its side
    picture(0).save(path, exif=exif)
    kept, image = Picture.read(str(path), 10**6)
    assert kept.size == (image.height, image.width) == (160, 120)
    path.unlink()
    assert np.array_equal(np.asarray(kept.reopen()), np.asarray(image))


def test_pictures_that_cannot_be_had(tmp_path, picture):
    def wrong(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VLSegError) as caught:
            Picture.read(str(tmp_path / name), 10_000)
        return str(caught.value)

    path = tmp_path / "whole.png"
    picture(0, 60, 80).save(path)
    whole = path.read_bytes()
    assert "broken" in wrong("cut.png", whole[: len(whole) // 2])
    assert "empty" in wrong("nothing.png", b"")
    assert "no picture of a kind" in wrong("notes.txt", b"hello")
    assert "no picture of a kind" in wrong("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert "no picture of a kind" in wrong("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    picture(0, 120, 160).save(path)
    assert "160 × 120" in wrong("large.png", path.read_bytes())
    with pytest.raises(VLSegError, match="Add a picture"):
        Picture.read(None, 10_000)
    with pytest.raises(VLSegError, match="no longer here"):
        Picture.read(str(tmp_path / "gone.png"), 10_000)


def test_union_of_masks_is_what_is_compared(segmenter, photo, queries):
    answer = shoot(segmenter, photo, queries[:1]).answers(0.0, 0.5)[0]
    mask = answer.mask
    half = mask.copy()
    half[:, :80] = False
    from vlseg.systems.base import segment_of
    from vlseg.types import Answer

    parts = [segment_of(half, 0.5), segment_of(mask & ~half, 0.5)]
    assert all(parts)
    split = Answer(answer.text, "found", 0.5, answer.size, segments=parts)
    assert agreement([answer], [split]) == [1.0]
    assert codec.area(codec.union([s.rle for s in parts], answer.size)) == mask.sum()
