"""Batches from data sets of samples: the same steps for any number of ranks; what cannot be used is replaced."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset as TorchDataset

from vlseg.data.dataset import Dataset
from vlseg.data.images import open_image
from vlseg.data.scenes import SceneDataset
from vlseg.masks import rle as codec
from vlseg.models.packing import pack_queries
from vlseg.models.processing import VLSegProcessor
from vlseg.training.batches import Batch, share
from vlseg.training.plan import Plan, labelled, load_of, turns
from vlseg.types import Query, Sample, VLSegError


@dataclass(slots=True)
class Source:
    """A data set and its share of the steps."""

    data: Dataset
    weight: float = 1.0


@dataclass(slots=True)
class Ready:
    """A sample with its picture open and its queries in tokens. size: (height, width) of the model's input.

    pixels: (H, W, 3) uint8; regions: (H, W) bool each, the distinct masks; targets, distractors: for each query
    positions in `regions`; ignored: for each query (H, W) bool or None; ids: its tokens.
    """

    pixels: np.ndarray
    regions: list[torch.Tensor]
    targets: list[set[int]]
    distractors: list[set[int]]
    ignored: list[torch.Tensor | None]
    ids: list[list[int]]


def prepare(
    sample: Sample, size: tuple[int, int], processor: VLSegProcessor, choose: Callable[[list[Query]], list[Query]]
) -> tuple[Ready, list[str]]:
    """A sample made ready at an input size, and what of it had to be left out.

    choose: takes the queries to ask from those that can be asked. Raises VLSegError, naming the sample, where its
    picture cannot be read or no query is left.
    """
    name = f"sample {sample.id or sample.image}"
    try:
        picture, _ = open_image(sample.image)
    except VLSegError as error:
        raise VLSegError(f"{name}: {error}") from error
    whole = [picture.height, picture.width]
    problems, fit = [], []
    for query in labelled(sample):
        try:
            processor.query_ids(query.text)
        except VLSegError as error:
            problems.append(f"{name}: {query.text[:40]!r}: {error}")
            continue
        masks = [*(query.masks or []), *query.distractors, *([query.ignore] if query.ignore else [])]
        wrong = [rle["size"] for rle in masks if rle["size"] != whole]
        if wrong:
            problems.append(f"{name}: {query.text[:40]!r}: a mask has size {wrong[0]}, the upright image {whole}")
        else:
            fit.append(query)
    if not fit:
        raise VLSegError(problems[0] if problems else f"{name}: no labelled query")
    queries = choose(fit)
    ignored = [None if query.ignore is None else _shares(query.ignore, size) > 0 for query in queries]
    shares: dict[str, torch.Tensor] = {}
    regions: dict[tuple[str, str], int] = {}
    maps: list[torch.Tensor] = []

    def region(rle: codec.RLE, k: int) -> int:
        """The position of a mask of query k. What the query ignores is taken out of it: losses that compare regions
        rather than pixels must not see it either."""
        text, out, ignore = rle["counts"], ignored[k], queries[k].ignore
        if text not in shares:
            shares[text] = _shares(rle, size)
        touched = out is not None and bool((shares[text][out] > 0).any())
        key = (text, ignore["counts"] if touched and ignore else "")
        if key not in regions:
            regions[key] = len(maps)
            maps.append(_covered(shares[text] * ~out if touched and out is not None else shares[text]))
        return regions[key]

    targets = [{region(rle, k) for rle in query.masks or []} for k, query in enumerate(queries)]
    distractors = [{region(rle, k) for rle in query.distractors} - targets[k] for k, query in enumerate(queries)]
    ids = [processor.query_ids(query.text) for query in queries]
    return Ready(processor.resized(picture, size), maps, targets, distractors, ignored, ids), problems


def collate_samples(ready: Sequence[Ready], processor: VLSegProcessor) -> Batch:
    """Samples of one input size to a batch."""
    height, width = ready[0].pixels.shape[:2]
    most = max(len(one.ids) for one in ready)
    count = max(1, max(len(one.regions) for one in ready))
    regions = torch.zeros((len(ready), count, height, width), dtype=torch.uint8)
    targets = torch.zeros((len(ready), most, count), dtype=torch.bool)
    distractors = torch.zeros_like(targets)
    ignored = None
    if any(mask is not None for one in ready for mask in one.ignored):
        ignored = torch.zeros((len(ready), most, height, width), dtype=torch.bool)
    for b, one in enumerate(ready):
        for m, region in enumerate(one.regions):
            regions[b, m] = region
        for k in range(len(one.ids)):
            targets[b, k, list(one.targets[k])] = True
            distractors[b, k, list(one.distractors[k])] = True
            mask = one.ignored[k]
            if ignored is not None and mask is not None:
                ignored[b, k] = mask
    pixels = torch.from_numpy(np.stack([one.pixels for one in ready]))
    nouns = torch.full((len(ready), count), -1)
    packed = pack_queries([one.ids for one in ready], processor.pad_id, most)
    return Batch(pixels, regions, nouns, targets, distractors, packed, ignored)


def at_size(rle: codec.RLE, size: tuple[int, int]) -> torch.Tensor:
    """A mask at `size` (height, width), bool: the pixels that it covers by half at least.

    Of a thin stroke, which nowhere covers half a pixel, the pixels that it covers half as much as any: it must not be
    lost where a picture is made smaller.
    """
    return _covered(_shares(rle, size))


def _covered(shares: torch.Tensor) -> torch.Tensor:
    return (shares > 0) & (shares >= 0.5 * min(1.0, float(shares.max())))


def _shares(rle: codec.RLE, size: tuple[int, int]) -> torch.Tensor:
    """The share of each pixel at `size` that a mask covers, float32."""
    mask = torch.from_numpy(codec.decode(rle))[None, None].float()
    return F.interpolate(mask, size=size, mode="area")[0, 0]


class SampleBatches(TorchDataset):
    """Batch n of a run is part `n % parts` of step `n // parts`. What a step sees does not depend on the parts.

    A step takes one source; of every picture up to `queries` labelled queries, drawn anew in each epoch. In the place
    of a sample that cannot be used stands the next usable one of its bucket, the same on every start of the run.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: VLSegProcessor,
        *,
        images: int,
        queries: int,
        steps: int,
        epochs: float | None = None,
        parts: int = 1,
        seed: int = 0,
    ):
        """images: a step over all parts. epochs: how often to go through the first source, instead of `steps`.
        problems: what turned out to be unusable before any picture was opened."""
        if images < parts:
            raise VLSegError(f"data.images={images}: cannot be dealt to {parts} ranks and accumulated batches")
        self.sources, self.processor = list(sources), processor
        self.queries, self.parts, self.seed = queries, parts, seed
        self.problems: list[str] = []
        self.paths: Callable[[Batch], Batch] | None = None  # puts paths behind the queries, where they are trained
        self.kept: list[list[int]] = []
        self.plans: list[Plan] = []
        for number, source in enumerate(sources):
            kept, sizes, loads = self._scan(source)
            self.kept.append(kept)
            self.plans.append(Plan(sizes, loads, images, seed + 7919 * number))
        weights = [source.weight for source in sources]
        if epochs is not None:
            steps = math.ceil(epochs * self.plans[0].batches * sum(weights) / weights[0])
        self.steps = steps
        self.turns = turns(weights, steps)
        names = [source.data.name for source in sources]
        self.names = [f"{n} {s.data.split}" if names.count(n) > 1 else n for n, s in zip(names, sources, strict=True)]
        # how many batches of its source came before each step
        self.nth = np.zeros(steps, np.int64)
        for number in range(len(sources)):
            mine = self.turns == number
            self.nth[mine] = np.arange(mine.sum())

    def _scan(self, source: Source) -> tuple[list[int], list[tuple[int, int]], list[int]]:
        """Positions, input sizes and numbers of queries of the samples that can be trained on, by their labels."""
        if isinstance(source.data, SceneDataset) and source.data.size is not None:
            # Rendered when asked for, alike in size and about alike in queries: to render all now would take minutes.
            # A scene that asks nothing is passed over when its turn comes.
            number, load = len(source.data), min(source.data.queries, self.queries)
            return list(range(number)), [self.processor.input_size(*source.data.size)] * number, [load] * number
        kept, sizes, loads = [], [], []
        once: dict[tuple[int, int], tuple[int, int]] = {}  # one object a size: data sets have millions of pictures
        for i in range(len(source.data)):
            try:
                whole, count = load_of(source.data, i)
                size = self.processor.input_size(*whole) if count else (0, 0)
            except VLSegError as error:
                self.problems.append(f"{source.data.name}: sample {i}: {error}")
                continue
            if count:
                kept.append(i)
                sizes.append(once.setdefault(size, size))
                loads.append(min(count, self.queries))
        if not kept:
            reason = f" ({self.problems[-1]})" if self.problems else ""
            raise VLSegError(f"{source.data.name}: no labelled query to train on{reason}")
        return kept, sizes, loads

    def __len__(self) -> int:
        return self.steps * self.parts

    def source_of(self, step: int) -> str:
        """Name of the data set that a step takes its samples from."""
        return self.names[self.turns[step]]

    def epochs(self) -> dict[str, float]:
        """How often the run goes through each source, by name."""
        return {n: float((self.turns == i).sum() / self.plans[i].batches) for i, n in enumerate(self.names)}

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self.parts)
        number = int(self.turns[step])
        size, chosen = self.plans[number].batch(int(self.nth[step]))
        ready: list[Ready] = []
        problems: list[str] = []
        for place in share(len(chosen), self.parts, part):
            ready.append(self._usable(number, size, chosen[place], (step, place), problems))
        batch = collate_samples(ready, self.processor)
        batch = batch if self.paths is None else self.paths(batch)
        batch.source, batch.problems = self.source_of(step), problems
        return batch

    def _usable(
        self, number: int, size: tuple[int, int], first: int, key: tuple[int, int], problems: list[str]
    ) -> Ready:
        """The sample `first` of a source made ready, or the next of its bucket that can be."""

        def choose(queries: list[Query]) -> list[Query]:
            if len(queries) <= self.queries:
                return queries
            drawn = np.random.default_rng((self.seed, *key)).choice(len(queries), self.queries, replace=False)
            return [queries[i] for i in sorted(drawn)]

        for position in self._from(number, size, first):
            try:
                ready, left_out = prepare(self.sources[number].data[position], size, self.processor, choose)
            except VLSegError as error:
                problems.append(str(error))
                continue
            problems += left_out
            return ready
        raise VLSegError(
            f"{self.sources[number].data.name}: no picture of input size {size} can be used: {problems[-1]}"
        )

    def _from(self, number: int, size: tuple[int, int], first: int) -> Iterator[int]:
        """Positions in the data set of a bucket's samples, from `first` on, round once."""
        bucket = self.plans[number].buckets[size]
        start = bisect.bisect_left(bucket, first)  # a bucket is in order
        for i in range(len(bucket)):
            yield self.kept[number][bucket[(start + i) % len(bucket)]]
