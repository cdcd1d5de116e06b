"""TALENT's losses as published: hand-worked values, and why they hardly pull."""

import math

import pytest
import torch
import torch.nn.functional as F

from vlseg.losses.target_aware import affinity_loss, pooled, sentence_contrast, talent_losses, target_contrast


def test_affinity_by_hand():
    """Two cells. s = (2, 0): the first row's softmax of (4, 0) passes 0.7 at the first cell, the second is (.5, .5)."""
    features = torch.tensor([[[[[2.0, 0.0]], [[0.0, 1.0]]]]])  # (1, 1, D = 2, 1, 2): cells (2, 0) and (0, 1)
    text = torch.tensor([[[1.0, 0.0]]])
    affinity = math.exp(1) / (math.exp(1) + 1)  # row one: cosines (1, 0)
    assert affinity_loss(features, text).item() == pytest.approx((1 - affinity + 0) / 2, abs=1e-6)
    assert affinity_loss(features, torch.zeros(1, 1, 2)).item() == 0  # no row passes: nothing to learn


def test_affinity_of_shared_features_equals_that_of_copies():
    torch.manual_seed(0)
    shared, text = torch.randn(2, 1, 6, 3, 4), torch.randn(2, 3, 6)
    one = affinity_loss(shared, text)
    assert one.shape == (2, 3)
    torch.testing.assert_close(one, affinity_loss(shared.expand(-1, 3, -1, -1, -1), text))


def test_dead_cells_have_no_gradient_to_blow_up():
    torch.manual_seed(0)
    features = F.relu(torch.randn(1, 1, 8, 4, 4))
    features[..., :2] = 0
    features.requires_grad_()
    affinity_loss(features, 9 * torch.rand(1, 1, 8)).sum().backward()
    assert features.grad.norm() < 1
    assert not features.grad[..., :2].any()
    assert features.grad.any()


def test_sentence_contrast_by_hand():
    pixels = torch.tensor([[[1.0, 0.0]] * 4])
    state = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0]]])
    # queries 0 and 2 mean one object, 1 another one, 3 nothing
    same = torch.zeros(1, 4, 4).bool()
    same[0, 0, 2] = same[0, 2, 0] = True
    other = torch.zeros(1, 4, 4).bool()
    for a, b in ((0, 1), (1, 0), (1, 2), (2, 1)):
        other[0, a, b] = True
    loss, defined = sentence_contrast(pixels, state, same, other)
    assert defined.tolist() == [[True, True, True, False]]

    def nll(positive, negative):
        return -math.log(math.exp(positive) / (math.exp(positive) + math.exp(negative)))

    assert loss[0, 0].item() == pytest.approx(nll(0.6, 0.0))  # positive: 2; negative: 1
    assert loss[0, 1].item() == pytest.approx(nll(0.0, 0.6))  # positive: its own words; negative: the next, 2
    assert loss[0, 2].item() == pytest.approx(nll(1.0, 0.0))  # positive: 0; negative: 1


def test_sentence_contrast_is_bounded_as_cosines_are():
    """-log softmax([a, b])_0 with a, b in -1..1: between 0.127 and 2.127, whatever the model does."""
    towards = torch.tensor([[[1.0, 0.0]]])
    for pixel, words, bound in ((1.0, -1.0, 0.127), (-1.0, 1.0, 2.127)):
        state = torch.tensor([[[1.0, 0.0], [words * pixel, 0.0]]])
        other = torch.tensor([[[False, True], [True, False]]])
        loss, _ = sentence_contrast(pixel * towards.expand(1, 2, 2), state, torch.zeros_like(other), other)
        assert loss[0, 0].item() == pytest.approx(bound, abs=1e-3)


def test_pairs_come_from_the_targets():
    torch.manual_seed(0)
    targets = torch.tensor([[[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]]).bool()
    scales, text = [torch.randn(1, 4, 6, 2, 3)], [torch.randn(1, 4, 6)]
    state, pixels = torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    affinity, contrast, defined = talent_losses(scales * 2, text * 2, pixels, state, targets)
    assert defined.tolist() == [[True, True, True, False]]
    torch.testing.assert_close(affinity, affinity_loss(scales[0], text[0]))
    cosines = F.cosine_similarity(pixels[0, :, None], state[0], dim=-1)
    assert contrast[0, 0].item() == pytest.approx(F.softplus(cosines[0, 1] - cosines[0, 2]).item(), rel=1e-5)
    assert contrast[0, 1].item() == pytest.approx(F.softplus(cosines[1, 2] - cosines[1, 1]).item(), rel=1e-5)


def gradient(loss, of):
    return torch.autograd.grad(loss, of, retain_graph=True)[0].norm().item()


def test_the_published_affinity_is_nearly_inert():
    """At the paper's size (32 x 32 cells, 512 channels) on random features, as RCA gives them: a product of two ReLUs.

    A row of a softmax has one entry above 0.7 at most, so that the target is one column for the whole map; all cosines
    are >= 0, so that the affinity's largest entry stays below e / (e + N - 1); and the gradient is a thousandth of that
    of a cross-entropy on the same product. The contrast over known regions is as strong as the cross-entropy.
    """
    torch.manual_seed(0)
    n, d = 32 * 32, 512
    features = (F.relu(torch.randn(1, 1, d, 32, 32)) * F.relu(torch.randn(1, 1, d, 32, 32))).requires_grad_()
    text = F.relu(torch.randn(1, 1, d))
    cells = features.detach().flatten(3)[0, 0].t()
    s = cells @ text[0, 0]
    chosen = (s[:, None] * s).softmax(-1) > 0.7
    assert chosen.sum(-1).max() == 1
    assert 1 <= chosen.any(0).sum() <= 2
    unit = F.normalize(cells, dim=-1)
    assert (unit @ unit.t()).softmax(-1).max() < math.e / (math.e + n - 1) + 1e-6 < 0.003
    loss = affinity_loss(features, text)
    assert loss.item() == pytest.approx(chosen.any(-1).float().mean().item(), rel=0.01)  # A T - T is all but -T
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    dot = torch.einsum("bkdhw,bkd->bkhw", features, text)
    entropy = F.binary_cross_entropy_with_logits(dot / dot.detach().std(), mask)
    regions = torch.stack([mask[:, 0], torch.roll(mask, 12, -1)[:, 0]], 1)
    positive, candidate = torch.tensor([[[True, False]]]), torch.ones(1, 1, 2).bool()
    ours = target_contrast(text, pooled(features[:, 0], regions), positive, candidate)
    pull = {"talent": gradient(loss.sum(), features), "bce": gradient(entropy, features)}
    pull["ours"] = gradient(ours.sum(), features)
    assert 0 < pull["talent"] < pull["bce"] / 1000, pull
    assert pull["ours"] > pull["bce"], pull
    # with words scaled for a dot product, no row of the softmax passes 0.7, and nothing is left at all
    assert affinity_loss(features, text * d**-0.5).item() == 0
