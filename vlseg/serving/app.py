"""The HTTP endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from vlseg.serving.errors import CODES, ServiceError
from vlseg.serving.gate import Gate
from vlseg.serving.openapi import batch_docs, complete, errors, segment_docs
from vlseg.serving.schemas import HealthOut, ModelsOut
from vlseg.serving.service import Service
from vlseg.version import __version__

ABOUT = """Words in, masks out. An answer is `found`, `absent` (the words have no referent in the image) or `failed`
with a reason. Queries of one request share the encoding of its image: ask them together."""


def create_app(service: Service) -> FastAPI:
    """The ASGI application; closes the service when it is shut down."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # The interactive pages of FastAPI load scripts from elsewhere; the document itself is at /openapi.json.
    app = FastAPI(
        title="vlseg", version=__version__, description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    health: dict[str, Any] = {"responses": errors(503), "response_model": HealthOut, "tags": ["service"]}

    @app.post("/v1/segment", summary="Masks for words", tags=["segment"], **segment_docs(service))
    async def segment(request: Request) -> Response:
        return await service.segment(request)

    @app.post("/v1/segment/batch", summary="The same for several images", tags=["segment"], **batch_docs(service))
    async def batch(request: Request) -> Response:
        return await service.batch(request)

    @app.get("/v1/models", summary="Models and limits", tags=["segment"], response_model=ModelsOut, responses=errors())
    async def models() -> Response:
        return JSONResponse(service.describe())

    @app.get("/healthz", summary="Whether the process works", **health)
    async def healthz() -> Response:
        service.alive()
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", summary="Whether to send requests here", **health)
    async def readyz() -> Response:
        service.ready()
        return JSONResponse({"status": "ok"})

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}

    @app.get(
        "/metrics",
        summary="For Prometheus",
        tags=["service"],
        response_class=Response,
        responses={200: text, **errors()},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> Response:
        return JSONResponse(error.to_dict(request.scope["state"]["request_id"]), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        return await refused(request, ServiceError(code, f"{CODES[code][1]}: see /openapi.json", headers))

    paths = [path for route in app.routes if (path := getattr(route, "path", None))]
    app.add_middleware(Gate, settings=service.settings, metrics=service.metrics, paths=paths)
    complete(app, service)
    return app
