"""Pointing at image tokens: what a heat map is, its loss, and that queries stay apart in every head."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_heads import QUERIES, WORDS, inputs, tiny_head

from vlseg.losses.ground import ground_loss
from vlseg.models.heads.grounding import FLOOR, heat
from vlseg.models.presets import build_preset


@given(st.integers(1, 12), st.integers(2, 6), st.integers(2, 6), st.floats(12, 40), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_heat_is_zero_where_the_softmax_points_whatever_its_size(n, height, width, margin, shift):
    """n cells share the softmax evenly: 0 there, the floor elsewhere, and no constant changes it."""
    n = min(n, height * width - 1)
    scores = torch.full((1, 1, height * width), shift, dtype=torch.float64)
    scores[..., :n] += margin
    found = heat(scores.view(1, 1, height, width)).flatten()
    assert found[:n].abs().max() < 1e-3
    assert (found[n:] == FLOOR).all()


def test_heat_of_a_softmax_without_a_point():
    assert heat(torch.full((1, 2, 3, 4), 7.0)).abs().max() < 1e-5


def test_ground_loss_by_hand():
    """A target on two of four cells, one of them by half: shares 2/3 and 1/3."""
    cells = torch.tensor([[[[1.0, 0.5], [0, 0]], [[0, 0], [0, 0]]]])
    even = ground_loss(torch.zeros(1, 2, 2, 2), cells)[0]
    want = 2 / 3 * torch.tensor(2 / 3 / 0.25).log() + 1 / 3 * torch.tensor(1 / 3 / 0.25).log()
    torch.testing.assert_close(even[0], want)
    assert even[1] == 0  # nothing to point at
    right = torch.tensor([[[[2.0, 1.0], [1e-9, 1e-9]]] * 2]).log()
    assert ground_loss(right, cells)[0, 0].abs() < 1e-5
    wrong = right.flip(-2)
    assert ground_loss(wrong, cells)[0, 0] > 5


@pytest.fixture(scope="module")
def pointing():
    """pointing(kind, slots): a model whose masks follow where it points, and its processor."""

    def strengthen(model):
        for part in (model.mask_head.grounding.query, model.mask_head.grounding.token):
            part[1].weight.mul_(6)
        model.mask_head.heed.bias.fill_(3.0)

    @functools.cache
    def pair(kind, slots=1):
        return tiny_head(strengthen, lambda out: out.mask_logits, kind=kind, slots=slots, ground=16)

    return pair


@pytest.mark.parametrize(("kind", "slots"), [("dot", 1), ("dot", 3), ("eomt", 1), ("sam", 1)])
@torch.no_grad()
def test_packed_equals_one_by_one(pointing, kind, slots):
    model, processor = pointing(kind, slots)
    packed = model(**inputs(processor))
    assert packed.ground_logits.shape == (1, 4, 6, 8)
    assert packed.ground_logits.std() > 0.1
    share = (packed.mask_logits > 0).float().mean((0, 2, 3))
    assert ((share > 0.02) & (share < 0.98)).all(), share
    for k, text in enumerate(QUERIES):
        single = model(**inputs(processor, [[text]]))
        torch.testing.assert_close(packed.ground_logits[0, k], single.ground_logits[0, 0], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(packed.mask_logits[0, k], single.mask_logits[0, 0], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_masks_lie_where_it_points(pointing, monkeypatch):
    model, processor = pointing("dot")
    there = torch.full((1, len(QUERIES), 6, 8), -9.0)
    there[:, :, 1:3, 2:4] = 9
    plain = model(**inputs(processor)).mask_logits
    monkeypatch.setattr(model.mask_head.grounding, "forward", lambda states, seen: there)
    change = torch.nn.functional.adaptive_avg_pool2d(model(**inputs(processor)).mask_logits - plain, (6, 8))[0]
    inside = change[:, 1:3, 2:4].amin((-2, -1))
    assert (inside > change[:, 4:].amax((-2, -1))).all()


def test_gradients_of_pointing_reach_the_language_model_by_query_and_by_image(pointing):
    model, processor = pointing("dot")
    caught = []
    handle = model.mask_head.grounding.register_forward_hook(lambda module, given, out: caught.extend(given))
    out = model(**inputs(processor))
    handle.remove()
    states, seen = caught
    cells = torch.zeros_like(out.ground_logits)
    cells[..., 0, 0] = 1
    by_query, by_image = torch.autograd.grad(ground_loss(out.ground_logits, cells).sum(), [states, seen])
    assert by_query.abs().sum() > 0
    assert by_image.abs().sum() > 0


def test_without_pointing_there_is_none():
    model, processor = build_preset("tiny", WORDS, nouns=7, seed=3, head={"ground": 0})
    assert model.mask_head.grounding is None
    assert model(**inputs(processor)).ground_logits is None
