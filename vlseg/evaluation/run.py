"""Any predictor over any data set: batches cut from the data set's order, dealt to the processes, kept as they come."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlseg.data.dataset import Dataset
from vlseg.evaluation.batch import Batch, Record, run_batch
from vlseg.evaluation.predictor import Predictor
from vlseg.evaluation.ranks import ALONE, Ranks
from vlseg.evaluation.shards import Shards
from vlseg.metrics.case import RULES, Rules
from vlseg.types import VLSegError


@dataclass(frozen=True, slots=True)
class Settings:
    """batch: images a call; limit: only the first so many images; seed: of all that is drawn.

    compute: what the model runs on, in words, for the report.
    """

    batch: int = 8
    limit: int | None = None
    seed: int = 0
    rules: Rules = RULES
    compute: str = ""


SETTINGS = Settings()


@dataclass(slots=True)
class Outcome:
    """All that a run has found, in the order of the data set. seconds: of each image in a batch that was not cold."""

    records: list[Record] = field(default_factory=list)
    images: int = 0
    unlabelled: int = 0
    left_out: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    queries_per_second: float | None = None

    @property
    def crashed(self) -> bool:
        """Some case, image or sample failed."""
        return bool(self.left_out) or any(record.case.status == "failed" for record in self.records)


def evaluate(
    dataset: Dataset,
    predictor: Predictor,
    settings: Settings = SETTINGS,
    folder: Path | None = None,
    key: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> Outcome | None:
    """Run a predictor over a data set; the outcome on the main process, None on the others.

    A batch is the same images in the same call on any number of processes, so that the answers are the same too.
    folder: keep every batch there and go on from those that are there already; key: what must be the same for that.
    Without a folder all stays in memory, on one process. Raises VLSegError for a folder of another run.
    """
    if folder is None and ranks.world > 1:
        raise VLSegError("several processes meet in a folder: name one")
    count = len(dataset) if settings.limit is None else min(settings.limit, len(dataset))
    cuts = [range(start, min(start + settings.batch, count)) for start in range(0, count, settings.batch)]
    shards = None if folder is None else Shards(folder)
    if shards and ranks.main:
        shards.open(key or {})
    ranks.wait()
    batches: list[Batch] = []
    cold = True
    for number in _progress(range(ranks.rank, len(cuts), ranks.world), predictor.name, ranks):
        if shards and shards.finished(number):
            continue
        batch = run_batch(dataset, predictor, cuts[number], number, settings.rules)
        batch.cold, cold = cold, False
        if shards:
            shards.write(batch)
        else:
            batches.append(batch)
    ranks.wait()
    if not ranks.main:
        return None
    return gather(batches if shards is None else [shards.read(number) for number in range(len(cuts))])


def gather(batches: Sequence[Batch]) -> Outcome:
    """Batches, in order, to one outcome. Raises VLSegError where two cases have one id."""
    outcome = Outcome()
    warm = [batch for batch in batches if batch.images and (not batch.cold or len(batches) == 1)]
    for batch in batches:
        outcome.records += batch.records
        outcome.images += batch.images
        outcome.unlabelled += batch.unlabelled
        outcome.left_out += batch.left_out
    outcome.seconds = [batch.seconds / batch.images for batch in warm for _ in range(batch.images)]
    if sum(batch.seconds for batch in warm) > 0:
        outcome.queries_per_second = sum(len(b.records) for b in warm) / sum(b.seconds for b in warm)
    twice = [name for name, times in Counter(record.case.id for record in outcome.records).items() if times > 1]
    if twice:
        raise VLSegError(f"the data set has {len(twice)} ids that stand for several queries, such as {twice[0]!r}")
    return outcome


def _progress(numbers: range, name: str, ranks: Ranks) -> Any:
    if not ranks.main or not sys.stderr.isatty():
        return numbers
    from tqdm import tqdm

    return tqdm(numbers, desc=name, unit="batch", dynamic_ncols=True)
