"""Errors as clients see them: a status, a code to switch on, one line to read; never a traceback."""

from __future__ import annotations

import json
from typing import Any

# code -> (HTTP status, what it means); documentation and OpenAPI are made from this table.
CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "the body is not the JSON or form that it claims to be"),
    "unknown_host": (400, "the Host header names no host of this server"),
    "unauthorized": (401, "the API key is missing or wrong"),
    "not_found": (404, "there is nothing at this path"),
    "method_not_allowed": (405, "the path does not know this method"),
    "not_acceptable": (406, "the Accept header asks for what cannot be made"),
    "body_timeout": (408, "the request came in too slowly"),
    "body_too_large": (413, "the body is larger than the server reads"),
    "image_too_large": (413, "the image has more pixels than the server reads"),
    "unsupported_body": (415, "the Content-Type is neither multipart/form-data nor application/json"),
    "unsupported_image": (415, "the file is no image of a kind that is read"),
    "broken_image": (422, "the image file is damaged"),
    "invalid_request": (422, "a field is missing, unknown or has a wrong value"),
    "url_refused": (422, "the URL may not be fetched, or gives no image"),
    "busy": (429, "too much is waiting; come back after Retry-After seconds"),
    "internal": (500, "a bug or a failing machine; the log of the server has more under the request id"),
    "unavailable": (503, "the server is stopping, or its model was restarted; try again"),
    "deadline": (504, "the request could not be answered in time"),
}


class ServiceError(Exception):
    """A request that cannot be answered. code: one of `CODES`; message: one line that may leave the server."""

    def __init__(self, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.code, self.message, self.headers = code, " ".join(message.split()), dict(headers or {})
        self.status = CODES[code][0]

    def to_dict(self, request_id: str) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"code": self.code, "message": self.message, "request_id": request_id}}

    def body(self, request_id: str) -> bytes:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(request_id), ensure_ascii=False).encode()


class ClientGone(Exception):
    """The client has left; nobody reads an answer."""


def busy(seconds: int, what: str = "the queue is full") -> ServiceError:
    """429 with the time after which another try makes sense."""
    return ServiceError("busy", f"{what}; try again in {seconds} s", {"retry-after": str(seconds)})
