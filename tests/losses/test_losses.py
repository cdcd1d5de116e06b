"""Mask and noun losses against hand-worked cases and literal restatements."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.losses.contrast import dense_noun_loss, noun_labels, query_noun_loss
from vlseg.losses.mask import bce_per_query, dice_per_query, edge_per_query, grown, shrink, split_labels


def test_bce_and_dice_by_hand():
    logits = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert bce_per_query(logits, target).item() == pytest.approx(math.log(2))
    assert dice_per_query(logits, target).item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))
    perfect = torch.tensor([[[[50.0, -50.0], [-50.0, -50.0]]]])
    assert dice_per_query(perfect, target).item() == pytest.approx(0, abs=1e-6)


@given(st.integers(1, 3), st.floats(-4, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_edge_by_hand(reach, height, ignore):
    """A 10 x 10 square, wrong pixels far from its outline and at it; the band counted pixel by pixel."""
    target = torch.zeros(1, 2, 24, 24)
    target[0, 0, 7:17, 7:17] = 1
    logits = torch.full((1, 2, 24, 24), height)
    logits[0, 0, 7:17, 7:17] = 3.0
    valid = torch.ones_like(target)
    if ignore:
        valid[..., :12] = 0
    found = edge_per_query(logits, target, valid if ignore else None, reach)[0]
    costs = []
    for y, x in itertools.product(range(24), range(24)):
        window = target[0, 0, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        if window.min() != window.max() and valid[0, 0, y, x]:
            costs.append(F.binary_cross_entropy_with_logits(logits[0, 0, y, x], target[0, 0, y, x]))
    assert len(costs) > 20
    torch.testing.assert_close(found[0], torch.stack(costs).mean(), atol=1e-5, rtol=1e-5)
    assert found[1] == 0
    logits[0, 0, 0, 23] = 50.0  # far from the outline
    assert edge_per_query(logits, target, valid if ignore else None, reach)[0, 0] == found[0]


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_grown_is_a_maximum_over_a_window(seed, height, width, reach):
    torch.manual_seed(seed)
    mask = torch.rand(2, 3, height, width) > 0.8
    pooled = F.max_pool2d(mask.float(), 2 * reach + 1, 1, reach) > 0.5
    assert torch.equal(grown(mask, reach), pooled)


@given(seed=st.integers(0, 10_000), soft=st.booleans())
@settings(max_examples=30)
def test_ignored_pixels_are_left_out(seed, soft):
    """Losses with ignored pixels are those of the other pixels alone, whatever stands in the ignored ones."""
    torch.manual_seed(seed)
    logits, target = torch.randn(1, 2, 4, 6), torch.rand(1, 2, 4, 6)
    target = target if soft else target.round()
    valid = torch.rand(1, 2, 4, 6) > 0.3
    for k in range(2):
        kept = valid[0, k]
        alone = logits[0, k][kept].view(1, 1, 1, -1), target[0, k][kept].view(1, 1, 1, -1)
        for loss in (bce_per_query, dice_per_query):
            got = loss(logits, target, valid.float())[0, k].item()
            assert got == pytest.approx(loss(*alone).item(), abs=1e-5)
    noisy = torch.where(valid, logits, 1e3 * torch.randn_like(logits)).requires_grad_()
    changed = torch.where(valid, target, torch.rand_like(target))
    torch.testing.assert_close(
        bce_per_query(noisy, changed, valid.float()), bce_per_query(logits, target, valid.float())
    )
    (bce_per_query(noisy, changed, valid.float()) + dice_per_query(noisy, changed, valid.float())).sum().backward()
    assert not noisy.grad[~valid].any()


def test_nothing_that_counts_costs_nothing():
    none = torch.zeros(1, 1, 2, 2)
    assert bce_per_query(torch.randn(1, 1, 2, 2), torch.ones(1, 1, 2, 2), none).item() == 0
    assert dice_per_query(torch.randn(1, 1, 2, 2), torch.ones(1, 1, 2, 2), none).item() == 0


def test_label_maps_and_their_shrinking_by_hand():
    labels = torch.tensor([[[[1, 255, 0, 0], [0, 255, 0, 1]]]], dtype=torch.uint8)
    masks, valid = split_labels(labels)
    assert masks.tolist() == [[[[True, False, False, False], [False, False, False, True]]]]
    small, share = shrink(masks, (1, 2), valid)
    assert small.tolist() == [[[[0.5, 0.25]]]]  # of the two pixels that count, one; of the four, one
    assert share.tolist() == [[[[0.5, 1.0]]]]
    assert shrink(masks, (1, 2))[1] is None
    assert shrink(masks, (1, 2))[0].tolist() == [[[[0.25, 0.25]]]]


def test_noun_labels():
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2, :2] = 1  # covers the first cell whole
    masks[0, 1, 0, 3] = 1  # a quarter of the second: neither object nor background
    labels = noun_labels(masks, torch.tensor([[5, 2]]), (2, 2), background=9)
    assert labels.tolist() == [[[5, -1], [9, 9]]]


def test_dense_noun_loss_ignores_and_weighs():
    prototypes = torch.eye(3)
    embedding = torch.zeros(1, 3, 1, 3)
    embedding[0, 0, 0, 0] = embedding[0, 1, 0, 1] = embedding[0, 0, 0, 2] = 1
    labels = torch.tensor([[[0, 2, -1]]])
    right = -math.log(math.exp(1) / (math.exp(1) + 2))
    wrong = -math.log(1 / (math.exp(1) + 2))
    got = dense_noun_loss(embedding, labels, prototypes, 1.0, background_weight=0.5, background_every=1)
    assert got.item() == pytest.approx((right + 0.5 * wrong) / 1.5, rel=1e-5)
    got = dense_noun_loss(embedding, labels, prototypes, 1.0, background_every=2)
    assert got.item() == pytest.approx(right, rel=1e-5)
    assert dense_noun_loss(embedding, labels.fill_(-1), prototypes).tolist() == [0]


def test_query_noun_loss_allows_several_nouns_and_none():
    prototypes, embedding = torch.eye(3), F.normalize(torch.ones(1, 2, 3), dim=-1)
    wanted = torch.tensor([[[True, True, False], [False, False, False]]])
    got = query_noun_loss(embedding, wanted, prototypes)[0]
    assert got[0].item() == pytest.approx(-math.log(2 / 3), rel=1e-5)
    assert got[1].item() == 0


def test_nouns_may_come_in_16_bits():
    """FSDP2 casts what passes between modules; the losses are computed in 32 all the same."""
    torch.manual_seed(0)
    prototypes = torch.randn(5, 8)
    cells = torch.randn(2, 8, 4, 4).bfloat16()
    labels = torch.randint(0, 5, (2, 4, 4))
    asked, meant = torch.randn(2, 3, 8).bfloat16(), torch.eye(5)[:3].bool().expand(2, -1, -1)
    for half, whole in (
        (dense_noun_loss(cells, labels, prototypes), dense_noun_loss(cells.float(), labels, prototypes)),
        (query_noun_loss(asked, meant, prototypes), query_noun_loss(asked.float(), meant, prototypes)),
    ):
        assert whole.mean() > 0.1
        torch.testing.assert_close(half, whole)
