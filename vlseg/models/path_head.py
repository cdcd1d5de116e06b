"""Path mode of the model: its tokens in tokenizer and language model, and rows of queries that go on with a path.

After the tokens of a query stand [SEG] and the tokens of its path; the state of each predicts the next one:

    words, suffix | [SEG]  box  box  box  box  vertex ... vertex
             SEG  |  box   box  box  box vertex vertex ... <path_end>     <- predicted

Nothing before [SEG] sees what follows, so scores and masks are what they are without a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlseg.masks.path_codec import PathCodec
from vlseg.masks.tokens import Vocabulary
from vlseg.models.configuration import VLSegConfig
from vlseg.models.grammar import PathGrammar, path_grammar
from vlseg.models.modeling import VLSegModel
from vlseg.models.packing import Packed, pack_queries
from vlseg.models.processing import VLSegProcessor
from vlseg.types import VLSegError

MAX_TOKENS = 128
CODEC = ("grid", "box_bins", "joint", "curves")


def codec_of(config: VLSegConfig) -> PathCodec:
    """The codec of a model's paths. Raises VLSegError for a model without path mode."""
    if not config.paths:
        raise VLSegError("this checkpoint has no path tokens: train it with paths.on=true, or use mask mode")
    return PathCodec(**{name: config.paths[name] for name in CODEC})


def grammar_of(config: VLSegConfig) -> PathGrammar:
    """The grammar of a model's paths. Raises VLSegError for a model without path mode."""
    codec = codec_of(config)
    return path_grammar(codec.grid, codec.box_bins, codec.joint, codec.curves)


def add_paths(
    model: VLSegModel, processor: VLSegProcessor, codec: PathCodec | None = None, max_tokens: int = MAX_TOKENS
) -> None:
    """Give a model path mode: every path token one id, in tokenizer and language model; in place.

    max_tokens: of the longest path, its end included. A model that has these tokens already is left as it is. Raises
    VLSegError for one that has others, and for a limit that leaves no room for a box.
    """
    codec = codec or PathCodec()
    if max_tokens < 6:
        raise VLSegError(f"paths.max_tokens = {max_tokens}: a box and its end are 5 tokens, a path needs more")
    settings = {name: getattr(codec, name) for name in CODEC}
    config = model.config
    if config.paths:
        if any(config.paths[name] != value for name, value in settings.items()):
            has = ", ".join(f"{name}={config.paths[name]}" for name in CODEC)
            raise VLSegError(f"paths: the model has path tokens already, with {has}; ask for the same")
        config.paths["max_tokens"] = max_tokens
        return
    config.paths = {**settings, "first": _add_tokens(model, processor.tokenizer, codec.vocabulary)}
    config.paths["max_tokens"] = max_tokens
    config.vlm = model.vlm.config  # which knows of the new rows
    processor.look_for_control_tokens()


def _add_tokens(model: VLSegModel, tokenizer: Any, vocabulary: Vocabulary) -> int:
    """Add the tokens; returns the id of the first. Rows start with the mean of those in use and a little of their place
    (random Fourier features), so that near places have near rows before anything is learned."""
    from tokenizers import AddedToken

    known = len(tokenizer)
    new = [AddedToken(name, special=True, normalized=False) for name in vocabulary.names]
    added = tokenizer.add_tokens(new, special_tokens=True)
    if added != len(new):
        raise VLSegError(f"the tokenizer has {len(new) - added} tokens of the names of path tokens already")
    vlm = model.vlm
    inputs = vlm.get_input_embeddings()
    if len(tokenizer) > inputs.weight.shape[0]:
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    place = torch.from_numpy(places(vocabulary)).float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        parts = {id(part.weight): part for part in (vlm.get_input_embeddings(), vlm.get_output_embeddings())}
        for part in parts.values():  # one, where they are tied
            rows = part.weight[:known].float()
            mixed = place @ torch.randn(place.shape[1], rows.shape[1], generator=generator)
            mixed *= 0.5 * rows.std().cpu() / mixed.std()
            part.weight[known : known + len(new)] = (rows.mean(0) + mixed.to(rows.device)).to(part.weight.dtype)
    return known


def places(vocabulary: Vocabulary, octaves: int = 5) -> np.ndarray:
    """(V, F) float64: where a token lies, as sines and cosines of x and y; commands have a place of their own each."""
    vertical, horizontal = _positions(vocabulary)
    waves = []
    for at in (horizontal, vertical):
        angle = at[:, None] * (np.pi * 2.0 ** np.arange(-1, octaves - 1))
        waves += [np.sin(angle), np.cos(angle)]
    features = np.concatenate(waves, 1)
    features[np.isnan(features)] = 0.0
    kinds = np.eye(len(vocabulary.classes))[vocabulary.token_class]
    return np.concatenate([features, kinds], 1)


def _positions(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """y and x of every token in 0..1, NaN where it has none. A bin of the box is either: it counts as both."""
    y, x = np.full(len(vocabulary), np.nan), np.full(len(vocabulary), np.nan)
    for number, name in enumerate(vocabulary.classes):
        mine = np.flatnonzero(vocabulary.token_class == number)
        value = np.arange(len(mine))
        if name == "box":
            y[mine] = x[mine] = value / max(1, len(mine) - 1)
        elif name == "xy":
            y[mine], x[mine] = value // vocabulary.grid, value % vocabulary.grid
            y[mine] /= vocabulary.grid - 1
            x[mine] /= vocabulary.grid - 1
        elif name in ("x", "y"):
            (x if name == "x" else y)[mine] = value / max(1, len(mine) - 1)
    return y, x


def pack_paths(
    rows: Sequence[Sequence[Sequence[int]]],
    paths: Sequence[Sequence[Sequence[int] | None]],
    config: VLSegConfig,
    pad_id: int,
    queries: int | None = None,
) -> Packed:
    """Pack queries with the paths that they go on with, for training.

    rows[b][k]: token ids of query k; paths[b][k]: its path as tokens of the codec (0 to V - 1), or None for a query
    that has none. queries: at least this K. Raises VLSegError for what is no whole path.
    """
    vocabulary, first = grammar_of(config).vocabulary, config.paths["first"]
    longer = [
        [[*ids, *_fed(path, config.seg_token_id, first)] for ids, path in zip(row, mine, strict=True)]
        for row, mine in zip(rows, paths, strict=True)
    ]
    packed = pack_queries(longer, pad_id, queries)
    wanted, states = torch.full_like(packed.ids, -1), torch.zeros_like(packed.ids)
    for b, mine in enumerate(paths):
        end = 0
        for k, path in enumerate(mine):
            end += len(longer[b][k])
            if path is not None:
                at = slice(end - len(path), end)
                wanted[b, at] = torch.tensor(path)
                states[b, at] = torch.tensor(vocabulary.run(path)[:-1])
                packed.answers[b, k] -= len(path)
    packed.path_targets, packed.path_states = wanted, states
    return packed


def _fed(path: Sequence[int] | None, seg: int, first: int) -> list[int]:
    """Ids that a query goes on with, the last of which predicts the end of the path."""
    return [] if path is None else [seg, *(first + token for token in path[:-1])]
