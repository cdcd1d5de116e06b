"""Muon beside AdamW in one optimizer: matrices move along orthogonalised momentum, everything else as in AdamW.

Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); with decoupled weight decay: arXiv 2502.16982. From
nothing, the embedded model's tower needs about half the steps of AdamW for the same noun accuracy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """(m, n) to about U V^T of its singular value decomposition, float32: a quintic Newton-Schulz iteration in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    for _ in range(steps):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.t() if tall else x).float()


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `matrix: True` follow Muon instead. Kernels (out, in, h, w) count as (out, in * h * w).

    The ranks of a data-parallel run hold the same gradients: each orthogonalises its share and they exchange the rest.
    keeps_gradients: they are as they were after a step, for AdaLoRA's pruning; costs a copy of them within the step.
    """

    momentum = 0.95
    keeps_gradients = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure` as in torch. Gradients of Muon's matrices are spent by it (set to None) unless kept."""
        jobs = [(p, group) for group in self.param_groups if group.get("matrix") for p in group["params"]]
        jobs = [(p, group) for p, group in jobs if p.grad is not None]
        gradients, looks = [p.grad for p, _ in jobs], []
        for p, _ in jobs:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
                state["step"] = torch.tensor(0.0)  # AdamW's own reloading asks for it
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            look = p.grad.clone() if self.keeps_gradients else p.grad
            looks.append(look.lerp_(state["momentum"], self.momentum))  # Nesterov's look ahead
        for (p, group), update in zip(jobs, shared_updates(looks), strict=True):
            rows, columns = p.shape[0], p[0].numel()
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
            p.grad = None  # not AdamW's
        told = super().step(closure)
        if self.keeps_gradients:
            for (p, _), gradient in zip(jobs, gradients, strict=True):
                p.grad = gradient
        return told


def shared_updates(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The orthogonalised gradients, flattened to (out, rest); the ranks share the work, by cost, and the results."""
    flat = [g.reshape(g.shape[0], -1) for g in gradients]
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks == 1:
        return [orthogonalised(g) for g in flat]
    load, owner = [0.0] * ranks, [0] * len(flat)
    for i in sorted(range(len(flat)), key=lambda i: -flat[i].numel() * min(flat[i].shape)):
        owner[i] = load.index(min(load))
        load[owner[i]] += flat[i].numel() * min(flat[i].shape)
    shares = [[i for i in range(len(flat)) if owner[i] == rank] for rank in range(ranks)]
    # before any exchange, or the ranks would take turns
    mine = {i: orthogonalised(flat[i]) for i in shares[dist.get_rank()]}
    updates: list[torch.Tensor] = [torch.empty(0)] * len(flat)
    for rank, share in enumerate(shares):
        if not share:
            continue
        sizes = [flat[i].numel() for i in share]
        here = rank == dist.get_rank()
        buffer = torch.cat([mine[i].flatten() for i in share]) if here else flat[0].new_empty(sum(sizes))
        dist.broadcast(buffer, src=rank)
        for i, part in zip(share, buffer.split(sizes), strict=True):
            updates[i] = part.view_as(flat[i])
    return updates


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon suits it: matrices and dense kernels; no embedding, prototype, depthwise kernel, norm or bias.

    Nor AdaLoRA's singular values, which are a column.
    """
    if parameter.ndim < 2 or any(part in name for part in ("embed_tokens", "lm_head", "prototypes", "lora_E")):
        return False
    return not (parameter.ndim == 4 and parameter.shape[1] <= 3)  # depthwise, and kernels that read pixels
