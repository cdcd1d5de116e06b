"""The "sam" head: image and query change each other, and the image is upscaled for every query."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.channel_norm import ChannelNorm
from vlseg.models.mask_head import Clues, MaskHead, per_query
from vlseg.models.pixel_decoder import FourierPosition


class Attention(nn.Module):
    """Multi-head attention of one set of tokens to another; keys and values may differ by their positions."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query: (B, N, D); key, value: (B, M, D). Returns (B, N, D)."""
        parts = (self.query(query), self.key(key), self.value(value))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """SAM's decoder block (arXiv 2304.02643): among the tokens, tokens to image, MLP, image to tokens; norms behind."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.among, self.to_image, self.to_tokens = (Attention(dim, heads) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, tokens: torch.Tensor, image: torch.Tensor, names: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens: (B, T, D); image: (B, N, D); names, places: what is added to either wherever it asks or is asked."""
        asking = tokens + names
        tokens = self.norms[0](tokens + self.among(asking, asking, tokens))
        tokens = self.norms[1](tokens + self.to_image(tokens + names, image + places, image))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        image = self.norms[3](image + self.to_tokens(image + places, tokens + names, tokens))
        return tokens, image


class SamHead(MaskHead):
    """SAM's mask decoder with the words' state as its prompt and SAM 2's finer levels (arXiv 2408.00714) on the way up.

    A query has a prompt token and a mask token per slot. The image is copied for each query, so that what it becomes is
    the query's own: the dearest head in memory, as SAM is.
    """

    def make_reader(self, head: dict[str, Any]) -> None:
        """See `MaskHead.make_reader`."""
        dim, embed = head["dim"], head["embed_dim"]
        half, quarter = max(dim // 4, 8), max(dim // 8, 8)
        self.mask_token = nn.Parameter(torch.randn(head["slots"], dim))
        self.position = FourierPosition(dim)  # type: ignore[assignment]  # the base class has one a level
        self.blocks = nn.ModuleList(TwoWayBlock(dim, head["heads"]) for _ in range(head["layers"]))
        self.last = Attention(dim, head["heads"])
        self.last_norm = nn.LayerNorm(dim)
        self.up8, self.up4 = nn.ConvTranspose2d(dim, half, 2, stride=2), nn.ConvTranspose2d(half, quarter, 2, stride=2)
        self.side8, self.side4 = nn.Conv2d(dim, half, 1), nn.Conv2d(embed, quarter, 1)
        self.norm8 = ChannelNorm(half)
        self.hyper = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, quarter)
        )

    def read(
        self, queries: torch.Tensor, state: torch.Tensor, clues: Clues
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """See `MaskHead.read`. Two stages: before and after."""
        before, _ = self.compare(state, clues)
        level = clues.pixels.memory[0]
        size, width = level.shape[-2:], queries.shape[-1]
        prompts = queries.reshape(-1, self.slots, width)  # (B * K, S, D)
        copies = len(prompts) // len(level)
        names = tokens = torch.cat([self.mask_token.to(prompts.dtype).expand(len(prompts), -1, -1), prompts], 1)
        places = self.position(*size).flatten(1).t()
        seen = per_query(level, clues.fused)
        if clues.fused is None:
            seen = seen.repeat_interleave(copies, 0)
        image = seen.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens, image = block(tokens, image, names, places)
        tokens = self.last_norm(tokens + self.last(tokens + names, image + places, image))
        fine = self.upscaled(image.transpose(1, 2).unflatten(2, size), clues, copies)
        state = self.leave(tokens[:, : self.slots]).reshape(queries.shape)
        weights = self.hyper(state).reshape(len(prompts), self.slots, -1) * fine.shape[1] ** -0.5
        logits = torch.einsum("nsc,nchw->nshw", weights, fine.to(weights.dtype))
        logits = self.with_clues(logits.reshape(*before.shape), state, clues)
        return state, self.to_mask(state), [before, logits]

    def upscaled(self, image: torch.Tensor, clues: Clues, copies: int) -> torch.Tensor:
        """(B * K, D, H/16, W/16) to (B * K, C, H/4, W/4), with what the finer levels know."""
        sides = (self.side8(clues.pixels.memory[1]), self.side4(clues.pixels.embedding))
        at8, at4 = (side.repeat_interleave(copies, 0) for side in sides)
        return F.gelu(self.up4(F.gelu(self.norm8(self.up8(image) + at8))) + at4)
