"""Slots are matched with targets at the least cost, and learn masks and scores."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.losses.mask import bce_per_query, dice_per_query
from vlseg.losses.slots import match, matching_cost, slot_losses


def test_matching_by_hand():
    greedy_fails = torch.tensor([[1.0, 2.0], [2.0, 9.0]])  # the cheapest pair first would cost 10, the other way 4
    assert match(greedy_fails) == [(0, 1), (1, 0)]
    assert match(torch.tensor([[5.0], [1.0], [3.0]])) == [(1, 0)]
    assert match(torch.tensor([[5.0, 1.0, 3.0]])) == [(0, 1)]
    assert match(torch.zeros(3, 0)) == []


@given(seed=st.integers(0, 10_000), slots=st.integers(1, 4), targets=st.integers(1, 4))
@settings(max_examples=40)
def test_no_other_pairing_is_cheaper(seed, slots, targets):
    torch.manual_seed(seed)
    cost = torch.randn(slots, targets)
    pairs = match(cost)
    assert len(pairs) == min(slots, targets)
    assert len({s for s, _ in pairs}) == len({t for _, t in pairs}) == len(pairs)
    wide = cost if slots >= targets else cost.t()
    best = min(
        sum(wide[row, column].item() for column, row in enumerate(rows))
        for rows in itertools.permutations(range(wide.shape[0]), wide.shape[1])
    )
    assert sum(cost[s, t].item() for s, t in pairs) == pytest.approx(best, abs=1e-5)


def squares(size=8):
    """(1, 3, size, size): three objects."""
    regions = torch.zeros(1, 3, size, size)
    regions[0, 0, :3, :3], regions[0, 1, :3, 5:], regions[0, 2, 5:, 2:6] = 1, 1, 1
    return regions


@pytest.mark.parametrize("ignoring", [False, True])
def test_the_cost_restated(ignoring):
    torch.manual_seed(0)
    logits, scores, regions = torch.randn(1, 2, 3, 8, 8), torch.randn(1, 2, 3), squares()
    valid = (torch.rand(1, 2, 8, 8) > 0.3).float() if ignoring else None
    cost = matching_cost(logits, scores, regions, valid, bce=2.0, dice=0.5)
    for k, s, m in itertools.product(range(2), range(3), range(3)):
        one, truth = logits[:, k : k + 1, s], regions[:, m : m + 1]
        counts = None if valid is None else valid[:, k : k + 1]
        want = 2.0 * bce_per_query(one, truth, counts) + 0.5 * dice_per_query(one, truth, counts)
        assert cost[0, k, s, m].item() == pytest.approx(want.item() - scores[0, k, s].sigmoid().item(), abs=1e-4)


def test_the_right_slots_are_taken_whatever_their_order():
    regions = squares()
    logits = 12 * regions[:, [2, 0, 1]][:, None] - 6.0  # slot 0 holds object 2, slot 1 object 0, slot 2 object 1
    scores = torch.tensor([[[4.0, 4.0, -4.0]]])
    targets = torch.tensor([[[True, False, True]]])
    mask, score = slot_losses(logits, scores, regions, targets)
    assert mask.item() < 0.05
    assert score.item() == pytest.approx(math.log(1 + math.exp(-4)), abs=1e-5)
    missed, wrong = slot_losses(logits, scores, regions, torch.tensor([[[False, True, True]]]))
    assert missed.item() < 0.05  # slot 2 is taken although its score is low
    assert wrong.item() == pytest.approx((2 * math.log(1 + math.exp(4)) + math.log(1 + math.exp(-4))) / 3, abs=1e-4)


def test_no_target_and_too_many():
    torch.manual_seed(0)
    regions, logits = squares(), torch.randn(1, 2, 2, 8, 8)
    scores = torch.zeros(1, 2, 2)
    targets = torch.tensor([[[False, False, False], [True, True, True]]])
    mask, score = slot_losses(logits, scores, regions, targets)
    assert mask[0, 0].item() == 0
    assert score.tolist() == [[pytest.approx(math.log(2))] * 2]
    assert mask[0, 1].item() > 0


def test_two_slots_learn_two_objects():
    """Gradient descent on logits and scores alone: each slot ends on an object of its own, the third unused."""
    torch.manual_seed(0)
    logits, scores = torch.randn(1, 1, 3, 8, 8).requires_grad_(), torch.zeros(1, 1, 3).requires_grad_()
    regions, targets = squares(), torch.tensor([[[True, True, False]]])
    optimizer = torch.optim.Adam([logits, scores], lr=0.3)
    for _ in range(60):
        mask, score = slot_losses(logits, scores, regions, targets)
        optimizer.zero_grad()
        (mask + score).sum().backward()
        optimizer.step()
    kept = (scores[0, 0] > 0).nonzero()[:, 0].tolist()
    assert len(kept) == 2
    found = [(logits[0, 0, s] > 0).float() for s in kept]
    truth = [regions[0, 0], regions[0, 1]]
    assert sorted(torch.equal(f, t) for f in found for t in truth) == [False, False, True, True]


def test_ignored_pixels_do_not_steer_slots():
    regions = squares()
    logits = torch.randn(1, 1, 2, 8, 8).requires_grad_()
    valid = torch.ones(1, 1, 8, 8)
    valid[..., 4:, :] = 0
    mask, score = slot_losses(logits, torch.zeros(1, 1, 2), regions, torch.tensor([[[True, False, False]]]), valid)
    (mask + score).sum().backward()
    assert not logits.grad[..., 4:, :].any()
    assert logits.grad[..., :4, :].any()
    assert F.relu(mask).item() > 0
