"""Losses against hand-worked cases and literal restatements."""

import math

import pytest
import torch
import torch.nn.functional as F

from vlseg.losses.contrast import dense_noun_loss, noun_labels, pooled, query_noun_loss, target_contrast
from vlseg.losses.mask import bce_per_query, dice_per_query


def test_bce_and_dice_by_hand():
    logits = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert bce_per_query(logits, target).item() == pytest.approx(math.log(2))
    assert dice_per_query(logits, target).item() == pytest.approx(1 - (2 * 0.5 + 1) / (2 + 1 + 1))
    perfect = torch.tensor([[[[50.0, -50.0], [-50.0, -50.0]]]])
    assert dice_per_query(perfect, target).item() == pytest.approx(0, abs=1e-6)


def test_pooled_is_the_mean_inside():
    embedding = torch.arange(8.0).view(1, 2, 2, 2)
    masks = torch.tensor([[[[1, 1], [0, 0]], [[0, 0], [0, 0]]]])
    assert pooled(embedding, masks).tolist() == [[[0.5, 4.5], [0.0, 0.0]]]


def test_target_contrast_restated():
    torch.manual_seed(0)
    query, regions = torch.randn(1, 3, 5), torch.randn(1, 4, 5)
    positive = torch.tensor([[[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]).bool()
    candidate = torch.tensor([[[1, 1, 1, 0]] * 3]).bool()
    got = target_contrast(query, regions, positive, candidate, temperature=0.5)[0]
    for k in range(3):
        sims = [F.cosine_similarity(query[0, k], regions[0, m], dim=0).item() / 0.5 for m in range(4)]
        negative = 1.0 + sum(math.exp(sims[m]) for m in range(3) if not positive[0, k, m])
        losses = [math.log(1 + negative / math.exp(sims[m])) for m in range(3) if positive[0, k, m]]
        want = sum(losses) / len(losses) if losses else math.log(negative)
        assert got[k].item() == pytest.approx(want, rel=1e-5)


def test_target_contrast_pulls_and_pushes():
    """The loss is well-conditioned: its gradient moves a query to its target and away from a look-alike next to it."""
    target, rival = torch.tensor([1.0, 0.1, 0.0]), torch.tensor([1.0, -0.1, 0.0])
    query = ((target + rival) / 2)[None, None].clone().requires_grad_()
    regions = torch.stack([target, rival])[None]
    loss = target_contrast(query, regions, torch.tensor([[[True, False]]]), torch.ones(1, 1, 2).bool())
    loss.sum().backward()
    assert -query.grad[0, 0, 1] > 0.1


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
