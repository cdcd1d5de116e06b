"""What OpenAPI says of the endpoints: the bodies that handlers read themselves, limits, errors, examples."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from fastapi import FastAPI, Response
from PIL import Image

from vlseg.serving.errors import CODES
from vlseg.serving.gate import OPEN_PATHS
from vlseg.serving.render import View
from vlseg.serving.schemas import BatchOut, BatchRequest, ErrorOut, ResultOut, SegmentRequest
from vlseg.serving.service import Service
from vlseg.systems.base import segment_of
from vlseg.types import Answer, Result

# What `str.strip` leaves something of, in the dialect of JSON Schema, whose \s knows fewer characters.
NOT_BLANK = r"[^\s\u001c-\u001f\u0085]"


def complete(app: FastAPI, service: Service) -> None:
    """Put into the OpenAPI document what FastAPI cannot know: bodies that handlers read themselves, keys."""
    plain = app.openapi()
    schemas = plain["components"]["schemas"]
    for model in (SegmentRequest, BatchRequest, ResultOut, BatchOut, ErrorOut):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for name in ("SegmentRequest", "ImageFields"):
        _limit_image(schemas[name], service)
    for name in ("SegmentRequest", "BatchRequest"):
        _limit_options(schemas[name]["properties"], service)
    schemas["BatchRequest"]["properties"]["items"].update(minItems=1, maxItems=service.settings.max_images)
    answer = plain["paths"]["/v1/segment"]["post"]["responses"]["200"]["content"][View.JSON.value]
    answer["example"] = _example_result(next(iter(service.engines)))  # FastAPI would leave its nulls out
    if service.settings.api_keys:
        bearer = {"type": "http", "scheme": "bearer"}
        plain["components"]["securitySchemes"] = {"key": bearer}
        for path, operations in plain["paths"].items():
            if path not in OPEN_PATHS:
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
    app.openapi_schema = plain


def _limit_image(schema: dict[str, Any], service: Service) -> None:
    fields = schema["properties"]
    for name, form in (("image", "byte"), ("url", "uri")):
        fields[name] = {"type": "string", "format": form, "description": fields[name]["description"]}
    fields["queries"].update(_texts(service))
    if service.settings.allow_urls:
        schema["oneOf"] = [{"required": ["image"]}, {"required": ["url"]}]
    else:
        del fields["url"]
        schema["required"] = ["image", *schema["required"]]


def _texts(service: Service) -> dict[str, Any]:
    settings = service.settings
    text = {"type": "string", "minLength": 1, "maxLength": settings.max_query_chars, "pattern": NOT_BLANK}
    return {"type": "array", "minItems": 1, "maxItems": settings.max_queries, "items": text}


def _limit_options(fields: dict[str, Any], service: Service) -> None:
    """Names of models and modes that are there."""
    fields["model"]["anyOf"][0]["enum"] = list(service.engines)
    fields["mode"]["enum"] = _modes(service)


def _modes(service: Service) -> list[str]:
    return sorted({mode for engine in service.engines.values() for mode in engine.system.modes})


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for these statuses and those that any request can meet."""
    out: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 400, 401, 500}):
        meanings = [f"`{code}`: {meaning}" for code, (number, meaning) in CODES.items() if number == status]
        out[status] = {"model": ErrorOut, "description": "; ".join(meanings)}
    return out


def segment_docs(service: Service) -> dict[str, Any]:
    """Arguments of FastAPI's decorator for POST /v1/segment."""
    fields: dict[str, Any] = {
        "file": {"type": "string", "format": "binary", "description": "the image file"},
        "query": _texts(service) | {"description": "repeated, one for each query"},
        "model": {"type": "string", "enum": list(service.engines)},
        "presence_threshold": {"type": "number", "minimum": 0, "maximum": 1},
        "mask_threshold": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "mode": {"type": "string", "enum": _modes(service)},
    }
    form = {"type": "object", "properties": fields, "required": ["file", "query"], "additionalProperties": False}
    example = {"image": _example_image(), "queries": ["the red mug", "the dog on the left"], "name": "photo.png"}
    body = {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": {"$ref": "#/components/schemas/SegmentRequest"}, "example": example},
        },
    }
    answer: dict[str, Any] = {
        "description": "the form that the Accept header asks for; `image/png; view=mask` is the mask, white on black",
        "content": {
            View.JSON.value: {"schema": {"$ref": "#/components/schemas/ResultOut"}},
            View.OVERLAY.value: {"schema": {"type": "string", "format": "binary"}},
            View.SVG.value: {"schema": {"type": "string"}},
        },
        "headers": {
            "x-vlseg-status": {"schema": {"type": "string"}, "description": "the status of every answer, by commas"},
            "x-vlseg-model": {"schema": {"type": "string"}},
        },
    }
    return {
        "openapi_extra": {"requestBody": body},
        "response_class": Response,
        "responses": {200: answer, **errors(406, 408, 413, 415, 422, 429, 503, 504)},
    }


def batch_docs(service: Service) -> dict[str, Any]:
    """Arguments of FastAPI's decorator for POST /v1/segment/batch."""
    queries = ["the red mug", "the dog on the left"]
    example = {"items": [{"image": _example_image(), "queries": queries, "name": "photo.png"}]}
    schema = {"$ref": "#/components/schemas/BatchRequest"}
    body = {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}
    return {
        "openapi_extra": {"requestBody": body},
        "response_model": BatchOut,
        "responses": errors(406, 408, 413, 415, 422, 429, 503, 504),
    }


def _example_image() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 40, 40)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _example_result(model: str) -> dict[str, Any]:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:6] = True
    segment = segment_of(mask, 0.93)
    assert segment is not None
    found = Answer("the red mug", "found", 0.93, mask.shape, segments=[segment])
    absent = Answer("the dog on the left", "absent", 0.04, mask.shape)
    return Result("photo.png", mask.shape, model, [found, absent], "…", 0.03).to_dict()
