"""The refiner's loss against its definition, computed by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlseg.losses.refine import BEST, iou_of, refine_loss


def test_iou_counts_cells():
    target = torch.zeros(2, 8, 8)
    target[0, :4] = 1  # the second is empty
    logits = torch.full((2, 8, 8), -1.0)
    logits[0, 2:6] = 1
    assert iou_of(logits, target).tolist() == pytest.approx([16 / 48, 1.0])
    logits[1, 0, 0] = 1
    assert iou_of(logits, target)[1] == 0


def test_loss_by_hand():
    torch.manual_seed(0)
    target = (torch.rand(2, 6, 6) > 0.5).float()
    steps = [(torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 3, requires_grad=True)) for _ in range(2)]
    found = refine_loss(steps, target)
    masks, judged = [], []
    for logits, expected in steps:
        each = torch.zeros(2, 3)
        true = torch.zeros(2, 3)
        for b in range(2):
            for t in range(3):
                p = logits[b, t].sigmoid()
                dice = 1 - (2 * (p * target[b]).sum() + 1) / (p.sum() + target[b].sum() + 1)
                each[b, t] = 2 * F.binary_cross_entropy(p, target[b]) + dice
                both = ((p > 0.5) & (target[b] > 0.5)).sum()
                true[b, t] = both / ((p > 0.5) | (target[b] > 0.5)).sum()
        masks.append((BEST * each.min(1).values + (1 - BEST) * each.mean(1)).mean())
        judged.append(((expected.sigmoid() - true) ** 2).mean())
        final = torch.stack([true[b, expected[b].argmax()] for b in range(2)]).mean()
    torch.testing.assert_close(found["mask"], torch.stack(masks).mean())
    torch.testing.assert_close(found["iou"], torch.stack(judged).mean())
    torch.testing.assert_close(found["final"], final)
    torch.testing.assert_close(found["total"], found["mask"] + found["iou"])
    found["total"].backward()
    for logits, expected in steps:  # every iteration is supervised, and every token
        assert (logits.grad.abs().amax((-2, -1)) > 0).all()
        assert (expected.grad.abs() > 0).all()
