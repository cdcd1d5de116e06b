"""From a query's state to its mask: a few layers that read the pyramid, then a dot product with the pixel embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.pixel_decoder import FourierPosition, PixelFeatures


class ReadPixels(nn.Module):
    """One decoder layer: the query attends to a feature map, biased towards its own coarse mask, then an MLP.

    Queries never see each other, so a packed call equals K single ones. The bias is a soft form of the masked attention
    of Mask2Former (arXiv 2112.01527): its strength is learned per head.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_memory, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.strength = nn.Parameter(torch.full((heads,), 0.5))

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """queries: (B, K, D); memory: (B, N, D); coarse: (B, K, N) mask logits. Returns (B, K, D)."""
        b, k, d = queries.shape
        q = self.query(self.norm_query(queries)).view(b, k, self.heads, -1).transpose(1, 2)
        keys, values = self.key_value(self.norm_memory(memory)).view(b, -1, 2, self.heads, d // self.heads).unbind(2)
        bias = self.strength[:, None, None] * coarse[:, None].clamp(-6, 6)
        read = F.scaled_dot_product_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias.to(q.dtype)
        )
        queries = queries + self.out(read.transpose(1, 2).reshape(b, k, d))
        return queries + self.mlp(self.norm_mlp(queries))


@dataclass(slots=True)
class Masks:
    """logits: (B, K, H/s, W/s), s = 2 with the detail step, else 4. coarse: list of (B, K, H/4, W/4), one per stage.
    embedding: (B, K, E) what is compared with pixels. state: (B, K, D). nouns: (B, K, N) unit vectors or None.
    presence: (B, K) what the pixels say for a referent, to be added to the language model's evidence, or None."""

    logits: torch.Tensor
    coarse: list[torch.Tensor]
    embedding: torch.Tensor
    state: torch.Tensor
    nouns: torch.Tensor | None
    presence: torch.Tensor | None = None


class PresenceFromPixels(nn.Module):
    """Evidence for a referent from the state that has read the pixels and from how sure the mask is of its best ones.

    The language model alone judges badly whether a small thing is there; the mask head has looked.
    """

    def __init__(self, dim: int, best: int = 8):
        super().__init__()
        self.best = best
        self.mix = nn.Sequential(nn.Linear(dim + 2, dim), nn.GELU(), nn.Linear(dim, 1))
        nn.init.zeros_(self.mix[2].weight)
        nn.init.zeros_(self.mix[2].bias)

    def forward(self, state: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """state: (B, K, D); first, last: (B, K, h, w) mask logits before and after reading. Returns (B, K) float32."""
        tops = [x.float().flatten(2).topk(self.best).values.mean(-1, keepdim=True) for x in (first, last)]
        return self.mix(torch.cat([state.float(), *(t.clamp(-20, 20) / 5 for t in tops)], -1))[..., 0].float()


class MaskHead(nn.Module):
    """Dot-product mask head over the pyramid of `PixelDecoder`."""

    def __init__(self, hidden: int, head: dict[str, Any]):
        super().__init__()
        dim, embed = head["dim"], head["embed_dim"]
        self.enter = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, dim), nn.GELU(), nn.Linear(dim, dim))
        self.position = nn.ModuleList(FourierPosition(dim) for _ in range(2))
        self.layers = nn.ModuleList(ReadPixels(dim, head["heads"]) for _ in range(head["layers"]))
        self.leave = nn.LayerNorm(dim)
        self.to_mask = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, embed))
        self.bias = nn.Linear(dim, 1)
        self.to_detail = nn.Linear(dim, head["detail_dim"]) if head["detail_dim"] else None
        self.to_noun = nn.Linear(dim, head["noun_dim"]) if head["nouns"] else None
        self.presence = PresenceFromPixels(dim) if head["presence"] else None
        if head["nouns"]:
            self.trust = nn.Linear(dim, 1)  # how much the name alone says; little for "the largest object"
            nn.init.zeros_(self.trust.weight)
            nn.init.constant_(self.trust.bias, 6.0)
            self.level = nn.Parameter(torch.tensor(0.5))

    def coarse(
        self, state: torch.Tensor, embedding: torch.Tensor, named: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """state (B, K, D), embedding (B, E, h, w) to mask logits (B, K, h, w) and the query embedding (B, K, E).

        named: (B, K, h, w), cosine of the query's noun with each pixel's. Both are trained against the same prototypes,
        so a name finds its pixels before the dot product has learned anything.
        """
        vector = self.to_mask(state)
        scale = embedding.shape[1] ** -0.5
        logits = torch.einsum("bke,behw->bkhw", vector * scale, embedding.to(vector.dtype))
        logits = logits + self.bias(state)[..., None]
        if named is not None:
            logits = logits + F.softplus(self.trust(state))[..., None] * (named - self.level).to(logits.dtype)
        return logits, vector

    def forward(self, hidden: torch.Tensor, pixels: PixelFeatures) -> Masks:
        """hidden: (B, K, H) the states that predict [SEG] or [REJ]."""
        queries = self.enter(hidden)
        first = self.leave(queries)
        nouns = named = None
        if self.to_noun is not None and pixels.nouns is not None:
            nouns = F.normalize(self.to_noun(first).float(), dim=-1)
            named = torch.einsum("bkn,bnhw->bkhw", nouns, pixels.nouns)
            named = F.interpolate(named, size=pixels.embedding.shape[-2:], mode="bilinear", align_corners=False)
        logits, vector = self.coarse(first, pixels.embedding, named)
        stages = [logits]
        memory = []
        for position, level in zip(self.position, pixels.memory, strict=True):
            height, width = level.shape[-2:]
            memory.append(((level + position(height, width)).flatten(2).transpose(1, 2), (height, width)))
        state = first
        for i, layer in enumerate(self.layers):
            tokens, size = memory[i % len(memory)]
            guide = F.interpolate(stages[-1].detach().float(), size=size, mode="area").flatten(2)
            queries = layer(queries, tokens, guide)
            state = self.leave(queries)
            logits, vector = self.coarse(state, pixels.embedding, named)
            stages.append(logits)
        presence = None if self.presence is None else self.presence(state, stages[0], stages[-1])
        if self.to_detail is not None and pixels.detail is not None:
            fine = self.to_detail(state)
            scale = fine.shape[-1] ** -0.5
            logits = F.interpolate(logits.float(), scale_factor=2.0, mode="bilinear", align_corners=False)
            logits = logits + torch.einsum("bkd,bdhw->bkhw", fine * scale, pixels.detail.to(fine.dtype))
        return Masks(logits.float(), stages, vector, state, nouns, presence)
