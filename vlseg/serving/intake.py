"""From the body of a request to what is asked: images, queries, options, all checked."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vlseg.serving.errors import ServiceError
from vlseg.serving.forms import JSON, Part, body_kind, parse_form
from vlseg.serving.schemas import BatchRequest, ImageFields, Options, SegmentRequest
from vlseg.serving.settings import ServerSettings
from vlseg.systems.base import check_queries
from vlseg.types import VLSegError

T = TypeVar("T", bound=BaseModel)
NUMBERS = ("presence_threshold", "mask_threshold")
MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One image and its queries. Exactly one of data (the bytes of an image file) and url is given."""

    name: str
    data: bytes | None
    url: str | None
    queries: list[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is well-formed and within the limits."""

    items: list[Item]
    options: Options


def read_segment(body: bytes, content_type: str | None, settings: ServerSettings) -> Asked:
    """A body of POST /v1/segment. Raises ServiceError: 400, 415, 422."""
    kind, boundary = body_kind(content_type)
    if kind == JSON:
        asked = _json(SegmentRequest, body)
        options = Options(**{name: getattr(asked, name) for name in Options.model_fields})
        return Asked([_item(asked, settings, "")], options)
    parts = parse_form(body, boundary, settings.max_queries + 16)
    fields = {part.name for part in parts}
    unknown = sorted(fields - {"file", "query", *Options.model_fields})
    if unknown:
        raise ServiceError("invalid_request", f"{unknown[0][:60]!r}: no field of this form")
    files = [part for part in parts if part.name == "file"]
    if len(files) != 1:
        raise ServiceError("invalid_request", f"the form needs exactly one part `file`, got {len(files)}")
    queries = _queries([part.text for part in parts if part.name == "query"], settings, "")
    return Asked([Item(_name(files[0].filename), files[0].data, None, queries)], _form_options(parts))


def read_batch(body: bytes, content_type: str | None, settings: ServerSettings) -> Asked:
    """A body of POST /v1/segment/batch. Raises ServiceError: 400, 415, 422."""
    if body_kind(content_type)[0] != JSON:
        raise ServiceError("unsupported_body", f"a batch is sent as {JSON}")
    asked = _json(BatchRequest, body)
    if not 1 <= len(asked.items) <= settings.max_images:
        raise ServiceError("invalid_request", f"items: 1 to {settings.max_images} of them, got {len(asked.items)}")
    items = [_item(item, settings, f"items[{i}]: ") for i, item in enumerate(asked.items)]
    return Asked(items, Options(**{name: getattr(asked, name) for name in Options.model_fields}))


def _json(schema: type[T], body: bytes) -> T:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from error


def _refused(error: ValidationError) -> ServiceError:
    """One line that names the fields, without the values: these may be megabytes, and are the client's own."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return ServiceError("bad_request", f"the body is no JSON: {problems[0]['msg'][:200]}")
    lines = []
    for problem in problems[:MOST_PROBLEMS]:
        place = "".join(f"[{at}]" if isinstance(at, int) else f".{at[:60]}" for at in problem["loc"]).lstrip(".")
        lines.append(f"{place or 'the body'}: {problem['msg']}")
    return ServiceError("invalid_request", "; ".join(lines))


def _item(asked: ImageFields, settings: ServerSettings, where: str) -> Item:
    if len(asked.model_fields_set & {"image", "url"}) != 1:
        raise ServiceError("invalid_request", f"{where}give exactly one of image and url")
    queries = _queries(asked.queries, settings, where)
    if "url" in asked.model_fields_set:
        if not settings.allow_urls:
            raise ServiceError("invalid_request", f"{where}url: this server fetches no images; send the file")
        return Item(_name(asked.name or asked.url), None, asked.url, queries)
    return Item(_name(asked.name), _base64(asked.image, where), None, queries)


def _base64(text: str, where: str) -> bytes:
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise ServiceError("invalid_request", f"{where}image: a data URL without base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError("invalid_request", f"{where}image: is not base64") from error


def _queries(queries: list[str], settings: ServerSettings, where: str) -> list[str]:
    if len(queries) > settings.max_queries:
        raise ServiceError(
            "invalid_request", f"{where}at most {settings.max_queries} queries an image, got {len(queries)}"
        )
    for number, text in enumerate(queries, 1):
        if len(text) > settings.max_query_chars:
            raise ServiceError(
                "invalid_request", f"{where}query {number} is longer than {settings.max_query_chars} characters"
            )
    try:
        return check_queries(queries)
    except VLSegError as error:
        raise ServiceError("invalid_request", f"{where}{error}") from error


def _form_options(parts: list[Part]) -> Options:
    values: dict[str, Any] = {}
    for part in parts:
        if part.name in ("file", "query"):
            continue
        if part.name in values:
            raise ServiceError("invalid_request", f"{part.name}: is given twice")
        values[part.name] = _number(part) if part.name in NUMBERS else part.text
    try:
        return Options(**values)
    except ValidationError as error:
        raise _refused(error) from error


def _number(part: Part) -> float:
    try:
        value = float(part.text)
    except ValueError as error:
        raise ServiceError("invalid_request", f"{part.name}: is not a number") from error
    if not math.isfinite(value):
        raise ServiceError("invalid_request", f"{part.name}: is not a finite number")
    return value


def _name(name: str | None) -> str:
    """What comes back as `image`; a label only, never looked up."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in (name or "")[:255])
    return shown or "image"
