"""A model that costs next to nothing, and generated images: what the bulk tests run, here and in other processes.

python cheap.py IMAGES OUT [--processes N] [--engine E] [--shard S] [--pause SECONDS]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlseg.bulk.job import Job
from vlseg.bulk.pictures import FilePictures
from vlseg.bulk.questions import Questions, same_for_all
from vlseg.bulk.run import run_bulk
from vlseg.segmenter import Segmenter
from vlseg.systems.base import decide, failed

TEXTS = ["the bright part", "zebra"]


class Bright:
    """Finds the pixels above the middle grey; the score is their share. Words it knows: any but zebra."""

    name, protocol, modes, presence_threshold = "bright", "by brightness", ("mask",), 0.05

    def __init__(self, pause: float = 0.0):
        self.pause = pause

    def segment(self, image, queries, *, presence_threshold=None, mask_threshold=0.5):
        time.sleep(self.pause)
        grey = np.asarray(image.convert("L"))
        threshold = 0.05 if presence_threshold is None else presence_threshold
        return [self._answer(text, grey > 255 * mask_threshold, threshold) for text in queries]

    def segment_batch(self, images, queries, **options):
        if any("crash" in text for row in queries for text in row):
            raise RuntimeError("out of memory")
        return [self.segment(image, row, **options) for image, row in zip(images, queries, strict=True)]

    @staticmethod
    def _answer(text, mask, threshold):
        if text == "unreadable":
            return failed(text, "the query is too long", mask.shape)
        score = 0.0 if text == "zebra" else float(mask.mean())
        return decide(text, score, threshold, mask.shape, lambda: mask)


def load(pause: float, device: str | None) -> Segmenter:
    return Segmenter(Bright(pause))


def picture(seed: int) -> Image.Image:
    """48 x 64 pixels, a bright box on dark grey, other for every seed; 8 bits a channel."""
    rng = np.random.default_rng(seed)
    pixels = np.full((48, 64, 3), 60, np.uint8)
    y, x = rng.integers(0, 16), rng.integers(0, 20)
    pixels[y : y + 24 + seed % 7, x : x + 30] = 200
    return Image.fromarray(pixels)


def draw(folder: Path, count: int, broken: int = 100) -> list[str]:
    """`count` images; every `broken`-th is cut off. Returns the names of the broken ones."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for seed in range(count):
        path = folder / f"{seed:05d}.png"
        picture(seed).save(path)
        if broken and seed % broken == broken // 2:
            path.write_bytes(path.read_bytes()[:60])
            names.append(str(path))
    return names


def job(folder: Path, pause: float = 0.0, shard: int = 10, texts: list[str] | Questions = TEXTS, batch: int = 4) -> Job:
    pictures = FilePictures(sorted(str(path) for path in folder.glob("*.png")))
    questions = texts if isinstance(texts, Questions) else same_for_all(texts, len(pictures.names))
    return Job(pictures, questions, partial(load, pause), shard=shard, batch=batch)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--shard", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()
    summary = run_bulk(job(args.images, args.pause, args.shard), args.out, args.engine, args.processes)
    print(json.dumps({"images": summary.images, "before": summary.before, "errors": len(summary.errors)}))
    sys.exit(1 if summary.errors or summary.failed else 0)


if __name__ == "__main__":
    main()
