"""Answers of several segments: disjoint parts whose union is the referring mask, with a score each."""

import numpy as np
import pytest
import torch

from vlseg.masks import rle as codec
from vlseg.models.presets import build_preset
from vlseg.models.processing import binary_mask, slot_masks
from vlseg.systems.native import NativeSystem

WORDS = ["the", "red", "blue", "green", "big", "small", "dog", "cat", "mug", "left", "right", "of", "a"]


@pytest.fixture(scope="module")
def system(picture, queries):
    model, processor = build_preset("tiny", WORDS, nouns=7, seed=3, head={"slots": 3})
    with torch.no_grad():
        model.vlm.model.language_model.embed_tokens.weight.mul_(50)
        model.mask_head.to_mask[2].weight.mul_(40)
        out = model.eval()(**processor([picture()], [queries]))
        model.mask_head.bias.bias.sub_(out.mask_logits.median())
        model.mask_head.slot_score.weight.mul_(10)
        model.mask_head.slot_score.bias.sub_(model(**processor([picture()], [queries])).slots.scores.median())
    return NativeSystem(model, processor, "several")


def test_segments_are_disjoint_and_their_union_is_the_mask(system, picture, queries, assert_foreground):
    answers = system.segment(picture(), queries, presence_threshold=0)
    assert_foreground(answers)
    assert max(len(answer.segments) for answer in answers) > 1
    whole = [soft.mask(answers[0].size, 0.5) for soft in system.soft_answers(picture(), queries)]
    for answer, mask in zip(answers, whole, strict=True):
        parts = np.stack([codec.decode(segment.rle) for segment in answer.segments])
        assert parts.sum(0).max() == 1
        assert np.array_equal(parts.any(0), mask)
        assert np.array_equal(answer.mask, mask)
        scores = [segment.score for segment in answer.segments]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= answer.score for score in scores)


def test_packed_equals_one_by_one(system, picture, queries):
    packed = system.segment(picture(), queries, presence_threshold=0)
    for text, answer in zip(queries, packed, strict=True):
        single = system.segment(picture(), [text], presence_threshold=0)[0]
        assert [s.rle for s in single.segments] == [s.rle for s in answer.segments]
        assert [s.score for s in single.segments] == pytest.approx([s.score for s in answer.segments], abs=1e-5)


def test_absent_has_no_segments(system, picture):
    answer = system.segment(picture(), ["the red dog"], presence_threshold=1)[0]
    assert (answer.status, answer.segments) == ("absent", [])


def test_parts_by_hand():
    whole = torch.tensor([[1.0, 1.0, -1.0, 2.0]])
    slots = torch.tensor([[[1.0, -1.0, -1.0, 2.0]], [[0.5, 1.0, -1.0, 3.0]], [[-5.0, -5.0, -5.0, 9.0]]])
    scores = torch.tensor([4.0, 2.5, -1.0])  # the third does not count, however sure its mask is
    parts = slot_masks(whole, slots, scores, (1, 4))
    assert [mask.tolist() for mask, _ in parts] == [[[True, False, False, False]], [[False, True, False, True]]]
    assert [score for _, score in parts] == pytest.approx([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-2.5))])
    only = slot_masks(whole, slots, scores - 9, (1, 4))  # no score is positive: the best one counts
    assert [mask.tolist() for mask, _ in only] == [[[True, True, False, True]]]
    assert np.array_equal(np.any([m for m, _ in parts], 0), binary_mask(whole, (1, 4)))
    assert slot_masks(whole - 9, slots, scores, (1, 4)) == []
