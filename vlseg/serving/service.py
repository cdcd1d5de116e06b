"""A request from its first byte to its answer: read, check, decode, wait for the model, draw."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from vlseg.segmenter import Segmenter
from vlseg.serving.admission import Admission, Ticket
from vlseg.serving.batching import Engine, Job
from vlseg.serving.errors import ClientGone, ServiceError
from vlseg.serving.fetch import Fetcher
from vlseg.serving.forms import read_body
from vlseg.serving.intake import Asked, Item, read_batch, read_segment
from vlseg.serving.metrics import ServerMetrics
from vlseg.serving.pictures import decode_picture
from vlseg.serving.render import View, negotiate, render
from vlseg.serving.schemas import Options
from vlseg.serving.settings import ServerSettings
from vlseg.systems.base import EncodedImage
from vlseg.types import Result

T = TypeVar("T")

# A call to a model that takes this many deadlines will hardly come back: the health check fails, so that whoever
# watches the service starts it anew.
STUCK_DEADLINES = 4


class Service:
    """The models behind the HTTP endpoints. models: name -> Segmenter; the first is the default."""

    def __init__(self, models: dict[str, Segmenter], settings: ServerSettings, fetcher: Fetcher | None = None):
        settings.check()
        self.settings, self.metrics = settings, ServerMetrics()
        self.admission = Admission(settings.max_queue, settings.memory)
        self.engines: dict[str, Engine] = {}
        for name, segmenter in models.items():
            metrics = self.metrics.engine(name)
            metrics.on_call = self.admission.served
            self.engines[name] = Engine(segmenter, name, settings, metrics)
        self.fetcher = fetcher or Fetcher(settings.max_body, settings.deadline / 2)
        # Fetching waits, the rest computes: a slow web server may not hold up the pictures of others.
        self._pool = ThreadPoolExecutor(settings.workers, "picture")
        self._fetching = ThreadPoolExecutor(8, "fetch")
        self.metrics.watch("vlseg_images_inside", "images waiting or at work", lambda: self.admission.images)
        self.metrics.watch("vlseg_bytes_inside", "bytes of their requests", lambda: self.admission.bytes)
        self.metrics.watch(
            "vlseg_feature_cache_bytes",
            "bytes of kept features",
            lambda: sum(e.cache.bytes for e in self.engines.values()),
        )

    def close(self) -> None:
        """Let nobody in, finish what is inside."""
        self.admission.close()
        for engine in self.engines.values():
            engine.close(self.settings.deadline)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    # health and description -------------------------------------------------------------------------------------------
    def alive(self) -> None:
        """Raises ServiceError 503 where a model hangs."""
        for engine in self.engines.values():
            if engine.stuck(STUCK_DEADLINES * self.settings.deadline):
                raise ServiceError("unavailable", f"the model {engine.name} hangs")

    def ready(self) -> None:
        """Raises ServiceError 503 where no new request should be sent here: stopping, full, or a model hangs."""
        self.alive()
        if self.admission.closed:
            raise ServiceError("unavailable", "the server is stopping")
        if self.admission.images >= self.settings.max_queue:
            raise ServiceError("unavailable", "the queue is full", {"retry-after": str(self.admission.retry_after)})

    def describe(self) -> dict[str, Any]:
        """The body of GET /v1/models."""
        settings = self.settings
        models = [
            {
                "name": engine.name,
                "default": number == 0,
                "modes": list(engine.system.modes),
                "presence_threshold": engine.system.presence_threshold,
                "protocol": engine.segmenter.protocol(),
            }
            for number, engine in enumerate(self.engines.values())
        ]
        limits = {
            "body_bytes": settings.max_body,
            "pixels": settings.max_pixels,
            "queries": settings.max_queries,
            "query_chars": settings.max_query_chars,
            "images": settings.max_images,
            "urls": settings.allow_urls,
        }
        return {"models": models, "limits": limits}

    # answers ----------------------------------------------------------------------------------------------------------
    async def segment(self, request: Request) -> Response:
        """POST /v1/segment."""
        view = negotiate(request.headers.get("accept"))

        async def work(body: bytes, ticket: Ticket) -> Response:
            asked = await self._compute(read_segment, body, request.headers.get("content-type"), self.settings)
            engine = self._engine(asked.options)
            result = await self._result(engine, asked.items[0], asked.options, ticket, view is View.OVERLAY)
            headers = {"x-vlseg-model": engine.name, "x-vlseg-status": ",".join(a.status for a in result.answers)}
            content = await self._compute(render, result, view)
            return Response(content, media_type=view.media_type, headers=headers)

        return await self._guarded(request, work)

    async def batch(self, request: Request) -> Response:
        """POST /v1/segment/batch: an image that fails has its error in its place, and the others their answers."""
        negotiate(request.headers.get("accept"), (View.JSON,))
        request_id = request.scope["state"]["request_id"]

        async def work(body: bytes, ticket: Ticket) -> Response:
            asked: Asked = await self._compute(read_batch, body, request.headers.get("content-type"), self.settings)
            engine = self._engine(asked.options)
            ticket.take_images(len(asked.items) - 1)

            async def one(item: Item) -> dict[str, Any]:
                try:
                    return (await self._result(engine, item, asked.options, ticket, False)).to_dict()
                except ServiceError as error:
                    if error.status in (429, 503):  # not the image's fault: the whole is to be tried again
                        raise
                    return {"image": item.name, **error.to_dict(request_id)}

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item)) for item in asked.items]
            results = {"results": [task.result() for task in tasks]}
            content = await self._compute(lambda: json.dumps(results, ensure_ascii=False).encode())
            return Response(content, media_type=View.JSON.media_type)

        return await self._guarded(request, work)

    async def _guarded(
        self, request: Request, work: Callable[[bytes, Ticket], Coroutine[Any, Any, Response]]
    ) -> Response:
        """Run `work` on the body: inside the admission and the deadline, and only as long as the client is there."""
        settings = self.settings
        with self.admission.enter() as ticket:
            try:
                async with asyncio.timeout(settings.deadline):
                    body = await read_body(request, settings.max_body, settings.body_timeout, ticket)
                    # Only now: those who send slowly shall not keep out those who have sent.
                    ticket.take_images(1)
                    ticket.take_bytes(len(body))  # once more: taken apart, and decoded from base64
                    return await _while_connected(request, work(body, ticket))
            except TimeoutError as error:
                raise ServiceError("deadline", f"there was no answer after {settings.deadline:g} s") from error
            except BaseExceptionGroup as group:  # of the images of a batch; the first that failed speaks for all
                raise next(e for e in group.exceptions if not isinstance(e, asyncio.CancelledError)) from group

    async def _result(self, engine: Engine, item: Item, options: Options, ticket: Ticket, picture: bool) -> Result:
        """The answers about one image. picture: the result shall hold it."""
        data = item.data
        if data is None:
            data = await asyncio.get_running_loop().run_in_executor(self._fetching, self.fetcher, item.url or "")
            ticket.take_bytes(len(data))

        def prepare() -> tuple[Image.Image | None, Job]:
            key = hashlib.blake2b(data, digest_size=32).digest()
            image: Image.Image | EncodedImage | None = engine.cache.get(key)
            drawn = decode_picture(data, self.settings.max_pixels, ticket) if picture or image is None else None
            image = image or drawn
            assert image is not None
            end = ticket.entered + self.settings.deadline
            return drawn, Job(
                key, image, item.queries, options.presence_threshold, options.mask_threshold, end, options.mode
            )

        drawn, job = await self._compute(prepare)
        engine.submit(job)
        reply = await asyncio.wrap_future(job.reply)
        for answer in reply.answers:
            self.metrics.answers.labels(engine.name, answer.status).inc()
        protocol = engine.segmenter.protocol(options.presence_threshold, options.mask_threshold, options.mode)
        size = reply.answers[0].size
        return Result(item.name, size, engine.name, reply.answers, protocol, reply.seconds, drawn)

    def _engine(self, options: Options) -> Engine:
        name = next(iter(self.engines)) if options.model is None else options.model
        engine = self.engines.get(name)
        if engine is None:
            raise ServiceError("invalid_request", f"model: unknown; there are {', '.join(self.engines)}")
        if options.mode not in engine.system.modes:
            known = ", ".join(engine.system.modes)
            raise ServiceError("invalid_request", f"mode: {engine.name} has no {options.mode} mode; it has {known}")
        return engine

    async def _compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what takes the processor for a while outside of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`; stopped, with ClientGone, once the client leaves."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
