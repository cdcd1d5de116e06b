"""What the client wants to see, by its Accept header: JSON, the overlay or the mask as PNG, or SVG."""

from __future__ import annotations

import io
from enum import StrEnum

import numpy as np
from PIL import Image

from vlseg.masks.drawing import mask_png, overlay
from vlseg.serving.errors import ServiceError
from vlseg.types import Result


class View(StrEnum):
    """The forms of an answer; the value is its media type."""

    JSON = "application/json"
    OVERLAY = "image/png"
    MASK = "image/png; view=mask"
    SVG = "image/svg+xml"

    @property
    def media_type(self) -> str:
        """The Content-Type of the response."""
        return self.value.partition(";")[0]


def negotiate(accept: str | None, offers: tuple[View, ...] = tuple(View)) -> View:
    """The offered view that an Accept header ranks highest, by RFC 9110, section 12.5.1; of equals the first offered.

    `image/png; view=mask` asks for the mask instead of the overlay. Raises ServiceError not_acceptable (406).
    """
    if not accept or not accept.strip():
        return offers[0]
    ranges = [found for part in accept.split(",") if (found := _range(part)) is not None]
    ranked = [(_quality(offer, ranges), -number, offer) for number, offer in enumerate(offers)]
    quality, _, best = max(ranked)
    if quality <= 0:
        raise ServiceError("not_acceptable", f"this can be had as {', '.join(offer.value for offer in offers)}")
    return best


def render(result: Result, view: View) -> bytes:
    """The body of the response. An overlay needs `result.picture`."""
    if view is View.JSON:
        return result.to_json().encode()
    if view is View.SVG:
        return result.svg().encode()
    if view is View.MASK:
        inside = np.zeros(result.size, bool)
        for answer in result.answers:
            inside |= answer.mask
        return _png(mask_png(inside))
    assert result.picture is not None
    return _png(overlay(result.picture, result))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=3)  # half the time of the standard level for some percent more bytes
    return file.getvalue()


def _range(part: str) -> tuple[str, str, float] | None:
    """(media range, view parameter, quality) of one element; None where it is malformed or empty."""
    name, *parameters = (word.strip().lower() for word in part.split(";"))
    view, quality = "", 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
        elif key.strip() == "view":
            view = value.strip().strip('"')
    return (name, view, quality) if "/" in name and 0 <= quality <= 1 else None


def _quality(offer: View, ranges: list[tuple[str, str, float]]) -> float:
    """The quality that the most specific range gives an offer; 0 where none speaks of it."""
    kind, _, view = offer.value.partition("; view=")
    best = (0, 0.0)
    for name, wanted, quality in ranges:
        if wanted and not (name == kind and wanted == view):
            continue
        specific = 4 if wanted else 3 if name == kind else 2 if name == f"{kind.partition('/')[0]}/*" else 1
        if specific == 1 and name != "*/*":
            continue
        best = max(best, (specific, quality))
    return best[1]
