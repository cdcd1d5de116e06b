"""Bodies of requests: read within limits of size and time, then taken apart. Nothing is written to disk."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from vlseg.serving.admission import Ticket
from vlseg.serving.errors import ClientGone, ServiceError

JSON, FORM = "application/json", "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a form. filename: None for a plain field."""

    name: str
    filename: str | None
    data: bytes

    @property
    def text(self) -> str:
        """The field as text. Raises ServiceError for what is not UTF-8."""
        return _utf8(self.data, f"the field {self.name!r}")


async def read_body(request: Request, limit: int, seconds: float, ticket: Ticket) -> bytes:
    """The whole body, its memory taken from the ticket as it comes in.

    limit: bytes; seconds: from now until it is whole. Raises ServiceError: 400, 408, 413, 429; ClientGone.
    """
    too_large = ServiceError("body_too_large", f"the body is larger than {limit} bytes, the limit of this server")
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit():
        raise ServiceError("bad_request", "Content-Length is no number")
    if int(declared) > limit:
        raise too_large
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ServiceError("unsupported_body", "bodies with a Content-Encoding are not read; send it uncompressed")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise too_large
                ticket.take_bytes(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError as error:
        why = f"the body was not whole after {seconds:g} s"
        raise ServiceError("body_timeout", why, {"connection": "close"}) from error


def body_kind(content_type: str | None) -> tuple[str, bytes]:
    """(`JSON` or `FORM`, the boundary of a form). Raises ServiceError: 400, 415."""
    kind, options = parse_options_header((content_type or "").encode("latin-1", "replace"))
    name = kind.decode("latin-1")
    if name == JSON:
        return JSON, b""
    if name != FORM:
        raise ServiceError("unsupported_body", f"Content-Type must be {FORM} or {JSON}")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise ServiceError("bad_request", "the form has no usable boundary in its Content-Type")
    return FORM, boundary


def parse_form(body: bytes, boundary: bytes, most_parts: int) -> list[Part]:
    """The parts of a multipart/form-data body, in order. Raises ServiceError 400, and 422 for too many parts."""
    reader = _Reader(most_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_header_field": reader.header_field,
                "on_header_value": reader.header_value,
                "on_header_end": reader.header_end,
                "on_part_data": reader.data,
                "on_part_end": reader.end,
                "on_end": reader.finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ServiceError("bad_request", "the body is no well-formed multipart/form-data") from error
    if not reader.whole:
        raise ServiceError("bad_request", "the form is cut off: its closing boundary is missing")
    return reader.parts


class _Reader:
    """Collects what the parser calls out."""

    def __init__(self, most_parts: int):
        self.most_parts, self.parts, self.whole = most_parts, [], False  # type: int, list[Part], bool
        self.begin()
        self._field, self._value = bytearray(), bytearray()

    def begin(self) -> None:
        self._disposition, self._data = b"", bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        name = bytes(self._field).lower()
        if name == b"content-disposition":
            self._disposition = bytes(self._value)
        elif name == b"content-transfer-encoding" and bytes(self._value).lower() not in (b"binary", b"8bit", b"7bit"):
            raise ServiceError("bad_request", "parts with a Content-Transfer-Encoding are not read")
        self._field.clear()
        self._value.clear()

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def end(self) -> None:
        if len(self.parts) == self.most_parts:
            raise ServiceError("invalid_request", f"the form has more than {self.most_parts} parts")
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or not options.get(b"name"):
            raise ServiceError("bad_request", "a part of the form has no name")
        filename = options.get(b"filename")
        shown = None if filename is None else filename.decode("utf-8", "replace")
        name = _utf8(options[b"name"], "the name of a part")
        self.parts.append(Part(name, shown, bytes(self._data)))

    def finish(self) -> None:
        self.whole = True


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServiceError("bad_request", f"{what} is not UTF-8") from error
