"""`Client`: a `Segmenter` that is somewhere else. The same call and the same `Result`, by way of HTTP; no torch."""

from __future__ import annotations

import http.client
import io
import json
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import urlsplit

from vlseg.data.images import MAX_PIXELS, is_url, open_image
from vlseg.systems.base import check_queries, check_thresholds
from vlseg.types import Mode, Result, VLSegError
from vlseg.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray

TOGETHER = 4  # requests of a list of images that are on their way at once
LONGEST_WAIT = 30.0  # seconds that a server's Retry-After is followed at most
AGAIN = (429, 503)
NEVER_MENDS = (TimeoutError, ConnectionRefusedError, socket.gaierror, ssl.SSLError)
AS_IT_IS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})  # what servers read


class Client:
    """Words to masks with the models of a `vlseg serve`.

    Args:
        url: of the server, such as "http://127.0.0.1:8000"; a path in front of /v1 is kept.
        api_key: where the server asks for one.
        model: one of `models()`; None: the server's default.
        timeout: seconds that a server may be silent before a call fails.
        retries: how often a request is tried again where the server is busy (it says after how many seconds), or where
            the connection breaks; an answer changes nothing on the server, so asking twice is safe.
        max_pixels: larger images are refused. keep_picture: results hold their picture, for `Result.overlay`.

    Raises VLSegError, in one line, for a URL that is none. One client may be shared by threads. Proxies of the
    environment are not used.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        model: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        max_pixels: int = MAX_PIXELS,
        keep_picture: bool = True,
    ):
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise VLSegError(f"{url}: no URL of a server ({error})") from error
        if parts.scheme not in ("http", "https") or not self._host:
            raise VLSegError(f"{url}: no URL of a server; write it like http://127.0.0.1:8000")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise VLSegError("the API key holds characters that a header cannot carry")
        self.url, self._tls, self._base = url.rstrip("/"), parts.scheme == "https", parts.path.rstrip("/")
        self.api_key, self.model, self.timeout, self.retries = api_key, model, timeout, retries
        self.max_pixels, self.keep_picture = max_pixels, keep_picture
        self._idle: deque[http.client.HTTPConnection] = deque()  # connections kept for the next request

    @overload
    def __call__(
        self,
        image: Picture,
        queries: str | Sequence[str],
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
        refine: str = "none",
    ) -> Result: ...

    @overload
    def __call__(
        self,
        image: list[Picture],
        queries: str | Sequence[str] | Sequence[Sequence[str]],
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
        refine: str = "none",
    ) -> list[Result]: ...

    def __call__(
        self,
        image: Any,
        queries: Any,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
        refine: str = "none",
    ) -> Result | list[Result]:
        """As `Segmenter.__call__`: one image, or a list of images whose requests go out a few at a time.

        Files are sent as they are, other pictures as PNG. Raises VLSegError for what the server refuses, for an image
        that cannot be read, and for a server that cannot be reached.
        """
        check_thresholds(presence_threshold, mask_threshold)
        if refine != "none":
            raise VLSegError(
                f"{self.url}: a server refines masks for all (vlseg serve --refine) or none; leave refine out"
            )
        options = {"presence_threshold": presence_threshold, "mask_threshold": mask_threshold, "mode": mode}
        if not isinstance(image, list | tuple):
            return self._ask(image, check_queries(queries), options)
        rows = _rows(image, queries)
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(lambda picture, row: self._ask(picture, row, options), image, rows))

    def models(self) -> list[dict[str, Any]]:
        """The models of the server: name, default, modes, presence_threshold, protocol."""
        models: list[dict[str, Any]] = self._send("GET", "/v1/models", None, {})["models"]
        return models

    def close(self) -> None:
        """Close the connections that are kept for later; another call opens a new one."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, image: Any, queries: list[str], options: dict[str, Any]) -> Result:
        picture, name = open_image(image, self.max_pixels)
        fields = [("query", text) for text in queries]
        fields += [(key, str(value)) for key, value in options.items() if value is not None]
        if self.model is not None:
            fields.append(("model", self.model))
        body, content_type = _form(_file_bytes(image, picture), fields)
        result = Result.from_dict(self._send("POST", "/v1/segment", body, {"Content-Type": content_type}))
        result.image, result.picture = name, picture if self.keep_picture else None
        return result

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        headers = {"User-Agent": f"vlseg/{__version__}", "Accept": "application/json", **headers}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        for left in range(self.retries, -1, -1):
            try:
                status, given, data = self._once(method, self._base + path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                if left and not isinstance(error, NEVER_MENDS):
                    self.close()  # most often the server has closed a kept connection meanwhile, and so the others too
                    continue
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise VLSegError(f"{self.url}: cannot be reached ({reason}); is `vlseg serve` running?") from error
            if status in AGAIN and left:
                time.sleep(_seconds(given))
                continue
            return self._read(status, data)
        raise AssertionError("the last round returns or raises")

    def _once(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str, bytes]:
        try:
            connection = self._idle.pop()
        except IndexError:
            kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=self.timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.status, response.headers.get("Retry-After", "1"), response.read()
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return answer

    def _read(self, status: int, data: bytes) -> dict[str, Any]:
        try:
            content = json.loads(data)
            if status == 200:
                return dict(content)
            error = content["error"]
            message = " ".join(f"{error['code']}: {error['message']} (request {error['request_id']})".split())
        except (ValueError, KeyError, TypeError) as error:
            raise VLSegError(f"{self.url}: answers {status}, and not as a vlseg server; check the address") from error
        raise VLSegError(f"{self.url}: {message}")


def _rows(images: Sequence[Any], queries: Any) -> list[list[str]]:
    if isinstance(queries, str) or (queries and all(isinstance(q, str) for q in queries)):
        return [check_queries(queries) for _ in images]
    if len(queries) != len(images):
        raise VLSegError(f"{len(images)} images with {len(queries)} lists of queries: give one list an image")
    return [check_queries(row) for row in queries]


def _file_bytes(image: Any, picture: Image.Image) -> bytes:
    """The bytes of a file of a common kind as they are, else a PNG of the picture."""
    if isinstance(image, str | PathLike) and not is_url(str(image)):
        path = Path(fspath(image))
        if path.suffix.lower() in AS_IT_IS:
            return path.read_bytes()
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _form(data: bytes, fields: Sequence[tuple[str, str]]) -> tuple[bytes, str]:
    """A multipart/form-data body (RFC 7578) and its Content-Type."""
    boundary = secrets.token_hex(16)
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode(),
        data,
    ]
    for name, text in fields:
        head = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        lines.append((head + text).encode())
    lines.append(f"\r\n--{boundary}--\r\n".encode())
    return b"".join(lines), f"multipart/form-data; boundary={boundary}"


def _seconds(retry_after: str) -> float:
    try:
        return min(max(float(retry_after), 0.0), LONGEST_WAIT)
    except ValueError:
        return 1.0  # a date (RFC 9110 allows it)
