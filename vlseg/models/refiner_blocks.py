"""Parts of the refiner: the mask encoder, and attention between tokens and pixels in both directions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.channel_norm import ChannelNorm


class MaskEncoder(nn.Module):
    """A mask to features at strides 8, 4 and 2, to be added to those of the image."""

    def __init__(self, finest: int, fine: int, dim: int):
        super().__init__()
        self.at2 = nn.Conv2d(1, finest, 3, padding=1)
        self.at4 = nn.Conv2d(1, fine, 4, stride=2, padding=1)
        self.norm = ChannelNorm(fine)
        self.at8 = nn.Conv2d(fine, dim, 4, stride=2, padding=1)

    def forward(self, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 1, S/2, S/2) in -1..1 to (B, dim, S/8, S/8), (B, fine, S/4, S/4), (B, finest, S/2, S/2)."""
        edges = self.at4(mask)
        return self.at8(F.gelu(self.norm(edges))), edges, self.at2(mask)


def pooled(project: nn.Linear, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What lies inside and outside of a mask as two tokens, (B, 2, dim).

    context: (B, dim, h, w); mask: (B, H, W) in 0..1. An empty side gives the bias alone.
    """
    size = (context.shape[-2], context.shape[-1])
    share = F.adaptive_avg_pool2d(mask[:, None], size).flatten(1).to(context.dtype)
    sides = torch.stack([share, 1 - share], 1)
    means = sides @ context.flatten(2).transpose(1, 2) / (sides.sum(-1, keepdim=True) + 1e-4)
    inside, outside = project.weight.chunk(2)
    return torch.stack([means[:, 0] @ inside.t(), means[:, 1] @ outside.t()], 1) + project.bias.view(2, -1)


class Attention(nn.Module):
    """Multi-head attention of x to y, both normalised first."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_y = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x: (B, N, dim), y: (B, M, dim); returns what is added to x."""
        query = self._split(self.query(self.norm_x(x)))
        key, value = (self._split(part) for part in self.key_value(self.norm_y(y)).chunk(2, -1))
        found = F.scaled_dot_product_attention(query, key, value)
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """SAM's block: tokens among themselves, tokens to pixels, an MLP, pixels to tokens; each added to what it reads."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.among, self.read, self.write = (Attention(dim, heads) for _ in range(3))
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, tokens: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens: (B, T, dim), pixels: (B, N, dim); both changed."""
        tokens = tokens + self.among(tokens, tokens)
        tokens = tokens + self.read(tokens, pixels)
        tokens = tokens + self.mlp(tokens)
        return tokens, pixels + self.write(pixels, tokens)
