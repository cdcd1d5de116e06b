"""vlseg's target-aware loss: against restatements, and what it does to a query between two look-alikes."""

import math

import pytest
import torch
import torch.nn.functional as F

from vlseg.losses.target_aware import pooled, stray_activation, target_contrast, twins


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


def test_a_query_without_target_is_driven_from_all_regions():
    regions = torch.eye(3)[None]
    query = torch.tensor([[[1.0, 0.2, 0.0]]], requires_grad=True)
    none, all_ = torch.zeros(1, 1, 3).bool(), torch.ones(1, 1, 3).bool()
    loss = target_contrast(query, regions, none, all_)
    cosines = F.normalize(query.detach()[0, 0], dim=-1) / 0.07
    assert loss.item() == pytest.approx(math.log(1 + cosines.exp().sum().item()), rel=1e-5)
    loss.sum().backward()
    away = F.normalize((query - query.grad)[0, 0].detach(), dim=-1)
    assert away[0] < F.normalize(query.detach()[0, 0], dim=-1)[0]
    # and without any region in the image there is nothing to choose from
    assert target_contrast(query, regions, none, none).item() == 0


def test_stray_activation_by_hand():
    logits = torch.tensor([[[[2.0, -2.0, 3.0, 0.0]]]])
    target = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    distractors = torch.tensor([[[[0.0, 1.0, 1.0, 1.0]]]])  # one pixel is the target's as well
    want = (math.log(1 + math.exp(3)) + math.log(2)) / 2
    assert stray_activation(logits, distractors, target).item() == pytest.approx(want)
    valid = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]])
    assert stray_activation(logits, distractors, target, valid).item() == pytest.approx(math.log(1 + math.exp(3)))
    assert stray_activation(logits, torch.zeros_like(logits), target).item() == 0


def test_stray_activation_weighs_a_small_look_alike_like_a_large_one():
    target = torch.zeros(1, 2, 8, 8)
    distractors = torch.zeros(1, 2, 8, 8)
    distractors[0, 0, 0, 0], distractors[0, 1, :4] = 1, 1
    logits = torch.full((1, 2, 8, 8), 2.0, requires_grad=True)
    loss = stray_activation(logits, distractors, target)[0]
    assert loss[0].item() == pytest.approx(loss[1].item())
    loss.sum().backward()
    assert torch.equal(logits.grad > 0, distractors > 0)


def test_an_object_that_is_told_twice_is_no_negative_of_itself():
    regions = torch.zeros(1, 4, 4, 4)
    regions[0, 0, :2] = regions[0, 1, :2] = 1  # the same object, from two expressions
    regions[0, 2, 1:] = 1  # overlaps a third of their union
    targets = torch.tensor([[[True, False, False, False], [False, False, True, False], [False] * 4]])
    assert twins(regions, targets).tolist() == [[[False, True, False, False], [False] * 4, [False] * 4]]
    both = torch.tensor([[[True, True, False, False]]])
    assert not twins(regions, both).any()
