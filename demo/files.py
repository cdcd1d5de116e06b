"""What can be downloaded: the answers shown, at the size of the picture."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlseg.masks.drawing import mask_png
from vlseg.masks.svg import document
from vlseg.types import Result, VLSegError

from .shot import Shot

KINDS = {
    "json": ("JSON", "application/json", ".json"),
    "coco": ("COCO RLE", "application/json", ".coco.json"),
    "svg": ("SVG", "image/svg+xml", ".svg"),
    "mask": ("Mask PNG", "image/png", ".mask.png"),
    "cutout": ("Cut-out PNG", "image/png", ".cutout.png"),
}


def download(
    shot: Shot, kind: str, shown: Sequence[int], presence: float | None, mask_threshold: float
) -> tuple[str, str, bytes]:
    """(file name, media type, content) of one of `KINDS`, at these thresholds.

    shown: indices of the answers that are not hidden. The JSON is the whole `Result` all the same: one answer a query.
    Raises VLSegError where a file of masks would be empty.
    """
    if kind not in KINDS:
        raise VLSegError(f"There is no download of the kind “{kind}”.")
    _, media, suffix = KINDS[kind]
    result = shot.result(presence, mask_threshold)
    if kind == "json":
        data = (result.to_json(indent=1) + "\n").encode()
    else:
        wanted = set(shown)
        answers = [a if i in wanted else replace(a, segments=[]) for i, a in enumerate(result.answers)]
        if not any(answer.segments for answer in answers):
            raise VLSegError("Nothing is shown, so the file would be empty: show an answer, or lower the thresholds.")
        result = replace(result, answers=answers)
        data = _MAKERS[kind](shot, result)
    stem = re.sub(r"[^\w.-]+", "_", Path(shot.picture.name).stem)[:80] or "picture"
    return f"{stem}{suffix}", media, data


def _coco(shot: Shot, result: Result) -> bytes:
    """COCO results, as `COCO.loadRes` reads them: image 1, category k + 1 for query k, which is named."""
    rows = [
        {
            "image_id": 1,
            "category_id": index + 1,
            "query": answer.text,
            "segmentation": segment.rle,
            "bbox": segment.bbox,
            "area": segment.area,
            "score": round(segment.score, 6),
        }
        for index, answer in enumerate(result.answers)
        for segment in answer.segments
    ]
    return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode()


def _svg(shot: Shot, result: Result) -> bytes:
    return document(result).encode()


def _mask(shot: Shot, result: Result) -> bytes:
    return _png(mask_png(_union(result)))


def _cutout(shot: Shot, result: Result) -> bytes:
    image = shot.picture.reopen()
    image.putalpha(mask_png(_union(result)))
    return _png(image)


_MAKERS = {"coco": _coco, "svg": _svg, "mask": _mask, "cutout": _cutout}


def _union(result: Result) -> np.ndarray:
    inside = np.zeros(result.size, bool)
    for answer in result.answers:
        if answer.segments:
            inside |= answer.mask
    return inside


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)  # quick rather than small
    return buffer.getvalue()
