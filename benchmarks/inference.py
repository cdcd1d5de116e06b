"""One image, many queries: the time of 8 queries over the time of one, whole call and model alone.

    python benchmarks/inference.py [--model FOLDER] [--rounds 15] [--json]

Whole call: picture array to Result with RLE and outlines through `Segmenter`. Model alone: normalised pixels and packed
ids to logits. The loop asks one query at a time, as a user of other tools does today.
"""

from __future__ import annotations

import argparse
import json
import statistics

import numpy as np
from timing import machine, paired, ratio

QUERIES = [
    "the red apple",
    "the leftmost dog",
    "the mug next to the teapot",
    "all the birds",
    "the largest object",
    "the car on the left",
    "the cat that is not next to the tree",
    "zebra",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder (default: the embedded model)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    import torch
    from PIL import Image

    from vlseg import Segmenter
    from vlseg.worlds.sprites import SpriteWorld

    segmenter = Segmenter(args.model)
    picture = np.array(SpriteWorld(styles="train").scene(5, 1, (480, 640), 1).image)
    model, processor = segmenter.system.model, segmenter.system.processor
    pixels = processor.pixel_values(Image.fromarray(picture))
    packed = {k: processor.pack([QUERIES[:k]]).tensors() for k in (1, 8)}

    def alone(k: int) -> None:
        with torch.inference_mode():
            model(pixel_values=pixels, **packed[k])

    seconds = paired(
        {
            "call, 1 query": lambda: segmenter(picture, QUERIES[:1]),
            "call, 8 queries": lambda: segmenter(picture, QUERIES),
            "call, loop of 8": lambda: [segmenter(picture, [q]) for q in QUERIES],
            "model, 1 query": lambda: alone(1),
            "model, 8 queries": lambda: alone(8),
        },
        args.rounds,
    )
    result = {
        "machine": {**machine(), "torch": torch.__version__, "threads": torch.get_num_threads()},
        "ms": {name: round(1e3 * statistics.median(s), 1) for name, s in seconds.items()},
        "call_8_over_1": round(ratio(seconds["call, 8 queries"], seconds["call, 1 query"]), 3),
        "model_8_over_1": round(ratio(seconds["model, 8 queries"], seconds["model, 1 query"]), 3),
        "loop_over_packed": round(ratio(seconds["call, loop of 8"], seconds["call, 8 queries"]), 3),
    }
    if args.json:
        print(json.dumps(result))
        return
    print("  ".join(f"{k}={v}" for k, v in result["machine"].items()))
    for name, ms in result["ms"].items():
        print(f"{name:20s}{ms:9.1f} ms")
    for name in ("call_8_over_1", "model_8_over_1", "loop_over_packed"):
        print(f"{name:20s}{result[name]:9.2f} x")


if __name__ == "__main__":
    main()
