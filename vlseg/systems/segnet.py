"""SegNet (arXiv 1511.00561): a decoder that puts values back where the encoder's max pooling found them.

Written from the paper, for it is in no library that we use. GroupNorm stands in the place of BatchNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.systems.net_norms import groups_of

WIDTHS = (64, 128, 256, 512, 512)  # the convolutional part of VGG-16
CONVOLUTIONS = (2, 2, 3, 3, 3)


class SegNet(nn.Module):
    """Encoder and decoder of as many stages as `widths`; each stage halves the sides.

    widths: channels a stage; convolutions: 3 x 3 convolutions a stage. The last one of the decoder gives the logits.
    """

    def __init__(self, classes: int, widths: Sequence[int] = WIDTHS, convolutions: Sequence[int] = CONVOLUTIONS):
        super().__init__()
        if len(widths) != len(convolutions):
            raise ValueError(f"{len(widths)} widths with {len(convolutions)} numbers of convolutions")
        self.options = {"widths": list(widths), "convolutions": list(convolutions)}
        before = [3, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _stage([enter, *[width] * count]) for enter, width, count in zip(before, widths, convolutions, strict=True)
        )
        after = [max(widths[0], 16), *widths[:-1]]
        stages = zip(widths, after, convolutions, strict=True)
        self.decoder = nn.ModuleList(_stage([*[width] * count, leave]) for width, leave, count in stages)
        self.classify = nn.Conv2d(after[0], classes, 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to logits (B, classes, H, W), of any size of at least 2^stages."""
        x, kept = pixels, []
        for stage in self.encoder:
            x = stage(x)
            size = x.shape[-2:]
            x, places = F.max_pool2d(x, 2, return_indices=True)
            kept.append((places, size))
        for stage, (places, size) in zip(reversed(self.decoder), reversed(kept), strict=True):
            x = stage(F.max_unpool2d(x, places, [2, 2], output_size=size))
        logits: torch.Tensor = self.classify(x)
        return logits


def _stage(channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for enter, leave in pairwise(channels):
        layers += [nn.Conv2d(enter, leave, 3, padding=1, bias=False), nn.GroupNorm(groups_of(leave), leave)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
