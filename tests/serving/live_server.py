"""A live server in this process and a fake system; imported by the tests of this folder."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.data["error"]["code"]


class Live:
    """A running server. service: what is behind it; url: where it is."""

    def __init__(self, service, url: str):
        self.service, self.url = service, url
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, data: Any, path: str = "/v1/segment", **headers: str) -> Reply:
        """Post JSON."""
        return self.ask("POST", path, json.dumps(data).encode(), {"Content-Type": "application/json", **headers})

    def form(self, *parts: tuple[str, bytes | str], boundary: str = "vlsegvlseg", **headers: str) -> Reply:
        """Post a form; a part of bytes is a file."""
        body = form_body(parts, boundary)
        return self.ask(
            "POST", "/v1/segment", body, {"Content-Type": f"multipart/form-data; boundary={boundary}", **headers}
        )


def form_body(parts, boundary: str) -> bytes:
    out = b""
    for name, value in parts:
        file = isinstance(value, bytes)
        filename = '; filename="photo.png"' if file else ""
        out += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        out += (value if file else value.encode()) + b"\r\n"
    return out + f"--{boundary}--\r\n".encode()


@contextlib.contextmanager
def running(service, send_buffer: int | None = None) -> Iterator[Live]:
    """send_buffer: bytes that the system keeps for a client that does not read; default: its own, megabytes."""
    from vlseg.serving.server import Server, address_of, bind

    ready = threading.Event()
    with bind(service.settings) as sock:
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(service, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            assert ready.wait(20)
            yield Live(service, address_of(sock))
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class FakeSystem:
    """Answers at once with a mask that only the words decide; notes its calls, and does what a test tells it to."""

    name, protocol, modes, presence_threshold = "fake", "a fake", ("mask",), 0.5

    def __init__(self):
        self.calls: list[list[list[str]]] = []
        self.sizes: list[list[tuple[int, int]]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.fail: Callable[[list[str]], None] = lambda texts: None

    def segment(self, image, queries, **options):
        return self.segment_batch([image], [queries], **options)[0]

    def segment_batch(self, images, queries, *, presence_threshold=None, mask_threshold=0.5):
        from vlseg.types import Answer

        self.calls.append([list(row) for row in queries])
        self.sizes.append([image.size for image in images])
        self.entered.set()
        assert self.go.wait(30)
        self.fail([text for row in queries for text in row])
        return [
            [Answer(text, "absent", 0.25, (image.height, image.width)) for text in row]
            for image, row in zip(images, queries, strict=True)
        ]
