"""Which samples make up which batch: buckets of one input size, epochs each in its own order, mixtures of data sets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from vlseg.data.dataset import Dataset
from vlseg.data.images import open_image, upright_size
from vlseg.types import Query, Sample, VLSegError


def labelled(sample: Sample) -> list[Query]:
    """The queries that can be trained on: those with a truth, be it "nothing matches"."""
    return [query for query in sample.queries if query.masks is not None]


def picture_size(sample: Sample) -> tuple[int, int]:
    """(height, width) of the upright picture; read from the file's header where the data set does not know it.

    Raises VLSegError for a picture that cannot be read.
    """
    if sample.size is not None:
        return sample.size
    if isinstance(sample.image, np.ndarray):
        return sample.image.shape[0], sample.image.shape[1]
    if isinstance(sample.image, Image.Image):
        picture, _ = open_image(sample.image)
        return picture.height, picture.width
    return upright_size(sample.image)


def load_of(data: Dataset, index: int) -> tuple[tuple[int, int], int]:
    """(height, width) of a sample's picture and the number of its labelled queries; masks are looked at only where the
    data set cannot tell without. Raises VLSegError for a picture that cannot be read."""
    load: Callable[[int], tuple[tuple[int, int] | None, int]] | None = getattr(data, "load", None)
    if load is not None:
        size, count = load(index)
        if size is not None or not count:
            return size or (0, 0), count
    sample: Sample = getattr(data, "labels", data.__getitem__)(index)
    count = len(labelled(sample))
    return (picture_size(sample) if count else (0, 0)), count


class Plan:
    """Which samples of a data set make up its batch number n. Epochs follow each other, each in an order of its own.

    A batch holds pictures of one input size and about as many queries each: rows of equal length waste no padding.
    Sizes that occur in fewer than `images` pictures join the nearest in shape among the others; the last batch of a
    bucket is filled up from its beginning, so every picture occurs in every epoch.
    """

    WINDOW = 16  # batches among whose pictures those with equally many queries find each other

    def __init__(self, sizes: Sequence[tuple[int, int]], loads: Sequence[int], images: int, seed: int):
        """sizes: (height, width) of every sample's input; loads: its number of queries; images: of a batch."""
        self.images, self.seed, self.loads = images, seed, loads
        counts = Counter(sizes)
        common = [size for size, n in counts.items() if n >= images] or [counts.most_common(1)[0][0]]
        nearest = {size: min(common, key=partial(_unlike, size)) for size in counts}
        self.buckets: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            self.buckets.setdefault(nearest[size], []).append(index)
        self.batches = sum(math.ceil(len(bucket) / images) for bucket in self.buckets.values())
        self._epoch: tuple[int, list[tuple[tuple[int, int], list[int]]]] = (-1, [])

    def batch(self, number: int) -> tuple[tuple[int, int], list[int]]:
        """Input size and indices of batch `number` (from 0, over all epochs)."""
        epoch, place = divmod(number, self.batches)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._epoch[1][place]

    def _order(self, epoch: int) -> list[tuple[tuple[int, int], list[int]]]:
        random = np.random.default_rng((self.seed, epoch))
        made = []
        for size, bucket in self.buckets.items():
            order = random.permutation(bucket).tolist()
            order = [order[i % len(order)] for i in range(math.ceil(len(order) / self.images) * self.images)]
            window = self.WINDOW * self.images
            for start in range(0, len(order), window):
                order[start : start + window] = sorted(order[start : start + window], key=lambda i: self.loads[i])
            made += [(size, order[i : i + self.images]) for i in range(0, len(order), self.images)]
        return [made[i] for i in random.permutation(len(made))]


def _unlike(a: tuple[int, int], b: tuple[int, int]) -> float:
    """How much two sizes differ in shape, then in area."""
    shape = abs(math.log(a[0] * b[1] / (a[1] * b[0])))
    return shape + 0.1 * abs(math.log(a[0] * a[1] / (b[0] * b[1])))


def turns(weights: Sequence[float], steps: int) -> np.ndarray:
    """Which source each step takes, (steps,) int64: as even as the weights allow, without chance.

    The k-th batch of source i belongs at time (k + 1/2) / weight i; the steps follow in that order.
    """
    if not weights or min(weights) <= 0:
        raise VLSegError(f"data: weights must be above 0, got {list(weights)}")
    total = sum(weights)
    times, who = [], []
    for i, weight in enumerate(weights):
        count = math.ceil(steps * weight / total) + 1
        times.append((np.arange(count) + 0.5) * total / weight)
        who.append(np.full(count, i))
    return np.concatenate(who)[np.argsort(np.concatenate(times), kind="stable")][:steps]
