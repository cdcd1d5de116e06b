"""uvicorn's HTTP/1.1 protocol with the time limits that it lacks, and errors in JSON."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlseg.serving.errors import ServiceError
from vlseg.serving.settings import ServerSettings

LINGER = 1.0  # seconds that a refused client has to read why


class GuardedProtocol(H11Protocol):
    """A connection that gives up on clients that send their headers, or read their answer, too slowly.

    Make a subclass with `guarded` to say which settings hold.
    """

    settings = ServerSettings()
    _refused = False
    _reading: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(ServiceError("unavailable", "too many connections", {"retry-after": "5"}))
        else:
            self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_reading")
        self._stop("_writing")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.settings.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("_writing")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for a request that is no HTTP."""
        self._refuse(ServiceError("bad_request", msg))

    def _watch_reading(self) -> None:
        """A request's headers, and what a client still sends after its answer, may take `header_timeout` in all."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop("_reading")
        elif self._reading is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._reading = self.loop.call_later(self.settings.header_timeout, self._too_slow)

    def _too_slow(self) -> None:
        self._reading = None
        if not self.conn.trailing_data[0]:  # nothing was asked: a connection kept open for later
            self.transport.close()
            return
        self._refuse(ServiceError("body_timeout", "the headers of the request came in too slowly"))

    def _refuse(self, error: ServiceError) -> None:
        """Answer outside of the application, where that is still possible, and close."""
        self._refused = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = error.body(uuid.uuid4().hex)
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                **error.headers,
            }
            response = h11.Response(status_code=error.status, headers=list(headers.items()))
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            # To close while the client still sends would reset the connection, and take the answer away from it.
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)
        else:
            self.transport.close()

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


def guarded(settings: ServerSettings) -> type[GuardedProtocol]:
    """The protocol class for one server."""
    members: dict[str, Any] = {"settings": settings}
    return type("GuardedProtocol", (GuardedProtocol,), members)
