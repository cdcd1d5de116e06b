from __future__ import annotations

import pytest

from vlseg.systems.base import SoftAnswer, SoftSystem
from vlseg.types import VLSegError


@pytest.mark.parametrize(("presence", "level"), [(0.0, 0.5), (0.5, 0.5), (0.4, 0.3), (0.0, 0.8), (0.5, 0.999999)])
def test_thresholds_afterwards_give_what_a_call_with_them_gives(
    segmenter, picture, queries, assert_foreground, presence: float, level: float
):
    system, image = segmenter.system, picture(1, 97, 141)
    assert isinstance(system, SoftSystem)
    assert_foreground(system.segment(image, queries, presence_threshold=0))
    texts = [*queries, "red " * 2500]
    direct = system.segment(image, texts, presence_threshold=presence, mask_threshold=level)
    later = [soft.at((97, 141), presence, level) for soft in system.soft_answers(image, texts)]
    assert [answer.to_dict() for answer in later] == [answer.to_dict() for answer in direct]


def test_masks_come_at_any_size(segmenter, picture, queries):
    soft = segmenter.system.soft_answers(picture(), queries)[0]
    assert soft.mask is not None
    large, small = soft.mask((240, 320), 0.5), soft.mask((60, 80), 0.5)
    assert 0.05 < large.mean() < 0.95
    assert large.mean() == pytest.approx(small.mean(), abs=0.02)


def test_what_could_not_be_asked_has_a_reason(segmenter, picture):
    (soft,) = segmenter.system.soft_answers(picture(), ["red " * 2500])
    assert soft.score is None
    assert "too long" in (soft.reason or "")
    assert soft.at((120, 160), 0.5).status == "failed"
    assert SoftAnswer("a", None).at((2, 2), 0.5).reason


def test_wrong_queries(segmenter, picture):
    with pytest.raises(VLSegError, match="query"):
        segmenter.system.soft_answers(picture(), [])
