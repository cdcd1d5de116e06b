"""The loss of a path against a sum by hand."""

import math
import re

import pytest
import torch

from vlseg.losses.path import Near, path_loss
from vlseg.masks.tokens import Vocabulary


def test_a_mean_over_the_tokens_of_each_query():
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([[1, 1, 1, 2, 2, 3, -1], [1, 2, 2, 2, 2, 2, 2]])
    targets = torch.tensor([[-1, 4, 0, -1, 2, -1, -1], [-1, -1, 1, 1, 3, 0, 2]])
    logits = torch.randn(int((targets >= 0).sum()), 5, generator=generator)
    got = path_loss(logits, targets, owner, 3)
    each = -logits.log_softmax(-1)
    want = [
        [(each[0, 4] + each[1, 0]) / 2, each[2, 2], 0.0],
        [0.0, (each[3, 1] + each[4, 1] + each[5, 3] + each[6, 0] + each[7, 2]) / 5, 0.0],
    ]
    assert got.tolist() == [pytest.approx([float(value) for value in row]) for row in want]


def test_forbidden_tokens_take_no_share_and_get_no_gradient():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    masked = logits.masked_fill(torch.tensor([False, False, True]), float("-inf"))
    loss = path_loss(masked, torch.tensor([[0]]), torch.tensor([[1]]), 1)
    assert loss.item() == pytest.approx(-torch.tensor([1.0, 2.0]).log_softmax(-1)[0].item())
    loss.sum().backward()
    assert logits.grad[0, 2] == 0
    assert logits.grad[0, :2].abs().min() > 0


def test_no_path_no_loss():
    assert path_loss(torch.zeros(0, 5), torch.full((2, 4), -1), torch.ones(2, 4).long(), 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("joint", [True, False])
def test_what_is_near_by_hand(joint):
    """Gaussians over places and bins, within the class of the token alone."""
    vocabulary, spread = Vocabulary(5, 7, joint, True), 0.8
    near = Near(vocabulary, spread)(torch.arange(len(vocabulary)))
    places = [(re.sub(r"[_\d]+>", "", name), [int(n) for n in re.findall(r"\d+", name)]) for name in vocabulary.names]
    for t, (kind, at) in enumerate(places):
        away = [math.dist(at, place) if other == kind else math.inf for other, place in places]
        weights = torch.tensor([math.exp(-(d**2) / (2 * spread**2)) for d in away])
        torch.testing.assert_close(near[t], weights / weights.sum())
    assert near[0].max() == near[1].max() == 1  # an end is an end, a ring is a ring


def test_targets_that_are_spread():
    """Cross-entropy with the spread target among the allowed tokens, finite and with a gradient where some are not."""
    vocabulary = Vocabulary(4, 8, True, False)
    near, first = Near(vocabulary, 0.7), vocabulary.first["box"]
    logits = torch.randn(2, len(vocabulary), generator=torch.Generator().manual_seed(1)).requires_grad_()
    allowed = torch.from_numpy(vocabulary.token_class == vocabulary.classes.index("box"))
    targets, owner = torch.tensor([[first + 3, first]]), torch.tensor([[1, 2]])
    loss = path_loss(logits.masked_fill(~allowed, float("-inf")), targets, owner, 2, near)
    for k, token in enumerate((first + 3, first)):
        among = logits[k, allowed].log_softmax(-1)
        want = -(near(torch.tensor([token]))[0, allowed] * among).sum()
        assert loss[0, k].item() == pytest.approx(want.item(), rel=1e-5)
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, ~allowed].abs().max() == 0
    assert logits.grad[0, first + 2] < logits.grad[0, first + 7]
