"""What a run is fed: the batches of a world, or those of data sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from vlseg.data import leaks
from vlseg.data.dataset import Dataset
from vlseg.data.registry import open_dataset
from vlseg.models.processing import VLSegProcessor
from vlseg.training.batches import SceneBatches
from vlseg.training.config import DataSection, TrainConfig
from vlseg.training.samples import SampleBatches, Source
from vlseg.types import VLSegError

Feed = SceneBatches | SampleBatches


def open_feed(config: TrainConfig, processor: VLSegProcessor, parts: int) -> Feed:
    """The batches of a run, `parts` (ranks times accumulated batches) a step. Raises VLSegError for data amiss."""
    data = config.data
    if not data.parts:
        if data.world is None:
            raise VLSegError("data: say what to train on, such as data.train=my.jsonl (docs/fine-tuning.md)")
        return SceneBatches(data, config.stages, processor, config.steps, parts)
    return SampleBatches(
        [Source(without_leaks(data, open_part(data, part.data, part.split)), part.weight) for part in data.parts],
        processor,
        images=data.images,
        queries=data.queries,
        steps=config.steps,
        epochs=data.epochs,
        parts=parts,
        seed=data.seed,
    )


def first_here(accelerator: Accelerator, work: Callable[[], Feed]) -> Feed:
    """`work` by one process of each machine, then by the others: what the first has read is in the cache for them.

    Raises what it raises, on every process.
    """
    made = failed = None
    if accelerator.is_local_main_process:
        try:
            made = work()
        except VLSegError as error:  # not before the others have come to this line: they would wait for ever
            failed = error
    accelerator.wait_for_everyone()
    if failed is not None:
        raise failed
    return work() if made is None else made


def open_part(data: DataSection, spec: str, split: str) -> Dataset:
    """A data set of the configuration; a split that the spec itself names wins."""
    own = "split=" in spec.partition("?")[2]
    return open_dataset(spec, None if own else split, Path(data.root) if data.root else None)


def without_leaks(data: DataSection, dataset: Dataset) -> Dataset:
    """The data set without pictures of any validation or test split of the RefCOCO family, where it tells COCO ids."""
    ids: list[int | None] = getattr(dataset, "coco_ids", list)()
    if data.leaks == "keep" or all(id is None for id in ids):
        return dataset
    return leaks.without_leaks(dataset, Path(data.root) if data.root else None)


def describe(feed: Feed) -> Sequence[str]:
    """Lines on what a run will see."""
    if isinstance(feed, SceneBatches):
        return [f"data: the world {feed.data.world}, {feed.data.queries} queries an image"]
    lines = []
    for number, (name, epochs) in enumerate(feed.epochs().items()):
        lines.append(f"data: {name}: {len(feed.kept[number]):,} pictures, {epochs:.3g} times")
        source = feed.sources[number].data
        lines += source.report() if isinstance(source, leaks.WithoutLeaks) else []
    return lines + [f"left out: {problem}" for problem in feed.problems[:20]]
