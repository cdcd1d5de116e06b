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


@pytest.fixture
def look_alikes():
    """(regions, targets, distractors, logits) of two queries: a target of 8 pixels, look-alikes of 1 and of 32."""
    regions = torch.zeros(1, 3, 8, 8)
    regions[0, 0, 7], regions[0, 1, 6, 0], regions[0, 2, :4] = 1, 1, 1
    targets = torch.tensor([[[True, False, False]] * 2])
    distractors = torch.tensor([[[False, True, False], [False, False, True]]])
    return regions, targets, distractors, torch.full((1, 2, 8, 8), 2.0, requires_grad=True)


def test_stray_activation_by_hand():
    logits = torch.tensor([[[[2.0, -1.0, 3.0, 0.0]]]])
    regions = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]]])  # one pixel is both's
    target, distractor = torch.tensor([[[True, False]]]), torch.tensor([[[False, True]]])

    def want(inside, outside):
        return math.log(1 + math.exp(outside - inside))

    assert stray_activation(logits, regions, target, distractor).item() == pytest.approx(want(0.5, 1.5))
    valid = torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]])
    assert stray_activation(logits, regions, target, distractor, valid).item() == pytest.approx(want(0.5, 3.0))


def test_stray_activation_without_distractor_or_target():
    logits = torch.full((1, 1, 2, 2), 2.0)
    regions = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    one, no = torch.tensor([[[True]]]), torch.tensor([[[False]]])
    assert stray_activation(logits, regions, one, no).item() == 0
    assert stray_activation(logits, regions, one, one).item() == 0  # no pixel of it is only the distractor's
    assert stray_activation(logits, regions, no, one).item() == pytest.approx(math.log(1 + math.exp(2)))


def test_stray_activation_weighs_a_small_look_alike_like_a_large_one(look_alikes):
    regions, targets, distractors, logits = look_alikes
    loss = stray_activation(logits, regions, targets, distractors)[0]
    assert loss[0].item() == pytest.approx(loss[1].item())
    loss.sum().backward()
    rivals = torch.einsum("bkm,bmhw->bkhw", distractors.float(), regions) > 0
    assert torch.equal(logits.grad > 0, rivals)
    assert torch.equal(logits.grad < 0, (regions[:, :1] > 0).expand_as(rivals))


def test_empty_masks_do_not_win(look_alikes):
    """To leave everything out costs as much as to light everything up; only to choose costs less."""
    regions, targets, distractors, logits = look_alikes

    def loss(values):
        return stray_activation(values, regions, targets, distractors).sum().item()

    both, chosen = logits.detach(), 4 * regions[:, :1].expand(1, 2, 8, 8) - 2
    assert loss(both) == pytest.approx(loss(-both)) == pytest.approx(2 * math.log(2))
    assert loss(chosen) < 0.1 * loss(both)


def test_the_gradient_is_finite_where_there_is_nothing_to_choose():
    regions, no = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2).bool()
    regions[0, 0, :2] = 1
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    targets = torch.tensor([[[True, False], [False, False]]])
    stray_activation(logits, regions, targets, no).sum().backward()
    assert not logits.grad.any()


def test_an_object_that_is_told_twice_is_no_negative_of_itself():
    regions = torch.zeros(1, 4, 4, 4)
    regions[0, 0, :2] = regions[0, 1, :2] = 1  # the same object, from two expressions
    regions[0, 2, 1:] = 1  # overlaps a third of their union
    targets = torch.tensor([[[True, False, False, False], [False, False, True, False], [False] * 4]])
    assert twins(regions, targets).tolist() == [[[False, True, False, False], [False] * 4, [False] * 4]]
    both = torch.tensor([[[True, True, False, False]]])
    assert not twins(regions, both).any()
