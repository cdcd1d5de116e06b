"""What a bulk run does, and how one process answers a share of it. The same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vlseg.bulk.pictures import Pictures, open_picture
from vlseg.bulk.questions import Questions
from vlseg.data.images import MAX_PIXELS
from vlseg.segmenter import Segmenter
from vlseg.types import Mode, Result, VLSegError


@dataclass(frozen=True, slots=True)
class Job:
    """Pictures, questions and the model, as plain data that any process can be sent.

    load: gives the model for a device ("cpu", "cuda:1", ...; None: the default); a function of a module or a
    `functools.partial` of one. shard: images a file of results; batch: images a call of the model.
    """

    pictures: Pictures
    questions: Questions
    load: Callable[[str | None], Segmenter]
    device: str | None = None
    shard: int = 200
    batch: int = 8
    presence_threshold: float | None = None
    mask_threshold: float = 0.5
    mode: Mode = "mask"
    refine: str = "none"
    max_pixels: int = MAX_PIXELS

    @property
    def shards(self) -> int:
        """Number of files of results."""
        return -(-len(self.questions) // self.shard)

    def numbers(self, shard: int) -> range:
        """The images of a shard, as numbers among those that are asked."""
        return range(shard * self.shard, min((shard + 1) * self.shard, len(self.questions)))


@dataclass(slots=True)
class Answered:
    """What came of a shard. results: of the images that could be answered, in order, as result JSON.

    errors: of the others, {"image", "error"}; failed: single queries, {"image", "text", "reason"}; crashed: something
    went wrong that may go right another time (the model's error, not the picture's).
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    crashed: bool = False


@dataclass(slots=True)
class _Read:
    name: str
    texts: list[str]
    picture: Any = None
    error: str = ""


class Worker:
    """One process's model. Reads the pictures of the next batch while the model answers this one.

    tick: called with the number of images that are done, batch by batch. Raises VLSegError where the model cannot be
    had or cannot do what is asked.
    """

    def __init__(self, job: Job, device: str | None = None, tick: Callable[[int], None] = lambda images: None):
        self.job, self.tick = job, tick
        self.segmenter = job.load(device)
        self.segmenter.keep_picture = False
        self.segmenter.max_pixels = job.max_pixels
        self.segmenter.check(job.presence_threshold, job.mask_threshold, job.mode, job.refine)

    def answer(self, shard: int) -> Answered:
        """The images of a shard. What goes wrong with one of them is told in its place and leaves the others be."""
        done, numbers = Answered(), self.job.numbers(shard)
        with ThreadPoolExecutor(1) as reader:
            batches = iter([numbers[i : i + self.job.batch] for i in range(0, len(numbers), self.job.batch)])
            ahead = reader.submit(self._read, next(batches, ()))
            while reads := ahead.result():
                ahead = reader.submit(self._read, next(batches, ()))
                self._answer(reads, done)
                self.tick(len(reads))
        return done

    def _read(self, numbers: Sequence[int]) -> list[_Read]:
        return [self._open(number) for number in numbers]

    def _open(self, number: int) -> _Read:
        position = self.job.questions.positions[number]
        read = _Read(self.job.pictures.names[position], self.job.questions.of(number))
        try:
            read.picture = open_picture(self.job.pictures, position, self.job.max_pixels)
        except VLSegError as error:
            read.error = str(error)
        return read

    def _answer(self, reads: list[_Read], done: Answered) -> None:
        whole = [read for read in reads if not read.error]
        results = iter(self._results(whole, done) if whole else [])
        for read in reads:
            result = None if read.picture is None else next(results)
            if result is None:
                done.errors.append({"image": read.name, "error": read.error})
                continue
            done.results.append(result.to_dict())
            for answer in result.answers:
                if answer.status == "failed":
                    done.failed.append({"image": read.name, "text": answer.text, "reason": answer.reason or ""})

    def _results(self, reads: list[_Read], done: Answered) -> list[Result | None]:
        """One result an image, in order; None, with the error in `reads`, where the model fails even on it alone."""
        job = self.job
        try:
            results: list[Result] = self.segmenter(
                [read.picture for read in reads],
                [read.texts for read in reads],
                job.presence_threshold,
                job.mask_threshold,
                job.mode,
                job.refine,
            )
        except Exception as error:  # a model can fail in any way; the run goes on, and the reason is told
            if len(reads) > 1:
                return [result for read in reads for result in self._results([read], done)]
            reason = " ".join(str(error).split())
            reads[0].error = reason if isinstance(error, VLSegError) else f"{type(error).__name__}: {reason}"
            done.crashed = True
            return [None]
        for read, result in zip(reads, results, strict=True):
            result.image = read.name
        return list(results)


def load_segmenter(model: str | None, dtype: str | None, options: dict[str, Any], device: str | None) -> Segmenter:
    """A `Job.load`, with its first three arguments given. options: further ones of `Segmenter`."""
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        return Segmenter(model, device, dtype, keep_picture=False, **options)
