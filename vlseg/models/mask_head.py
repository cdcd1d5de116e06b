"""From a query's state to its mask: a few layers that read the pyramid, then a dot product with the pixel embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.heads.fusion import Fused, RectifiedCostAggregator
from vlseg.models.heads.grounding import Grounding, heat
from vlseg.models.heads.slots import SlotAttention, Slots, union_logits
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
    presence: (B, K) what the pixels say for a referent, to be added to the language model's evidence, or None.
    slots: the parts of the mask, where `head.slots` > 1; `logits` is then their union. fused: with `head.fusion`.
    entered: (B, K, D), the state before it read the pixels. ground: (B, K, rows, columns), scores of the image tokens
    (`heads/grounding.py`), with `head.ground`."""

    logits: torch.Tensor
    coarse: list[torch.Tensor]
    embedding: torch.Tensor
    state: torch.Tensor
    nouns: torch.Tensor | None
    presence: torch.Tensor | None = None
    slots: Slots | None = None
    fused: Fused | None = None
    entered: torch.Tensor | None = None
    ground: torch.Tensor | None = None


@dataclass(slots=True)
class Clues:
    """What a mask is made of besides the state, the same at every stage. Q: K queries times S slots, slots innermost.

    pixels: the image's features. named: (B, Q, H/4, W/4), cosine of the query's noun with each pixel's, or None. fused:
    of `RectifiedCostAggregator`, or None. heat: (B, Q, rows, columns), of `heads/grounding.py`, or None.
    """

    pixels: PixelFeatures
    named: torch.Tensor | None
    fused: Fused | None
    heat: torch.Tensor | None = None


class PresenceFromPixels(nn.Module):
    """Evidence for a referent from the state that has read the pixels and from how sure the mask is of its best ones.

    The language model alone judges badly whether a small thing is there; the mask head has looked.
    """

    def __init__(self, dim: int, best: int = 8):
        super().__init__()
        self.best = best
        last = nn.Linear(dim, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mix = nn.Sequential(nn.Linear(dim + 2, dim), nn.GELU(), last)

    def forward(self, state: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """state: (B, K, D); first, last: (B, K, h, w) mask logits before and after reading. Returns (B, K) float32."""
        tops = [x.float().flatten(2).topk(self.best).values.mean(-1, keepdim=True) for x in (first, last)]
        seen = torch.cat([state.float(), *(t.clamp(-20, 20) / 5 for t in tops)], -1)
        return self.mix(seen.to(next(self.mix.parameters()).dtype))[..., 0].float()


class PresenceFromStates(nn.Module):
    """More evidence, from what words and image have come to: the language model's state beyond its two token logits,
    the state that has read the pixels, and how surely the query points at one place."""

    def __init__(self, hidden: int, dim: int, width: int, points: bool):
        """hidden: width of the language model's states; dim: of the head's; width: of this layer; points: whether the
        head has `grounding`. Begins with no say."""
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mix = nn.Sequential(nn.Linear(hidden + dim + 2 * points, width), nn.GELU(), last)

    def forward(self, hidden: torch.Tensor, state: torch.Tensor, ground: torch.Tensor | None) -> torch.Tensor:
        """hidden: (B, K, H); state: (B, K, D); ground: (B, K, rows, columns), scores of the image tokens.

        Returns (B, K) float32.
        """
        told = [self.norm(hidden).float(), state.float()]
        if ground is not None:
            logs = F.log_softmax(ground.flatten(2), dim=-1)
            told += [logs.amax(-1, keepdim=True), (logs.exp() * logs).sum(-1, keepdim=True)]  # highest, and -entropy
        return self.mix(torch.cat(told, -1).to(self.norm.weight.dtype))[..., 0].float()


class MaskHead(nn.Module):
    """The "dot" head over the pyramid of `PixelDecoder`, and what all heads share (see `vlseg/models/heads`).

    A head of another kind makes its own `make_reader` and `read`, and `prepare` where part of it needs no query.
    progress: of the training run, 0..1; set by whoever trains, for what changes on the way. 1: as at inference.
    """

    def __init__(self, hidden: int, head: dict[str, Any], scales: int = 3):
        """hidden: width of the states; head: as in `VLSegConfig`; scales: how many `PixelFeatures.levels` there are."""
        super().__init__()
        dim, embed = head["dim"], head["embed_dim"]
        self.slots, self.progress = head["slots"], 1.0
        self.enter = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, dim), nn.GELU(), nn.Linear(dim, dim))
        self.make_reader(head)
        self.leave = nn.LayerNorm(dim)
        self.to_mask = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, embed))
        self.bias = nn.Linear(dim, 1)
        self.to_detail = nn.Linear(dim, head["detail_dim"]) if head["detail_dim"] else None
        self.to_noun = nn.Linear(dim, head["noun_dim"]) if head["nouns"] else None
        self.presence = PresenceFromPixels(dim) if head["presence"] else None
        self.presence_states: PresenceFromStates | None = None
        if head["presence"] and head["presence_dim"]:
            self.presence_states = PresenceFromStates(hidden, dim, head["presence_dim"], bool(head["ground"]))
        if head["nouns"]:
            self.trust = nn.Linear(dim, 1)  # how much the name alone says; little for "the largest object"
            nn.init.zeros_(self.trust.weight)
            nn.init.constant_(self.trust.bias, 6.0)
            self.level = nn.Parameter(torch.tensor(0.5))
        self.grounding: Grounding | None = None
        if head["ground"]:
            self.grounding = Grounding(hidden, head["ground"])
            self.heed = nn.Linear(dim, 1)  # how much of it to follow; little for "all the dogs"
            nn.init.zeros_(self.heed.weight)
            nn.init.constant_(self.heed.bias, -0.5)
        self.follow: nn.Linear | None = None
        if head["group"]:
            self.follow = nn.Linear(dim, 1)  # how much of a mask its groups decide; little for a part of a thing
            nn.init.zeros_(self.follow.weight)
            nn.init.constant_(self.follow.bias, 2.0)
        self.fusion: RectifiedCostAggregator | None = None
        if head["fusion"] == "rca":
            self.fusion = RectifiedCostAggregator(dim, scales)
            self.to_fused = nn.Linear(dim, dim)
        if self.slots > 1:
            self.slot = nn.Parameter(torch.randn(self.slots, dim))
            self.slot_score = nn.Linear(dim, 1)

    # what a kind has of its own --------------------------------------------------------------------------------------
    def make_reader(self, head: dict[str, Any]) -> None:
        """Make the modules that `read` uses."""
        dim, layers = head["dim"], head["layers"]
        self.position = nn.ModuleList(FourierPosition(dim) for _ in range(2))
        self.layers = nn.ModuleList(ReadPixels(dim, head["heads"]) for _ in range(layers))
        several = head["slots"] > 1
        self.mix = nn.ModuleList(SlotAttention(dim, head["heads"]) for _ in range(layers)) if several else None

    def prepare(self, pixels: PixelFeatures) -> PixelFeatures:
        """The part of the head that depends on the image alone."""
        return pixels

    def read(
        self, queries: torch.Tensor, state: torch.Tensor, clues: Clues
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Let the queries read the pixels. queries: (B, Q, D); state: the same, normalised by `leave`.

        Returns states (B, Q, D), query embeddings (B, Q, E) and the mask logits (B, Q, H/4, W/4) of every stage.
        """
        memory = []
        for position, level in zip(self.position, clues.pixels.memory, strict=True):
            height, width = level.shape[-2:]
            seen = per_query(level + position(height, width), clues.fused)
            memory.append((seen.flatten(2).transpose(1, 2), (height, width)))
        logits, vector = self.compare(state, clues)
        stages = [logits]
        for i, layer in enumerate(self.layers):
            tokens, size = memory[i % len(memory)]
            guide = F.interpolate(stages[-1].detach().float(), size=size, mode="area").flatten(2)
            rows = len(tokens)  # as many as images, or as queries where each has a memory of its own
            read = layer(queries.reshape(rows, -1, queries.shape[-1]), tokens, guide.reshape(rows, -1, guide.shape[-1]))
            queries = read.view_as(queries)
            if self.mix is not None:
                queries = self.mix[i](queries.reshape(-1, self.slots, queries.shape[-1])).view_as(queries)
            state = self.leave(queries)
            logits, vector = self.compare(state, clues)
            stages.append(logits)
        return state, vector, stages

    # what all kinds share --------------------------------------------------------------------------------------------
    def compare(self, state: torch.Tensor, clues: Clues) -> tuple[torch.Tensor, torch.Tensor]:
        """state (B, Q, D) to mask logits (B, Q, H/4, W/4), a dot product with every pixel, and the embeddings (B, Q, E)
        that it is taken of."""
        embedding = clues.pixels.embedding
        vector = self.to_mask(state)
        scale = embedding.shape[1] ** -0.5
        logits = torch.einsum("bke,behw->bkhw", vector * scale, embedding.to(vector.dtype))
        return self.with_clues(logits, state, clues), vector

    def with_clues(self, logits: torch.Tensor, state: torch.Tensor, clues: Clues) -> torch.Tensor:
        """Add bias, name, heat and fused features to mask logits (B, Q, H/4, W/4).

        The cosines of the name are trained against the same prototypes on both sides, so a name finds its pixels before
        the dot product has learned anything.
        """
        logits = logits + self.bias(state)[..., None]
        if clues.named is not None:
            logits = logits + F.softplus(self.trust(state))[..., None] * (clues.named - self.level).to(logits.dtype)
        if clues.heat is not None:
            pointed = F.interpolate(clues.heat, size=logits.shape[-2:], mode="bilinear", align_corners=False)
            logits = logits + F.softplus(self.heed(state))[..., None] * pointed.to(logits.dtype)
        if clues.fused is not None:
            own = clues.fused.features
            asked = (self.to_fused(state) * own.shape[2] ** -0.5).unflatten(1, (own.shape[1], self.slots))
            extra = torch.einsum("bksd,bkdhw->bkshw", asked, own.to(asked.dtype)).flatten(1, 2)
            logits = logits + F.interpolate(extra, size=logits.shape[-2:], mode="bilinear", align_corners=False)
        return logits

    def forward(self, hidden: torch.Tensor, pixels: PixelFeatures, seen: torch.Tensor | None = None) -> Masks:
        """hidden: (B, K, H) the states that predict [SEG] or [REJ]; pixels: what `prepare` returned; seen: (B, H, rows,
        columns), the states of the image tokens, which a head with `grounding` needs."""
        queries = self.enter(hidden)
        entered = self.leave(queries)
        nouns = named = None
        if self.to_noun is not None and pixels.nouns is not None:
            nouns = F.normalize(self.to_noun(entered).float(), dim=-1)
            named = torch.einsum("bkn,bnhw->bkhw", nouns, pixels.nouns)
            named = F.interpolate(named, size=pixels.embedding.shape[-2:], mode="bilinear", align_corners=False)
        ground = pointed = None
        if self.grounding is not None and seen is not None:
            ground = self.grounding(hidden, seen)
            pointed = heat(ground)
        fused = None if self.fusion is None else self.fusion(pixels.levels, entered)
        state = entered
        if self.slots > 1:
            queries = (queries[:, :, None] + self.slot).flatten(1, 2)
            state = self.leave(queries)
            named = None if named is None else named.repeat_interleave(self.slots, 1)
            pointed = None if pointed is None else pointed.repeat_interleave(self.slots, 1)
        state, vector, stages = self.read(queries, state, Clues(pixels, named, fused, pointed))
        if self.follow is not None and pixels.groups is not None:
            stages.append(pixels.groups.settle(stages[-1], self.follow(state)[..., 0].sigmoid()))
        logits = stages[-1]
        if self.to_detail is not None and pixels.detail is not None:
            fine = self.to_detail(state)
            scale = fine.shape[-1] ** -0.5
            logits = F.interpolate(logits.float(), scale_factor=2.0, mode="bilinear", align_corners=False)
            logits = logits + torch.einsum("bkd,bdhw->bkhw", fine * scale, pixels.detail.to(fine.dtype))
        masks = Masks(logits.float(), stages, vector, state, nouns, fused=fused, entered=entered, ground=ground)
        if self.slots > 1:
            self.gather(masks)
        if self.presence is not None:
            masks.presence = self.presence(masks.state, masks.coarse[0], masks.coarse[-1])
            if self.presence_states is not None:
                masks.presence = masks.presence + self.presence_states(hidden, masks.state, ground)
        return masks

    def gather(self, masks: Masks) -> None:
        """From slots (Q = K * S) to queries (K), in place: unions of masks, means of states and embeddings."""
        parts = (-1, self.slots)
        scores = self.slot_score(masks.state)[..., 0].float().unflatten(1, parts)
        masks.slots = Slots(masks.logits.unflatten(1, parts), scores)
        masks.logits = union_logits(masks.slots.logits, scores)
        masks.coarse = [union_logits(stage.unflatten(1, parts), scores.to(stage.dtype)) for stage in masks.coarse]
        masks.state, masks.embedding = (x.unflatten(1, parts).mean(2) for x in (masks.state, masks.embedding))


def per_query(level: torch.Tensor, fused: Fused | None) -> torch.Tensor:
    """A map (B, D, h, w) as every query sees it, (B * K, D, h, w): with its fused features. As it is without fusion."""
    if fused is None:
        return level
    own = F.interpolate(fused.features.flatten(0, 1), size=level.shape[-2:], mode="bilinear", align_corners=False)
    return level.repeat_interleave(fused.features.shape[1], 0) + own
