"""What makes training fast on CPUs and changes no result beyond rounding."""

from __future__ import annotations

import torch
from torch import nn


class Float32Depthwise(nn.Conv2d):
    """A depthwise convolution that leaves autocast: oneDNN's bf16 weight gradient is three times slower than fp32's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def prefer_float32_depthwise(model: nn.Module) -> int:
    """Turn every depthwise `nn.Conv2d` of the model into `Float32Depthwise`, in place; returns how many there were."""
    found = [m for m in model.modules() if type(m) is nn.Conv2d and m.groups == m.in_channels > 1]
    for module in found:
        module.__class__ = Float32Depthwise
    return len(found)


def prefer_eager_attention(vlm: nn.Module) -> None:
    """Let the language model of a stock class write its attention out, in place: the backward pass of torch's fused one
    takes three times as long in bf16 where rows are as short as ours."""
    vlm.set_attn_implementation({"text_config": "eager"})  # type: ignore[operator]
