"""One batch of images through a predictor and the rules: from samples to records. What goes wrong stays in its case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vlseg.data.dataset import Dataset
from vlseg.data.images import open_image
from vlseg.evaluation.predictor import Predictor
from vlseg.masks import rle as codec
from vlseg.metrics.case import Case, Rules, score_case
from vlseg.systems.base import failed
from vlseg.types import RLE, Answer, Query, Sample, VLSegError


@dataclass(slots=True)
class Record:
    """A scored case with its masks. sample: its position in the data set. prediction: empty unless found.

    crashed: the answer failed by an error (of the model, the image, the predictions), not by the model's own word.
    """

    case: Case
    sample: int
    prediction: RLE
    truth: RLE
    crashed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "case": self.case.to_dict(),
            "sample": self.sample,
            "size": self.truth["size"],
            "prediction": self.prediction["counts"],
            "truth": self.truth["counts"],
            "crashed": self.crashed,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of `to_dict`."""
        prediction, truth = (RLE(size=data["size"], counts=data[name]) for name in ("prediction", "truth"))
        return cls(Case.from_dict(data["case"]), data["sample"], prediction, truth, data["crashed"])


@dataclass(slots=True)
class Batch:
    """What came of one batch. seconds: in the predictor; cold: the first one that its process ran.

    unlabelled: queries skipped; left_out: what could not be scored at all, each named.
    """

    number: int
    records: list[Record] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    cold: bool = False
    unlabelled: int = 0
    left_out: list[str] = field(default_factory=list)

    @property
    def crashed(self) -> bool:
        """Something went wrong that may go right another time."""
        return bool(self.left_out) or any(record.crashed for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "number": self.number,
            "images": self.images,
            "seconds": self.seconds,
            "cold": self.cold,
            "unlabelled": self.unlabelled,
            "left_out": self.left_out,
            "records": [record.to_dict() for record in self.records],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Batch:
        """The inverse of `to_dict`."""
        return cls(**{**data, "records": [Record.from_dict(record) for record in data["records"]]})


@dataclass(slots=True)
class _Job:
    """A sample with those of its queries that can be scored, each with an id, and its picture where there is one."""

    position: int
    sample: Sample
    size: tuple[int, int]
    image: Image.Image | None = None
    problem: str | None = None


def run_batch(dataset: Dataset, predictor: Predictor, positions: Sequence[int], number: int, rules: Rules) -> Batch:
    """Answer and score the samples at these positions. An error of one of them is told in its records."""
    batch = Batch(number)
    jobs = []
    for position in positions:
        try:
            job = _job(dataset, predictor, position, batch)
        except VLSegError as error:
            batch.left_out.append(f"sample {position}: {error}")
            continue
        if job is not None:
            jobs.append(job)
    ready = [job for job in jobs if job.problem is None]
    batch.images = len(ready)
    start = time.perf_counter()
    rows = iter(_answers(predictor, ready) if ready else [])
    batch.seconds = time.perf_counter() - start
    for job in jobs:
        row = next(rows) if job.problem is None else [(None, job.problem)] * len(job.sample.queries)
        for query, (answer, reason) in zip(job.sample.queries, row, strict=True):
            batch.records.append(_record(job, query, answer, reason, rules))
    return batch


def _job(dataset: Dataset, predictor: Predictor, position: int, batch: Batch) -> _Job | None:
    """The sample at a position with the queries that can be scored; None where none can."""
    sample = dataset[position] if predictor.reads_images else labels_of(dataset, position)
    labelled = [(k, query) for k, query in enumerate(sample.queries) if query.masks is not None]
    batch.unlabelled += len(sample.queries) - len(labelled)
    if not labelled:
        return None
    image, problem = None, None
    if predictor.reads_images:
        try:
            image, _ = open_image(sample.image)
        except VLSegError as error:
            problem = str(error)
    size = (image.height, image.width) if image is not None else size_of(sample)
    kept = []
    for k, query in labelled:
        name = case_id(sample, position, k)
        wrong = [rle["size"] for rle in _masks(query) if tuple(rle["size"]) != size]
        if wrong:
            batch.left_out.append(f"{name}: its mask is of size {wrong[0]}, the image {list(size)} ([height, width])")
        else:
            kept.append(replace(query, id=name))
    return _Job(position, replace(sample, queries=kept), size, image, problem) if kept else None


def labels_of(dataset: Dataset, position: int) -> Sample:
    """A sample of which no pixels are needed; a data set that has to unpack its pictures may have a cheaper way."""
    sample: Sample = getattr(dataset, "labels", dataset.__getitem__)(position)
    return sample


def case_id(sample: Sample, position: int, k: int) -> str:
    """The id of query k of a sample: its own, else one made of those of its image; unique within the data set."""
    return sample.queries[k].id or f"{sample.id or position}/{k}"


def size_of(sample: Sample) -> tuple[int, int]:
    """(height, width): as the sample says, else of its masks, else of its image.

    Where none of them tells, (1, 1): of an image that cannot be read nothing can be said but "failed".
    """
    if sample.size is not None:
        return sample.size
    for query in sample.queries:
        for rle in _masks(query):
            return rle["size"][0], rle["size"][1]
    try:
        image, _ = open_image(sample.image)
    except VLSegError:
        return 1, 1
    return image.height, image.width


def image_name(sample: Sample) -> str:
    """The path of a sample's image where it has one, else the sample's id."""
    return str(sample.image) if isinstance(sample.image, str | Path) else sample.id


def _masks(query: Query) -> list[RLE]:
    return [*(query.masks or []), *query.distractors, *([query.ignore] if query.ignore else [])]


def _answers(predictor: Predictor, jobs: Sequence[_Job]) -> list[list[tuple[Answer | None, str]]]:
    """Answers, or what went wrong, of every query. Where a call fails its parts are tried one by one."""
    try:
        images = [job.image for job in jobs if job.image is not None]
        rows = predictor.answer([job.sample for job in jobs], images)
        if [len(row) for row in rows] != [len(job.sample.queries) for job in jobs]:
            raise VLSegError(f"{predictor.name} gave answers of another number than there are queries")
        return [[(answer, "") for answer in row] for row in rows]
    except Exception as error:
        # A model can fail in any way; the run goes on, and the reason is in the report.
        if len(jobs) > 1:
            return [row for job in jobs for row in _answers(predictor, [job])]
        job = jobs[0]
        if len(job.sample.queries) > 1:
            parts = [replace(job, sample=replace(job.sample, queries=[query])) for query in job.sample.queries]
            return [[_answers(predictor, [part])[0][0] for part in parts]]
        reason = " ".join(str(error).split())
        return [[(None, reason if isinstance(error, VLSegError) else f"{type(error).__name__}: {reason}")]]


def _record(job: _Job, query: Query, answer: Answer | None, reason: str, rules: Rules) -> Record:
    crashed = answer is None
    if answer is None:
        answer = failed(query.text, reason, job.size)
    prediction = codec.empty(job.size)
    if answer.status == "found":
        rles = [segment.rle for segment in answer.segments]
        wrong = next((rle["size"] for rle in rles if tuple(rle["size"]) != job.size), None)
        if wrong is not None:
            answer = failed(query.text, f"its mask is of size {wrong}, the image {list(job.size)}", job.size)
            crashed = True
        elif not rles or not codec.areas(rles).any():
            answer = failed(query.text, "the answer is found, but its mask holds no pixel", job.size)
        else:
            prediction = codec.union(rles, job.size)
    case = score_case(
        query,
        job.size,
        answer.status,
        prediction,
        answer.score,
        id=query.id,
        image=image_name(job.sample) or str(job.position),
        reason=answer.reason,
        rules=rules,
    )
    return Record(case, job.position, prediction, codec.union(query.masks or [], job.size), crashed)
