"""No BatchNorm is trained: one with statistics keeps them for good, one without becomes a GroupNorm."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

Norm = nn.modules.batchnorm._BatchNorm


class GroupNormInstead(nn.GroupNorm):
    """In the place of a BatchNorm: its scale and shift, and whatever timm's kind does after it (drop, activation)."""

    def __init__(self, norm: Any):
        super().__init__(groups_of(norm.num_features), norm.num_features, norm.eps)
        self.after = nn.Sequential(
            *(part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part)
        )
        if norm.affine:
            self.weight.data.copy_(norm.weight.data)
            self.bias.data.copy_(norm.bias.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) of the same shape."""
        out: torch.Tensor = self.after(super().forward(x))
        return out


def groups_of(channels: int) -> int:
    """Groups of a GroupNorm: at most 32, of 8 channels at least where there are so many."""
    return max(g for g in (1, 2, 4, 8, 16, 32) if channels % g == 0 and (channels // g >= 8 or g == 1))


def group_norms_where(net: nn.Module, chosen: Callable[[str, Norm], bool]) -> int:
    """Put a GroupNorm in the place of each chosen BatchNorm (name, module), in place; returns how many."""
    names = [name for name, module in net.named_modules() if isinstance(module, Norm) and chosen(name, module)]
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, GroupNormInstead(net.get_submodule(name)))
    return len(names)


def without_statistics(net: nn.Module) -> int:
    """A GroupNorm for each BatchNorm that has never seen a batch; returns how many."""

    def fresh(_: str, norm: Norm) -> bool:
        mean, variance = norm.running_mean, norm.running_var
        return mean is None or variance is None or bool((mean == 0).all() and (variance == 1).all())

    return group_norms_where(net, fresh)


def as_saved(net: nn.Module, keys: Collection[str]) -> int:
    """A GroupNorm for each BatchNorm whose statistics the saved weights do not have; returns how many."""
    return group_norms_where(net, lambda name, _: f"{name}.running_mean" not in keys)


def hold_statistics(net: nn.Module) -> None:
    """Every BatchNorm uses its kept statistics, also in training; to be called after each `net.train()`."""
    for module in net.modules():
        if isinstance(module, Norm):
            module.eval()
