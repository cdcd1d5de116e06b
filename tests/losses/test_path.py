"""The loss of a path against a sum by hand."""

import pytest
import torch

from vlseg.losses.path import path_loss


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
