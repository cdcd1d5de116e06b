"""Writing paths: tokens a second for K queries at once, and what holding them to the grammar costs.

    python benchmarks/path_decoding.py [--queries 1 8] [--tokens 48] [--rounds 5] [--preset mini] [--clock cpu] [--json]

A `VLSegModel` of a preset with random weights (speed does not depend on values) writes paths of a fixed length on a
256 x 256 image, one row of K queries: every step reads one token of each query over the shared cache.

    constrained    tokens that the grammar allows, as in use
    unconstrained  whatever is likeliest: the same steps without looking at the grammar
    one by one     the K queries one after the other, the image read anew only once (K > 1)

The row itself is read before the clock starts. All run in turns; a ratio is the median of the ratios within a round.
`--clock cpu` counts the seconds that the process computes, for machines that are shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timing import machine, paired, ratio

if TYPE_CHECKING:
    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor

WORDS = ["the", "red", "blue", "dog", "cat", "mug", "left", "of", "a"]


def build(preset: str) -> tuple[VLSegModel, VLSegProcessor]:
    """A model with path mode whose paths never end of themselves: the end is the least likely token."""
    import torch

    from vlseg.models.path_head import add_paths
    from vlseg.models.presets import build_preset

    model, processor = build_preset(preset, WORDS, nouns=10, seed=0)
    add_paths(model, processor)
    family = model.family
    end = model.path_grammar.vocabulary.first["end"]
    whole = family.token_logits

    def endless(vlm: Any, states: torch.Tensor, rows: slice | None = None) -> torch.Tensor:
        logits = whole(vlm, states, rows)
        if rows is not None:
            logits[..., end] -= 1e4
        return logits

    family.token_logits = endless  # type: ignore[method-assign]
    return model.eval(), processor


def variants(model: VLSegModel, processor: VLSegProcessor, queries: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    import copy

    import torch
    from transformers import DynamicCache

    from vlseg.models.grammar import PathGrammar
    from vlseg.models.path_decoding import stream_paths

    class Anything(PathGrammar):
        """Allows every token everywhere; a path that nobody ends stops at its limit."""

        def masked(self, logits: torch.Tensor, state: torch.Tensor, left: Any = None) -> torch.Tensor:
            return logits

        def advance(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
            return state

    texts = [f"the {WORDS[1 + k % 5]} {WORDS[3 + k % 3]} {k}" for k in range(queries)]
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = model.encode_image(pixels)
    free = Anything(model.path_grammar.vocabulary)

    def row(own: list[str]) -> tuple[Any, Any, Any]:
        packed, cache = processor.pack([own]), DynamicCache()
        with torch.inference_mode():
            model(image_features=image, cache=cache, **packed.tensors())
        return packed.tensors(), cache, packed.valid

    whole, single = row(texts), [row([text]) for text in texts]

    def write(rows: list[tuple[Any, Any, Any]], **options: Any) -> None:
        with torch.inference_mode():
            for tensors, cache, valid in rows:
                own = copy.deepcopy(cache)  # writing uses it up
                for _ in stream_paths(model, image, tensors, own, valid, max_tokens=tokens, **options):
                    pass

    made: dict[str, Callable[[], Any]] = {
        "constrained": lambda: write([whole]),
        "unconstrained": lambda: write([whole], grammar=free),
    }
    if queries > 1:
        made["one by one"] = lambda: write(single)
    return made


def main() -> None:
    """Measure and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=48, help="length of every path")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    model, processor = build(args.preset)
    found = []
    for queries in args.queries:
        seconds = paired(variants(model, processor, queries, args.tokens), args.rounds, clock)
        found.append(
            {
                "queries": queries,
                "tokens_per_s": {
                    name: round(queries * args.tokens / statistics.median(taken), 1) for name, taken in seconds.items()
                },
                "constrained_over_unconstrained": round(ratio(seconds["constrained"], seconds["unconstrained"]), 3),
                "one_by_one_over_packed": round(ratio(seconds["one by one"], seconds["constrained"]), 2)
                if queries > 1
                else None,
            }
        )
    if args.json:
        print(json.dumps({"machine": machine(), "settings": vars(args), "paths": found}))
        return
    print(f"preset {args.preset}, paths of {args.tokens} tokens, {args.clock} clock, one thread; {machine()}")
    for line in found:
        speeds = ", ".join(f"{name} {value:.0f}" for name, value in line["tokens_per_s"].items())  # type: ignore[attr-defined]
        more = line["one_by_one_over_packed"]
        tail = f"; one by one takes {more} x the time of all at once" if more else ""
        print(f"K = {line['queries']}: tokens/s {speeds}")
        print(f"       constrained takes {line['constrained_over_unconstrained']} x the unconstrained time{tail}")


if __name__ == "__main__":
    main()
