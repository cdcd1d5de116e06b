"""What every request passes, whatever its path: host and key, headers of the answer, log line, counters."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlseg.serving.errors import ClientGone, ServiceError
from vlseg.serving.metrics import ServerMetrics
from vlseg.serving.settings import ServerSettings

log = logging.getLogger("vlseg.serving")
access = logging.getLogger("vlseg.serving.access")

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
CLIENT_GONE = 499  # as nginx logs it; never sent

SECURITY = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Gate:
    """ASGI middleware. paths: those that metrics name; any other counts as "other"."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics, paths: Iterable[str]):
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)
        self.hosts = settings.allowed_hosts
        self.keys = [_digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in SECURITY.items():
                    headers[name] = value
            await send(message)

        try:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
            if refusal is None:
                await self.app(scope, receive, send_marked)
            else:
                await send_error(refusal, request_id, send_marked)
        except ClientGone:
            status = CLIENT_GONE
        except Exception:
            log.exception("request %s failed", request_id)
            if not status:
                await send_error(ServiceError("internal", "an error inside the server"), request_id, send_marked)
        finally:
            self._record(scope, status, time.perf_counter() - start, request_id)

    def _refusal(self, path: str, headers: Headers) -> ServiceError | None:
        if self.hosts and _host(headers.get("host", "")) not in self.hosts:
            return ServiceError("unknown_host", "the Host header names no host of this server; see --allow-host")
        if self.keys and path not in OPEN_PATHS and not self._known(headers):
            return ServiceError("unauthorized", "the API key is missing or wrong", {"www-authenticate": "Bearer"})
        return None

    def _known(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given.encode("utf-8", "replace"))
        # Every key is compared, and digests are of one length, so that the time tells nothing.
        return any([hmac.compare_digest(digest, key) for key in self.keys])

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        client = (scope.get("client") or ("-",))[0]
        access.info("%s %s %s %d %.0f ms %s", client, scope["method"], path, status, 1e3 * seconds, request_id)


async def send_error(error: ServiceError, request_id: str, send: Send) -> None:
    """An error as the whole response."""
    body = error.body(request_id)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: str) -> str:
    """The name in a Host header, lower case, without port and brackets."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name
