"""No BatchNorm is trained: with batch statistics packed would differ from one by one, and two processes from one."""

from __future__ import annotations

from torch import nn


def freeze_batch_norm(module: nn.Module) -> int:
    """Turn every BatchNorm inside a module into a fixed scale and shift, in place; returns how many there were.

    Their keys and values stay those of the checkpoint. A module that is itself a BatchNorm is left alone.
    """
    found = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    if found:
        from timm.layers.norm_act import freeze_batch_norm_2d

        freeze_batch_norm_2d(module)
    return found
