"""A bulk run: many images, the same questions for all or one's own for each, on an engine; killed, it goes on."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlseg.bulk.job import Job
from vlseg.bulk.output import ERRORS, FORMATS, Output, clean
from vlseg.data.files import write_whole
from vlseg.types import VLSegError
from vlseg.version import __version__

ENGINES = ("local", "ray")


@dataclass(slots=True)
class Summary:
    """What a run has come to, what earlier ones had done included.

    images: asked; before: of them done by earlier runs; errors: {"image", "error"}; failed: {"image", "text",
    "reason"}; seconds: of this run, loading the model included.
    """

    images: int
    before: int
    errors: list[dict[str, str]]
    failed: list[dict[str, str]]
    seconds: float

    def line(self) -> str:
        """Images, time and rate in words."""
        here = self.images - self.before
        rate = f" in {self.seconds:.1f} s ({here / self.seconds:.1f} images/s)" if here and self.seconds > 0 else ""
        before = f"; {self.before} were done before" if self.before else ""
        wrong = f"; {len(self.errors)} images failed" if self.errors else ""
        wrong += f"; {len(self.failed)} queries failed" if self.failed else ""
        return f"{here} images{rate}{before}{wrong}"


def run_bulk(
    job: Job,
    out: Path,
    engine: str = "local",
    processes: int = 1,
    format: str = "jsonl",
    key: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> Summary:
    """Answer all images of a job into the folder `out`; see `vlseg.bulk.output` for what lies there.

    processes: of the engine "local"; the most actors of "ray" (0: as many as the cluster holds). key: what must be the
    same for an earlier run in `out` to be gone on with, on top of the images, the questions and the job's settings;
    say there what the model is. progress: a bar on stderr; default: where that is a terminal.
    Raises VLSegError for a wrong call and a folder with another run or one that is going on.
    """
    if engine not in ENGINES:
        raise VLSegError(f"--engine {engine}: unknown; known: {', '.join(ENGINES)}")
    if format not in FORMATS:
        raise VLSegError(f"--format {format}: unknown; known: {', '.join(FORMATS)}")
    if not len(job.questions):
        raise VLSegError("no image is asked anything")
    output = Output(out, format, job.shards)
    start = time.perf_counter()
    with output.alone():
        clean(out)
        output.open({**_key(job, format), **(key or {})})
        todo = [shard for shard in range(job.shards) if not output.finished(shard)]
        here = sum(len(job.numbers(shard)) for shard in todo)
        before = len(job.questions) - here
        if todo:
            with _progress(output, len(job.questions), before, sys.stderr.isatty() if progress is None else progress):
                _run(engine, job, output, todo, processes)
        return _gather(output, len(job.questions), before, time.perf_counter() - start)


def _run(engine: str, job: Job, output: Output, todo: Sequence[int], processes: int) -> None:
    if engine == "local":
        from vlseg.bulk.local import run_local

        run_local(job, output, todo, max(1, min(processes, len(todo))))
    else:
        from vlseg.bulk.ray_engine import run_ray

        run_ray(job, output, todo, processes)


def _gather(output: Output, images: int, before: int, seconds: float) -> Summary:
    summary = Summary(images, before, [], [], seconds)
    counted = 0
    for shard in range(output.shards):
        if not output.results(shard).exists():
            raise RuntimeError(f"{output.results(shard).name} is missing; the same command goes on from there")
        status = output.status(shard)
        counted += status["images"]
        summary.errors += status["errors"]
        summary.failed += status["failed"]
    if counted != images:
        raise RuntimeError(f"{counted} images were answered of {images}")
    lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in summary.errors)
    write_whole(output.folder / ERRORS, lines)
    return summary


def _key(job: Job, format: str) -> dict[str, Any]:
    """What must be the same for a run to go on where another has stopped."""
    images, queries = hashlib.sha256(), hashlib.sha256()
    for number, position in enumerate(job.questions.positions):
        images.update(job.pictures.names[position].encode() + b"\0")
        if number < len(job.questions.rows):
            queries.update(json.dumps(list(job.questions.rows[number])).encode() + b"\0")
    return {
        "images": [len(job.questions), images.hexdigest()],
        "queries": queries.hexdigest(),
        "format": format,
        "images a shard": job.shard,
        "thresholds": [job.presence_threshold, job.mask_threshold],
        "mode": [job.mode, job.refine],
        "limit of pixels": job.max_pixels,
        "version": __version__,
    }


@contextmanager
def _progress(output: Output, images: int, before: int, shown: bool) -> Iterator[None]:
    """A bar with throughput and time left, fed by what all processes of the run append to one file."""
    if not shown:
        yield
        return
    from tqdm import tqdm

    ended = threading.Event()
    with tqdm(total=images, initial=before, unit="image", dynamic_ncols=True) as bar:

        def watch() -> None:
            while not ended.wait(0.5):
                bar.update(before + output.seen.stat().st_size - bar.n)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            bar.update(before + output.seen.stat().st_size - bar.n)
