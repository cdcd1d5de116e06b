"""The "eomt" head: queries enter the blocks of a small ViT, as in EoMT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.channel_norm import ChannelNorm
from vlseg.models.mask_head import Clues, MaskHead
from vlseg.models.pixel_decoder import FourierPosition, PixelFeatures


class Block(nn.Module):
    """A plain ViT block that patches and queries go through with the same weights.

    Patches see patches. A query sees patches and the slots of its own query, and nobody sees it: in EoMT all tokens see
    all, but there the queries are the same for every image, and here an image is encoded once for any words.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) to (3, B, heads, N, D / heads): queries, keys, values."""
        return self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def add(self, tokens: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """What attention read, (B, heads, N, D / heads), and the MLP, added to the tokens (B, N, D)."""
        tokens = tokens + self.proj(read.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.norm2(tokens))

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) patches to the same shape."""
        q, k, v = self.split(tokens)
        return self.add(tokens, F.scaled_dot_product_attention(q, k, v))

    def queries(self, queries: torch.Tensor, patches: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """queries: (B, Q, D); patches: (B, N, D), as they came into this block; visible: (B, Q, N + Q) bool."""
        _, patch_keys, patch_values = self.split(patches)
        q, k, v = self.split(queries)
        mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, float("-inf"))
        keys, values = torch.cat([patch_keys, k], 2), torch.cat([patch_values, v], 2)
        return self.add(queries, F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[:, None]))


class Upscale(nn.Module):
    """Twice the size: EoMT's scale block (arXiv 2503.19108)."""

    def __init__(self, dim: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.smooth = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = ChannelNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.smooth(F.gelu(self.up(x))))


def annealing(progress: float, blocks: int) -> list[float]:
    """Share of masked queries in each block, at `progress` (0..1) of the training run.

    EoMT's schedule as fractions of the run: block i's share is 1 up to (i + 1) / (blocks + 2), falls as
    (1 - t)^0.9 over the next such stretch, and is 0 from then on. From the first block to the last.
    """
    shares = []
    for i in range(blocks):
        t = progress * (blocks + 2) - (i + 1)
        shares.append((1 - min(max(t, 0.0), 1.0)) ** 0.9)
    return shares


class EomtHead(MaskHead):
    """EoMT (arXiv 2503.19108) with the words' states as queries, on top of any pixel encoder as in PMT (2603.25398).

    The blocks work on the map at stride 16; their patches, upscaled, are added to the pixel embedding. Masked attention
    is annealed away in training (`progress`): at inference every query sees every patch.
    """

    def make_reader(self, head: dict[str, Any]) -> None:
        """See `MaskHead.make_reader`."""
        dim = head["dim"]
        self.position = FourierPosition(dim)  # type: ignore[assignment]  # the base class has one a level
        self.blocks = nn.ModuleList(Block(dim, head["heads"]) for _ in range(head["blocks"]))
        self.upscale = nn.Sequential(Upscale(dim), Upscale(dim), nn.Conv2d(dim, head["embed_dim"], 1))

    def prepare(self, pixels: PixelFeatures) -> PixelFeatures:
        """Let the patches go through the blocks: no query changes them."""
        level = pixels.memory[0]
        height, width = level.shape[-2:]
        trunk = [(level + self.position(height, width)).flatten(2).transpose(1, 2)]
        for block in self.blocks:
            trunk.append(block.patches(trunk[-1]))  # type: ignore[operator]
        last = trunk.pop().transpose(1, 2).unflatten(2, (height, width))
        return replace(pixels, embedding=pixels.embedding + self.upscale(last), trunk=trunk)

    def read(
        self, queries: torch.Tensor, state: torch.Tensor, clues: Clues
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """See `MaskHead.read`."""
        count = queries.shape[1]
        owner = torch.arange(count, device=queries.device) // self.slots
        own = (owner[:, None] == owner).expand(len(queries), -1, -1)
        size = clues.pixels.memory[0].shape[-2:]
        shares = annealing(self.progress, len(self.blocks)) if self.training else [0.0] * len(self.blocks)
        logits, vector = self.compare(state, clues)
        stages = [logits]
        for block, patches, share in zip(self.blocks, clues.pixels.trunk, shares, strict=True):
            seen = self.mask_of(stages[-1], size, share)
            queries = block.queries(queries, patches, torch.cat([seen, own], -1))  # type: ignore[operator]
            state = self.leave(queries)
            logits, vector = self.compare(state, clues)
            stages.append(logits)
        return state, vector, stages

    @staticmethod
    def mask_of(logits: torch.Tensor, size: torch.Size, share: float) -> torch.Tensor:
        """(B, Q, N) bool: the patches a query sees. A random `share` of the queries see only where their mask is."""
        guide = F.interpolate(logits.detach().float(), size=size, mode="area").flatten(2) > 0
        free = torch.rand(guide.shape[:2], device=guide.device) >= share if share else torch.ones_like(guide[..., 0])
        return guide | free[..., None] | ~guide.any(-1, keepdim=True)
