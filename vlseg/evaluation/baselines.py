"""What can be had without looking at the picture: baselines that say what a score is worth.

    whole-image       every pixel
    centre-box        the middle box of half the height and half the width
    mean-mask         the mean of other images' truths, as far as it is above the level that fits those best
    random-instance   one of the query's targets and distractors, drawn by chance; absent where there is none
    oracle-box        the box around the truth, filled; absent where nothing matches

The last two look at the truth: they bound what choosing without reading, and boxes without shapes, can reach.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from vlseg.data.dataset import Dataset
from vlseg.evaluation.batch import labels_of, size_of
from vlseg.masks import rle as codec
from vlseg.masks.resize import resize_mask
from vlseg.types import RLE, Answer, Query, Sample, Segment, VLSegError

PREFIX = "baseline:"
GRID = 64  # cells a side of the mean mask
MOST = 5000  # masks a half that the mean mask is fitted on


class Baseline(ABC):
    """A `Predictor` that is given queries with their truth, and no picture."""

    name: str
    protocol: str
    mode = "baseline"
    reads_images = False

    def __init__(self) -> None:
        self.deviations: list[str] = []

    def answer(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[list[Answer]]:
        """See `Predictor.answer`."""
        return [[self._answer(sample, query) for query in sample.queries] for sample in samples]

    def _answer(self, sample: Sample, query: Query) -> Answer:
        size = size_of(sample)
        rle = self.mask(sample, query, size)
        if rle is None:
            return Answer(query.text, "absent", None, size)
        return Answer(query.text, "found", None, size, None, [Segment(1.0, codec.bbox(rle), codec.area(rle), rle, "")])

    @abstractmethod
    def mask(self, sample: Sample, query: Query, size: tuple[int, int]) -> RLE | None:
        """The answer of size (height, width); None: absent."""


class WholeImage(Baseline):
    name = PREFIX + "whole-image"
    protocol = "baseline: every pixel is inside, whatever the words"

    def mask(self, sample: Sample, query: Query, size: tuple[int, int]) -> RLE | None:
        """All of it."""
        return box(size, 0, 0, size[1], size[0])


class CentreBox(Baseline):
    name = PREFIX + "centre-box"
    protocol = "baseline: the middle box of half the height and half the width, whatever the words"

    def mask(self, sample: Sample, query: Query, size: tuple[int, int]) -> RLE | None:
        """A quarter of it."""
        height, width = size
        return box(size, width // 4, height // 4, width - width // 4, height - height // 4)


class OracleBox(Baseline):
    name = PREFIX + "oracle-box"
    protocol = "baseline that sees the truth: its box, filled; absent where nothing matches"

    def mask(self, sample: Sample, query: Query, size: tuple[int, int]) -> RLE | None:
        """The box of the union of the targets."""
        x, y, w, h = codec.bbox(codec.union(query.masks or [], size))
        return box(size, round(x), round(y), round(x + w), round(y + h)) if w and h else None


class RandomInstance(Baseline):
    name = PREFIX + "random-instance"
    protocol = "baseline that sees the instances: one of the query's targets and distractors by chance"

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed

    def mask(self, sample: Sample, query: Query, size: tuple[int, int]) -> RLE | None:
        """The same for the same query and seed, whatever else is asked."""
        instances = [*(query.masks or []), *query.distractors]
        key = f"{self.seed}/{sample.id}/{query.id}/{query.text}".encode()
        draw = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
        return instances[draw % len(instances)] if instances else None


class MeanMask(Baseline):
    """Fitted in two halves, told apart by a hash of the sample's id: each image gets the mean of the other half."""

    name = PREFIX + "mean-mask"
    protocol = (
        "baseline: mean mask of the other half of the same split (halves by SHA-256 of the sample id), above the level "
        "that fits that half best, whatever the words"
    )

    def __init__(self, dataset: Dataset):
        super().__init__()
        halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for i in range(len(dataset)):
            if min(map(len, halves)) >= MOST:
                break
            sample = labels_of(dataset, i)
            own = halves[_half(sample)]
            for query in sample.queries:
                if query.masks and len(own) < MOST:
                    truth = codec.decode(codec.merge(query.masks))
                    own.append(resize_mask(truth, (GRID, GRID), "nearest"))
        if not any(halves):
            raise VLSegError(f"{self.name}: {dataset.name} has no query with a target to fit it on")
        # Where a data set is so small that one half is empty, both images use what there is of the other.
        self.shapes = [_fit(np.array(halves[1 - half] or halves[half])) for half in (0, 1)]
        self._drawn = lru_cache(maxsize=64)(self._draw)

    def mask(self, sample: Sample, query: Query, size: tuple[int, int]) -> RLE | None:
        """The shape stretched over the image."""
        return self._drawn(_half(sample), size)

    def _draw(self, half: int, size: tuple[int, int]) -> RLE:
        return codec.encode(resize_mask(self.shapes[half], size, "nearest"))


def _half(sample: Sample) -> int:
    return hashlib.sha256(sample.id.encode()).digest()[0] & 1


def _fit(masks: np.ndarray) -> np.ndarray:
    """masks: (N, G, G) bool. Of the sets {mean >= level} the one with the highest mean IoU with the masks, (G, G)."""
    mean = masks.mean(0)
    areas = masks.sum((1, 2))
    best, chosen = -1.0, mean > 0
    for level in np.linspace(0.02, 0.98, 49) * mean.max():
        shape = mean >= level
        both = masks[:, shape].sum(1)
        score = float((both / np.maximum(areas + shape.sum() - both, 1)).mean())
        if score > best:
            best, chosen = score, shape
    return chosen


def box(size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> RLE:
    """The RLE of a box in an image of size (height, width); right and bottom are outside."""
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return codec.encode(mask)


NAMES = tuple(kind.name for kind in (WholeImage, CentreBox, MeanMask, RandomInstance, OracleBox))


def baseline(name: str, dataset: Dataset, seed: int = 0) -> Baseline:
    """The baseline of that name, such as "baseline:whole-image". Raises VLSegError for another name."""
    if name == MeanMask.name:
        return MeanMask(dataset)
    if name == RandomInstance.name:
        return RandomInstance(seed)
    for kind in (WholeImage, CentreBox, OracleBox):
        if name == kind.name:
            return kind()
    raise VLSegError(f"--model {name}: no such baseline; there are {', '.join(NAMES)}")
