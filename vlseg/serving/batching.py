"""One thread a model, that answers together what waits together.

Requests for the same image become one row of packed queries; different images go through the model in one call where
their input sizes agree (the system sees to that). A call waits for company for a few milliseconds, never longer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlseg.segmenter import Segmenter
from vlseg.serving.errors import ServiceError
from vlseg.serving.feature_cache import FeatureCache
from vlseg.serving.metrics import EngineMetrics
from vlseg.serving.settings import ServerSettings
from vlseg.systems.base import EncodedImage, Encoder
from vlseg.types import Answer, Mode, VLSegError

log = logging.getLogger("vlseg.serving")


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers of one job, and the seconds in the model that its image had a share of."""

    answers: list[Answer]
    seconds: float


@dataclass(slots=True, eq=False)
class Job:
    """One image with its queries, waiting for a model.

    key: digest of the image file; jobs of equal keys are taken to show the same image. image: upright RGB, or its
    encoding. deadline: of `time.monotonic`; later than that nobody waits for the reply.
    """

    key: bytes
    image: Image.Image | EncodedImage
    queries: Sequence[str]
    presence_threshold: float | None
    mask_threshold: float
    deadline: float
    mode: Mode = "mask"
    submitted: float = field(default_factory=time.monotonic)
    reply: Future[Reply] = field(default_factory=Future)

    @property
    def settings(self) -> tuple[float | None, float, Mode]:
        """What must agree for two jobs to share a call."""
        return self.presence_threshold, self.mask_threshold, self.mode


class Engine:
    """A model with its queue, its thread and its cache of image features. name: as clients know it."""

    def __init__(self, segmenter: Segmenter, name: str, settings: ServerSettings, metrics: EngineMetrics):
        self.segmenter, self.name, self.settings, self.metrics = segmenter, name, settings, metrics
        self.system = segmenter.system
        self.encoder = self.system if settings.cache and isinstance(self.system, Encoder) else None
        self.cache = FeatureCache(settings.cache)
        self.busy_since: float | None = None
        self._waiting: deque[Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"model {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its `reply` gets the answers, or a ServiceError. Raises ServiceError 503 while stopping."""
        with self._wake:
            if self._closing:
                raise ServiceError("unavailable", "the server is stopping", {"retry-after": "5"})
            self._waiting.append(job)
            self._wake.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Finish what is queued and end the thread. timeout: seconds to wait for that at most."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout)

    def stuck(self, seconds: float) -> bool:
        """Whether one call to the model has run for longer than that."""
        since = self.busy_since
        return since is not None and time.monotonic() - since > seconds

    def _work(self) -> None:
        while True:
            jobs: list[Job] = []
            try:
                jobs = self._take()
                if not jobs:
                    return
                self._answer(jobs)
            except BaseException:  # even SystemExit from within a library may not end the service
                log.exception("the thread of model %s was thrown out of its work and goes on", self.name)
                self.metrics.restarts.inc()
                for job in jobs:
                    _fail(job, ServiceError("unavailable", "the model was restarted; try again", {"retry-after": "1"}))

    def _take(self) -> list[Job]:
        """The next jobs to answer together; [] once the engine is closed and nothing waits."""
        settings = self.settings
        with self._wake:
            while not self._waiting:
                if self._closing:
                    return []
                self._wake.wait()
            end = self._waiting[0].submitted + settings.window
            while not self._closing and not self._full() and (left := end - time.monotonic()) > 0:
                self._wake.wait(left)
            jobs: list[Job] = []
            keys: set[bytes] = set()
            queries = 0
            while self._waiting:
                job = self._waiting[0]
                queries += len(job.queries)
                if jobs and (queries > settings.call_queries or len(keys | {job.key}) > settings.call_images):
                    break
                keys.add(job.key)
                jobs.append(self._waiting.popleft())
            return jobs

    def _full(self) -> bool:
        settings = self.settings
        images = len({job.key for job in self._waiting})
        return images >= settings.call_images or sum(len(j.queries) for j in self._waiting) >= settings.call_queries

    def _answer(self, jobs: list[Job]) -> None:
        now = time.monotonic()
        live = []
        for job in jobs:
            if now > job.deadline:
                _fail(job, ServiceError("deadline", "the request waited too long"))
            elif job.reply.set_running_or_notify_cancel():
                self.metrics.waited.observe(now - job.submitted)
                live.append(job)
        groups: dict[tuple[float | None, float, Mode], list[Job]] = {}
        for job in live:
            groups.setdefault(job.settings, []).append(job)
        for group in groups.values():
            try:
                self._call(group)
            except Exception as error:
                if len(group) == 1:
                    _fail(group[0], self._explained(error))
                else:
                    self._one_by_one(group)

    def _one_by_one(self, jobs: list[Job]) -> None:
        """What fails together may be the fault of one; the others get their answers."""
        for job in jobs:
            try:
                self._call([job])
            except Exception as error:
                _fail(job, self._explained(error))

    def _call(self, jobs: list[Job]) -> None:
        """One call of jobs with equal settings."""
        start = self.busy_since = time.monotonic()
        try:
            images, rows = self._rows(jobs)
            texts = [list(row) for row in rows.values()]
            presence, mask, mode = jobs[0].settings
            extra: dict[str, Any] = {} if mode == "mask" else {"mode": mode}  # systems without paths know no mode
            given = self.system.segment_batch(
                images,  # type: ignore[arg-type]  # an Encoder takes encoded images
                texts,
                presence_threshold=presence,
                mask_threshold=mask,
                **extra,
            )
        finally:
            self.busy_since = None
        seconds = time.monotonic() - start
        self.metrics.called(seconds, len(images), sum(map(len, texts)), len(jobs))
        answers = dict(zip(rows, given, strict=True))
        for job in jobs:
            place = rows[job.key]
            _give(job, Reply([answers[job.key][place[text]] for text in job.queries], seconds / len(images)))

    def _rows(self, jobs: list[Job]) -> tuple[list[Image.Image | EncodedImage], dict[bytes, dict[str, int]]]:
        """The distinct images, and for each its distinct queries with their places in its row."""
        images: dict[bytes, Image.Image | EncodedImage] = {}
        rows: dict[bytes, dict[str, int]] = {}
        for job in jobs:
            if not isinstance(images.get(job.key), EncodedImage):
                images[job.key] = job.image
            row = rows.setdefault(job.key, {})
            for text in job.queries:
                row.setdefault(text, len(row))
        if self.encoder is not None:
            self._encode(images, self.encoder)
        return list(images.values()), rows

    def _encode(self, images: dict[bytes, Image.Image | EncodedImage], encoder: Encoder) -> None:
        """Put encodings in the place of pictures: from the cache, else made now."""
        fresh: dict[bytes, Image.Image] = {}
        for key, image in images.items():
            if isinstance(image, EncodedImage):
                continue
            kept = self.cache.get(key)
            if kept is None:
                fresh[key] = image
            else:
                images[key] = kept
        self.metrics.cache(hits=len(images) - len(fresh), misses=len(fresh))
        if not fresh:
            return
        for key, encoded in zip(fresh, encoder.encode_batch(list(fresh.values())), strict=True):
            images[key] = encoded
            self.cache.put(key, encoded)

    def _explained(self, error: Exception) -> ServiceError:
        if isinstance(error, VLSegError):
            return ServiceError("invalid_request", str(error))
        log.error("model %s failed", self.name, exc_info=error)
        return ServiceError("internal", "the model failed on this image")


def _give(job: Job, reply: Reply) -> None:
    if not job.reply.done():
        job.reply.set_result(reply)


def _fail(job: Job, error: ServiceError) -> None:
    try:
        job.reply.set_exception(error)
    except InvalidStateError:
        return  # answered, or given up by its client
