"""What Prometheus can ask for: requests, queues, calls to the models, caches, the process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """The registry of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "vlseg_requests", "requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "vlseg_request_seconds", "arrival to answer", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.answers = Counter(
            "vlseg_answers", "answers by model and status", ["model", "status"], registry=self.registry
        )
        self._waited = self._histogram("vlseg_wait_seconds", "waiting for the model", SECONDS)
        self._called = self._histogram("vlseg_call_seconds", "one call to the model", SECONDS)
        self._images = self._histogram("vlseg_call_images", "images in a call", COUNTS)
        self._queries = self._histogram("vlseg_call_queries", "different queries in a call", COUNTS)
        self._jobs = self._histogram("vlseg_call_requests", "requests answered by a call", COUNTS)
        self._hits = Counter("vlseg_feature_cache_hits", "images found encoded", ["model"], registry=self.registry)
        self._misses = Counter("vlseg_feature_cache_misses", "images encoded", ["model"], registry=self.registry)
        self._restarts = Counter("vlseg_model_restarts", "model threads replaced", ["model"], registry=self.registry)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def engine(self, model: str) -> EngineMetrics:
        """The metrics of one model."""
        return EngineMetrics(self, model)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, ["model"], buckets=buckets, registry=self.registry)


class EngineMetrics:
    """What an engine counts, under the name of its model. on_call: told (images, seconds) of every call."""

    def __init__(self, server: ServerMetrics, model: str):
        self.waited, self.restarts = server._waited.labels(model), server._restarts.labels(model)
        self.hits, self.misses = server._hits.labels(model), server._misses.labels(model)
        self._call = [m.labels(model) for m in (server._called, server._images, server._queries, server._jobs)]
        self.on_call: Callable[[int, float], None] | None = None

    def called(self, seconds: float, images: int, queries: int, jobs: int) -> None:
        """A call to the model is done."""
        for metric, value in zip(self._call, (seconds, images, queries, jobs), strict=True):
            metric.observe(value)
        if self.on_call:
            self.on_call(images, seconds)

    def cache(self, hits: int, misses: int) -> None:
        """Images of a call that were found encoded, and those that were not."""
        self.hits.inc(hits)
        self.misses.inc(misses)
