"""Roll-outs: paths that the model draws for queries of a batch, their log-probabilities, and the masks they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from vlseg.models.modeling import ImageFeatures, VLSegModel, answering
from vlseg.models.packing import Packed, pack_queries
from vlseg.models.path_decoding import decode_paths
from vlseg.models.path_head import codec_of, pack_paths
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.native_paths import boxed_by_mask, mask_boxes
from vlseg.training.batches import Batch
from vlseg.training.paths import truths

Truths = Mapping[tuple[int, int], np.ndarray]  # what the path of (image, query) should enclose, (H, W) bool


@dataclass(slots=True)
class Drawn:
    """Paths of Q queries, G of each, where the model is.

    truths: of the Q queries, in order of the rows. paths: Q times G lists of tokens. packed: row b holds every chosen
    query of image b G times, each copy with a path of its own behind it. left: (B, S) int64, how many tokens a path
    might still have in its place when it was drawn. path_of: (n,) int64, for each of the n path tokens in order of the
    rows which of the Q x G paths it belongs to. temperature: they were drawn from softmax(logits / temperature).
    """

    truths: list[np.ndarray]
    paths: list[list[list[int]]]
    packed: Packed
    left: torch.Tensor
    chosen: torch.Tensor
    path_of: torch.Tensor
    temperature: float


def choose(batch: Batch, most: int, chance: np.random.Generator) -> Truths:
    """At most so many queries an image, drawn by chance among those with a target: nothing can be won where the right
    answer is that there is none, for that is decided before a path begins."""
    found = truths(batch)
    chosen: dict[tuple[int, int], np.ndarray] = {}
    for b in range(len(batch.pixels)):
        mine = [place for place in found if place[0] == b]
        kept = sorted(chance.permutation(len(mine))[:most].tolist())
        chosen |= {mine[i]: found[mine[i]] for i in kept}
    return chosen


@torch.no_grad()
def draw(
    model: VLSegModel,
    features: ImageFeatures,
    batch: Batch,
    chosen: Truths,
    group: int,
    temperature: float,
    pad_id: int,
    chance: np.random.Generator,
) -> Drawn:
    """Let the model draw `group` paths for each chosen query of a batch, all side by side over one cache.

    features: of the batch's images; chosen: at least one query, in order of the images. What is drawn depends on
    `chance` alone. As in answers, a path begins with the box of the query's mask where the model's config says so.
    Raises VLSegError for a model without path mode.
    """
    words, device = batch.packed, model.device
    rows: list[list[list[int]]] = [[] for _ in batch.pixels]
    for b, k in chosen:
        rows[b] += [words.ids[b, words.owner[b] == k + 1].tolist()] * group
    packed = pack_queries(rows, pad_id)
    query = {name: value.to(device) for name, value in packed.tensors().items()}
    cache = DynamicCache()
    seen, states = model.read(features, query["query_ids"], query["query_owner"], query["query_offset"], cache=cache)
    begins: dict[tuple[int, int], list[int]] = {}
    if boxed_by_mask(model.config):
        once = answering(states, query["query_answers"])[:, ::group]  # the copies of a query have one mask
        masks = model.mask_head(once, features.pixels, seen).logits
        boxes = mask_boxes(masks, packed.valid[:, ::group].numpy(), codec_of(model.config))
        begins = {(b, k * group + copy): box for (b, k), box in boxes.items() for copy in range(group)}
    seeds = [chance.integers(2**62, size=len(row)).tolist() for row in rows]
    found = decode_paths(
        model, features, query, cache, packed.valid, temperature=temperature, seeds=seeds, begins=begins
    )
    paths = [[found[b, j] for j in range(len(row))] for b, row in enumerate(rows)]
    longer = pack_paths(rows, paths, model.config, pad_id)
    assert longer.path_targets is not None
    flat = [path for row in paths for path in row]
    given = [len(begins.get((b, j), ())) for b, row in enumerate(rows) for j in range(len(row))]
    # Of all path tokens, in order of the rows: the path, and whether the model chose it.
    path_of = torch.cat([torch.full((len(path),), i) for i, path in enumerate(flat)])
    own = torch.cat([torch.arange(len(path)) >= count for path, count in zip(flat, given, strict=True)])
    places = longer.path_targets >= 0
    return Drawn(
        list(chosen.values()),
        [flat[i : i + group] for i in range(0, len(flat), group)],
        Packed(*(value.to(device) for value in longer.tensors().values())),
        tokens_left(longer, model.config.paths["max_tokens"]).to(device),
        places.masked_scatter(places, own).to(device),
        path_of[own].to(device),
        temperature,
    )


def tokens_left(packed: Packed, most: int) -> torch.Tensor:
    """(B, S) int64: at each place of a path how many tokens, of `most`, it may still have, the one that the place
    predicts included; no meaning elsewhere."""
    answer = packed.answers.gather(1, (packed.owner - 1).clamp(min=0))  # the place before a query's [SEG]
    begins = packed.offset.gather(1, answer) + 1
    return most - (packed.offset - begins)


def log_probabilities(model: VLSegModel, features: ImageFeatures, drawn: Drawn) -> torch.Tensor:
    """Log-probabilities of the tokens that the model chose, (n,) float32 in order of the rows: under the grammar, the
    limit of length and the temperature that they were drawn with."""
    packed, chosen = drawn.packed, drawn.chosen
    assert packed.path_targets is not None
    assert packed.path_states is not None
    path = packed.path_targets >= 0
    states = model.read_row(features, packed.ids, packed.owner, packed.offset, path)
    logits = model.path_token_logits(states[chosen])
    logits = model.path_grammar.masked(logits, packed.path_states[chosen], drawn.left[chosen])
    tokens = packed.path_targets[chosen][:, None]
    return F.log_softmax(logits / drawn.temperature, dim=-1).gather(1, tokens)[:, 0]


@dataclass(frozen=True, slots=True)
class RollOut:
    """A path as a mask. image: (H, W, 3) uint8; coarse, truth: (H, W) bool; tokens: of the path."""

    image: np.ndarray
    coarse: np.ndarray
    truth: np.ndarray
    tokens: Sequence[int]


@torch.no_grad()
def roll_outs(
    model: VLSegModel,
    processor: VLSegProcessor,
    batches: Iterable[Batch],
    *,
    queries: int = 4,
    group: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[RollOut]:
    """What the model draws for the queries of batches, beside the truth: to train a refiner on a model's own mistakes.

    queries: of an image at most, among those with a target; group: paths for each. Raises VLSegError for a model
    without path mode.
    """
    codec, was = codec_of(model.config), model.training
    for number, batch in enumerate(batches):
        chance = np.random.default_rng([seed, number])
        chosen = choose(batch, queries, chance)
        if not chosen:
            continue
        model.eval()
        pixels = processor.normalise(batch.pixels.to(model.device))
        features = model.encode_image(pixels.to(model.dtype))
        drawn = draw(model, features, batch, chosen, group, temperature, processor.pad_id, chance)
        model.train(was)
        for (b, _), truth, paths in zip(chosen, drawn.truths, drawn.paths, strict=True):
            image = batch.pixels[b].cpu().numpy()
            for path in paths:
                yield RollOut(image, codec.decode(path, (truth.shape[0], truth.shape[1])), truth, path)
