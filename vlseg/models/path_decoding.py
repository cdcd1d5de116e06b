"""Paths written by the model: K queries of an image side by side, over one cache of keys and values, true to grammar.

The packed row [image][query 1]..[query K] is read once and its keys and values are kept. Then every step reads one
token of each query that is still writing, in one pass: a token sees the image, its own query and its own path, nothing
of its neighbours, and stands at the position that follows its own predecessor. That gives what writing one path after
the other gives (tests/models/test_path_decoding.py), at a K-th of the passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from vlseg.models.grammar import PathGrammar
from vlseg.models.modeling import ImageFeatures, VLSegModel
from vlseg.models.packing import IMAGE, PADDING, additive_mask
from vlseg.types import VLSegError


@dataclass(frozen=True, slots=True)
class PathPiece:
    """What is written of a path so far: all rings of it that are whole. tokens: of the codec, a path by themselves.

    image, query: its place in the batch. done: whether nothing follows.
    """

    image: int
    query: int
    tokens: list[int]
    done: bool


class PathReader:
    """Reads path tokens behind a packed row whose keys and values are in `cache`; one step after the other.

    query: tensors as in `Packed.tensors`, the row that filled the cache. lengths: (B, K) int64 tokens of each query.
    """

    def __init__(self, model: VLSegModel, image: ImageFeatures, query: Mapping[str, torch.Tensor], cache: DynamicCache):
        self.model, self.cache = model, cache
        self.prefix = model.family.prefix(image.tokens)
        owner = query["query_owner"]
        self.keys = torch.cat([owner.new_full((len(owner), len(self.prefix.ids)), IMAGE), owner], 1)
        count = query["query_answers"].shape[1]
        numbers = torch.arange(1, count + 1, device=owner.device)
        self.lengths = (owner[:, None] == numbers[:, None]).sum(-1)

    def step(self, owner: torch.Tensor, ids: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Logits of the tokens that follow, (B, n, V) float32, whatever the grammar allows.

        owner: (B, n) int64, the query 1..K of each token, -1 for none; ids: (B, n) int64, ids of the language model's
        vocabulary; offset: (B, n) int64, place within the own query, words included. A query has one token a step.
        """
        self.keys = torch.cat([self.keys, owner], 1)
        own = owner[:, :, None]
        visible = (self.keys[:, None] == IMAGE) | ((self.keys[:, None] == own) & (own != PADDING))
        visible[:, :, -owner.shape[1] :] |= torch.eye(owner.shape[1], dtype=torch.bool, device=owner.device)
        positions = self.model.family.positions(self.prefix, offset)[..., len(self.prefix.ids) :]
        states = self.model.vlm.model(
            input_ids=ids,
            attention_mask=additive_mask(visible, self.model.attention_dtype(ids.device)),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.path_token_logits(states)


@torch.no_grad()
def stream_paths(
    model: VLSegModel,
    image: ImageFeatures,
    query: Mapping[str, torch.Tensor],
    cache: DynamicCache,
    wanted: torch.Tensor,
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[Sequence[int]] | None = None,
    grammar: PathGrammar | None = None,
    begins: Mapping[tuple[int, int], Sequence[int]] | None = None,
) -> Iterator[PathPiece]:
    """Write the paths of the wanted queries, and yield each whenever a ring of it is whole; its last piece is done.

    query, cache: the packed row (`Packed.tensors`) and what `VLSegModel.forward` put into the cache; used up by this.
    wanted: (B, K) bool. max_tokens: of a path, its end included; the model's own limit where None. At the limit the
    grammar leads to an end, so that every path is whole. temperature: 0 takes the likeliest token; else tokens are
    drawn from softmax(logits / temperature). seeds: one number for each query of each image: what is drawn for a query
    depends on its seed, not on its neighbours; default: its number in its row. grammar: in place of the model's own.
    begins: by (image, query) tokens that a path begins with, such as a box that is known; the model writes the rest.

    Raises VLSegError for a temperature below 0, a limit below 1, a beginning that is none or leaves no room for an end.
    """
    limit = model.config.paths["max_tokens"] if max_tokens is None else max_tokens
    if temperature < 0 or limit < 1:
        raise VLSegError(f"paths: temperature {temperature} must be at least 0, max_tokens {limit} at least 1")
    rules, begins = grammar or model.path_grammar, begins or {}
    for begin in begins.values():
        if rules.vocabulary.steps_to_stop[rules.vocabulary.run(begin)[-1]] > limit - len(begin):
            raise VLSegError(f"paths: a beginning of {len(begin)} tokens leaves no room for an end in {limit}")
    ends = {rules.vocabulary.first["ring"], rules.vocabulary.first["end"]}
    end, first = rules.vocabulary.first["end"], model.config.paths["first"]
    reader = PathReader(model, image, query, cache)
    device = reader.keys.device
    rows = [[k for k, yes in enumerate(row) if yes] for row in wanted.tolist()]
    written: list[list[list[int]]] = [[[] for _ in row] for row in wanted.tolist()]
    draws = _generators(rows, seeds) if temperature else {}
    state = torch.full(wanted.shape, rules.start, device=device)
    token = torch.full(wanted.shape, -1, device=device)  # the last one of each query; before it [SEG]
    for number in range(limit):
        if not any(rows):
            return
        most = max(map(len, rows))
        slots = torch.tensor([row + [-1] * (most - len(row)) for row in rows], device=device)
        real, slot = slots >= 0, slots.clamp(min=0)
        last = token.gather(1, slot)
        ids = torch.where(last < 0, model.config.seg_token_id, first + last)
        offset = torch.where(real, reader.lengths.gather(1, slot) + number, 0)
        logits = reader.step(torch.where(real, slots + 1, PADDING), ids, offset)
        now = state.gather(1, slot)
        logits = rules.masked(logits, now, limit - number)
        if temperature:
            logits = logits / temperature + _gumbel(rows, draws, logits)
        chosen = logits.argmax(-1)
        for b, row in enumerate(rows):
            for i, k in enumerate(row):
                if number < len(begin := begins.get((b, k), ())):
                    chosen[b, i] = begin[number]
        follows = rules.advance(now, chosen)
        for b, row in enumerate(rows):  # a padded slot names query 0, whose own values must stay
            index = slots[b, : len(row)]
            token[b, index], state[b, index] = chosen[b, : len(row)], follows[b, : len(row)]
        values = chosen.tolist()
        for b, row in enumerate(rows):
            writing = []
            for k, value in zip(row, values[b], strict=False):
                path = written[b][k]
                path.append(value)
                done = value == end
                if not done:
                    writing.append(k)
                if value in ends:
                    yield PathPiece(b, k, [*path[:-1], end], done)
            rows[b] = writing


def decode_paths(*arguments: object, **options: object) -> dict[tuple[int, int], list[int]]:
    """Whole paths by (image, query), of the wanted queries; arguments as in `stream_paths`."""
    pieces = stream_paths(*arguments, **options)  # type: ignore[arg-type]
    return {(piece.image, piece.query): piece.tokens for piece in pieces if piece.done}


def _generators(
    rows: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]] | None
) -> dict[tuple[int, int], torch.Generator]:
    """A source of chance for every query that writes; on the CPU, so that devices agree."""
    made = {}
    for b, row in enumerate(rows):
        for k in row:
            made[b, k] = torch.Generator().manual_seed(k if seeds is None else seeds[b][k])
    return made


def _gumbel(
    rows: Sequence[Sequence[int]], draws: Mapping[tuple[int, int], torch.Generator], logits: torch.Tensor
) -> torch.Tensor:
    """Noise whose argmax with the logits is a draw from their softmax, (B, n, V); what is forbidden stays so."""
    noise = torch.zeros(logits.shape)
    for b, row in enumerate(rows):
        for slot, k in enumerate(row):
            noise[b, slot].exponential_(generator=draws[b, k])
    return -noise.clamp(min=1e-20).log().to(logits.device)
