"""Muon: orthogonal updates, the right parameters, the same step on two ranks as on one."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from vlseg.training.config import OptimSection
from vlseg.training.muon import orthogonalised
from vlseg.training.optimizer import build_optimizer

OPTIM = OptimSection(lr=1e-2, matrix_lr=2e-2, weight_decay=0.1)


def small() -> nn.Module:
    torch.manual_seed(0)
    # the norm comes first: behind a convolution it would leave the bias a gradient of rounding errors alone
    convolutions = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 3)
    return nn.Sequential(nn.LayerNorm(11), *convolutions)


def one_step(model: nn.Module) -> list[torch.Tensor]:
    optimizer = build_optimizer(model, OPTIM)
    for _ in range(2):
        model(torch.linspace(-1, 1, 2 * 3 * 11 * 11).view(2, 3, 11, 11)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16)])
def test_orthogonalised_has_the_singular_vectors_of_the_gradient_and_values_near_one(shape):
    torch.manual_seed(1)
    gradient = torch.randn(shape)
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    update = orthogonalised(gradient)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.4  # the iteration trades exactness for speed: values end in about 0.7 to 1.2
    assert values.max() < 1.4
    assert nn.functional.cosine_similarity(update.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_only_matrices_and_dense_kernels_follow_muon():
    model = small()
    groups = {g["matrix"]: g for g in build_optimizer(model, OPTIM).param_groups if g["matrix"]}
    assert [p.shape for p in groups[True]["params"]] == [(6, 8, 3, 3)]
    assert groups[True]["base"] == 2e-2


@pytest.mark.parametrize("keeps", [False, True])
def test_gradients_are_spent_or_kept_and_the_step_is_the_same(keeps):
    model, other = small(), small()
    optimizer, plain = build_optimizer(model, OPTIM), build_optimizer(other, OPTIM)
    optimizer.keeps_gradients = keeps
    for net in (model, other):
        net(torch.linspace(-1, 1, 3 * 11 * 11).view(1, 3, 11, 11).sin()).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    plain.step()
    for p, q, gradient in zip(model.parameters(), other.parameters(), before, strict=True):
        assert torch.equal(p, q)
        if p is model[3].weight and not keeps:
            assert p.grad is None
        else:
            assert torch.equal(p.grad, gradient)


def test_only_adalora_keeps_gradients_and_its_singular_values_follow_adamw():
    model = small()
    assert not build_optimizer(model, OPTIM).keeps_gradients
    model.lora_E = nn.ParameterDict({"default": torch.zeros(6, 1)})
    optimizer = build_optimizer(model, OPTIM)
    assert optimizer.keeps_gradients
    muon = [p for group in optimizer.param_groups if group["matrix"] for p in group["params"]]
    assert [p.shape for p in muon] == [(6, 8, 3, 3)]


def test_muon_and_adamw_both_move_and_state_reloads():
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(model, OPTIM)
    model(torch.linspace(-1, 1, 3 * 11 * 11).view(1, 3, 11, 11).sin()).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(moved)
    other = build_optimizer(small(), OPTIM)
    other.load_state_dict(optimizer.state_dict())
    kernel = model[3].weight
    step = before[6] * (1 - 2e-2 * 0.1) - kernel  # first step: momentum points along the gradient
    values = torch.linalg.svdvals(step.detach().flatten(1)) / 2e-2
    assert 0.5 < values.max() < 1.4  # however small the gradient was
    kept = other.state[other.param_groups[0]["params"][0]]["momentum"]
    assert torch.equal(kept, optimizer.state[kernel]["momentum"])
    assert kept.abs().sum() > 0


def _rank(rank: int, meet: str, queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    queue.put((rank, [p.tolist() for p in one_step(small())]))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # what is left of gloo's threads may abort an ordinary end of the process


def test_two_ranks_step_as_one(tmp_path):
    queue = mp.get_context("spawn").SimpleQueue()
    workers = mp.spawn(_rank, (str(tmp_path / "meet"), queue), nprocs=2, join=False)
    got = dict(queue.get() for _ in range(2))
    workers.join()
    assert sorted(got) == [0, 1]
    for alone, first, second in zip(one_step(small()), got[0], got[1], strict=True):
        assert first == second
        torch.testing.assert_close(torch.tensor(first), alone)
