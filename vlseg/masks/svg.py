"""SVG out: path data of masks and rings, masks from path data, and a whole Result as one SVG document.

Coordinates are pixels of the image, the fill rule is even-odd; ``path_to_mask(path_data(mask), mask.shape)`` is
``mask``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

from vlseg.masks.outline import outline
from vlseg.masks.palette import color, hexadecimal
from vlseg.masks.raster import raster, raster_rle
from vlseg.masks.svg_parser import MAX_LENGTH, parse_path
from vlseg.types import RLE, Result, VLSegError

# What XML 1.0 does not allow even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def path_data(shape: np.ndarray | Sequence[np.ndarray], decimals: int = 2) -> str:
    """SVG path data ``M x y ... Z`` of a ``(H, W)`` bool mask (its exact outline) or of rings ``(N, 2)`` of (x, y).

    Horizontal and vertical edges are written as H and V, whole numbers without a point, others with up to ``decimals``
    digits. Rings of fewer than three points enclose nothing and are left out; "" for an empty mask. Raises VLSegError
    for NaN and infinity.
    """
    rings = outline(shape) if isinstance(shape, np.ndarray) and shape.ndim == 2 and shape.dtype == bool else shape
    return " ".join(_ring_data(np.asarray(ring), decimals) for ring in rings if len(ring) >= 3)


def path_to_mask(data: str, size: tuple[int, int], tolerance: float = 0.1, max_length: int = MAX_LENGTH) -> np.ndarray:
    """Even-odd interior of SVG path data as ``(H, W)`` bool, size (height, width); errors as `parse_path`."""
    return raster(parse_path(data, tolerance, max_length), size)


def path_to_rle(data: str, size: tuple[int, int], tolerance: float = 0.1, max_length: int = MAX_LENGTH) -> RLE:
    """Even-odd interior of SVG path data as an RLE of ``size`` (height, width); errors as `parse_path`."""
    return raster_rle(parse_path(data, tolerance, max_length), size)


def document(result: Result, opacity: float = 0.5) -> str:
    """A standalone SVG document: one even-odd path a segment, in pixels of the image, without the image itself.

    Each query is a group in its own colour; every path has a <title> with the words and the score, which viewers show
    as a tooltip. Queries that were not found are named in the <desc>. Nothing refers outside the document.
    """
    height, width = result.size
    stroke = max(1.0, round(max(height, width) / 500, 2))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{_text(result.image)}</title>",
    ]
    missing = [f"{_text(a.text)}: {a.status}" for a in result.answers if a.status != "found"]
    if missing:
        lines.append(f"<desc>{'; '.join(missing)}</desc>")
    for index, answer in enumerate(result.answers):
        if not answer.segments:
            continue
        paint = hexadecimal(color(index))
        lines.append(
            f'<g fill="{paint}" fill-opacity="{opacity:g}" fill-rule="evenodd" stroke="{paint}" '
            f'stroke-width="{stroke:g}" stroke-linejoin="round">'
        )
        for segment in answer.segments:
            title = f"{_text(answer.text)} ({segment.score:.2f})"
            lines.append(f'<path fill-rule="evenodd" d="{_text(segment.path)}"><title>{title}</title></path>')
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _ring_data(ring: np.ndarray, decimals: int) -> str:
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise VLSegError(f"a ring is an (N, 2) array of x, y, got shape {ring.shape}")
    if ring.dtype.kind not in "iu":
        if not np.isfinite(ring).all():
            raise VLSegError("a ring holds a coordinate that is NaN or infinite")
        ring = np.round(ring.astype(np.float64), decimals) + 0.0  # + 0.0 turns -0 into 0
    points = ring.tolist()
    last_x, last_y = points[0]
    parts = [f"M {_number(last_x, decimals)} {_number(last_y, decimals)}"]
    for x, y in points[1:]:
        if y == last_y:
            parts.append(f"H {_number(x, decimals)}")
        elif x == last_x:
            parts.append(f"V {_number(y, decimals)}")
        else:
            parts.append(f"L {_number(x, decimals)} {_number(y, decimals)}")
        last_x, last_y = x, y
    return " ".join([*parts, "Z"])


def _number(value: float, decimals: int) -> str:
    if isinstance(value, int):
        return str(value)
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text(text: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", str(text)), {'"': "&quot;"})
