"""Data of one's own: JSONL, one image a line (DESIGN.md, 4.4). Reads, checks and writes it.

    {"image": "images/1.jpg", "queries": [{"text": "the red mug", "masks": [RLE, ...], "distractors": [RLE, ...]}]}

A mask is an RLE, a list of polygons ([x1, y1, x2, y2, ...] in pixels) or the path of a PNG (non-zero is inside); paths
are relative to the file. `masks: []` says that nothing matches; without `masks` the query is unlabelled. Optional:
`kind` of a query, `id` and `meta` of a line.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlseg.data.files import write_whole
from vlseg.data.images import open_image
from vlseg.masks import rle as codec
from vlseg.types import RLE, Query, Sample, VLSegError

LINE_KEYS = ("image", "queries", "id", "meta")
QUERY_KEYS = ("text", "masks", "distractors", "kind")


def read_samples(path: str | Path) -> Iterator[Sample]:
    """The samples of a file, in order; images are opened by whoever needs them. Raises VLSegError at a broken line."""
    for _, sample in scan(path):
        if isinstance(sample, VLSegError):
            raise sample
        yield sample


def scan(path: str | Path) -> Iterator[tuple[int, Sample | VLSegError]]:
    """(line number from 1, sample or what is wrong with it) of every line that is not blank.

    Raises VLSegError where the file itself cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    try:
                        yield number, parse_line(raw, path.parent, f"{path}:{number}", f"{path.stem}-{number}")
                    except VLSegError as error:
                        yield number, error
    except OSError as error:
        raise VLSegError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_line(raw: bytes | str, folder: Path, where: str, default_id: str = "") -> Sample:
    """One line to a sample. folder: what paths are relative to; where: file and line, for errors.

    Raises VLSegError for text that is no JSON, a key that is missing, unknown or of the wrong type, and a mask that is
    malformed. The image is opened only where polygons need its size.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise VLSegError(f"{where}: not JSON ({error})") from error
    _check_keys(data, LINE_KEYS, ("image", "queries"), where)
    if not isinstance(data["image"], str) or not data["image"]:
        raise VLSegError(f'{where}: "image" must be a path')
    if not isinstance(data["queries"], list):
        raise VLSegError(f'{where}: "queries" must be a list')
    if not isinstance(data.get("meta", {}), dict):
        raise VLSegError(f'{where}: "meta" must be an object')
    image = folder / data["image"]
    reader = _MaskReader(folder, image)
    queries = [reader.query(entry, f"{where}: query {k}") for k, entry in enumerate(data["queries"], 1)]
    return Sample(image, queries, str(data.get("id", default_id)), data.get("meta", {}))


def check_sample(sample: Sample) -> list[str]:
    """What is wrong with a sample whose line reads well: its image, and masks of another size or without a pixel."""
    try:
        image, _ = open_image(sample.image)
    except VLSegError as error:
        return [str(error)]
    size = [image.height, image.width]
    problems = []
    for k, query in enumerate(sample.queries, 1):
        for what, rles in (("mask", query.masks or []), ("distractor", query.distractors)):
            for number, rle in enumerate(rles, 1):
                if rle["size"] != size:
                    problems.append(f"query {k}: {what} {number} has size {rle['size']}, the upright image {size}")
                elif not codec.area(rle):
                    problems.append(f"query {k}: {what} {number} holds no pixel; leave it out")
    return problems


def sample_to_dict(sample: Sample, folder: Path) -> dict[str, Any]:
    """A sample as one line's object. Raises VLSegError where the image is no file: save it first."""
    if not isinstance(sample.image, str | Path):
        raise VLSegError(f"sample {sample.id or '?'}: the image is in memory; save it and give its path")
    data: dict[str, Any] = {"image": Path(os.path.relpath(sample.image, folder)).as_posix()}
    if sample.id:
        data["id"] = sample.id
    if sample.meta:
        data["meta"] = sample.meta
    data["queries"] = [_query_to_dict(query) for query in sample.queries]
    return data


def write_samples(path: str | Path, samples: Iterable[Sample]) -> int:
    """Write samples to a file, whole or not at all; returns how many. Image paths become relative to it.

    Raises VLSegError where the file cannot be written, or the image of a sample is no file.
    """
    path = Path(path)
    lines = [json.dumps(sample_to_dict(sample, path.parent), ensure_ascii=False) + "\n" for sample in samples]
    write_whole(path, "".join(lines))
    return len(lines)


def _query_to_dict(query: Query) -> dict[str, Any]:
    data: dict[str, Any] = {"text": query.text}
    if query.masks is not None:
        data["masks"] = query.masks
    if query.distractors:
        data["distractors"] = query.distractors
    if query.kind is not None:
        data["kind"] = query.kind
    return data


class _MaskReader:
    """Masks of one line to RLEs; asks for the size of the image at most once."""

    def __init__(self, folder: Path, image: Path):
        self.folder, self.image = folder, image
        self.size: tuple[int, int] | None = None

    def query(self, entry: Any, where: str) -> Query:
        _check_keys(entry, QUERY_KEYS, ("text",), where)
        text, kind, masks = entry["text"], entry.get("kind"), entry.get("masks")
        if not isinstance(text, str) or not text.strip():
            raise VLSegError(f'{where}: "text" must be words')
        if kind is not None and not isinstance(kind, str):
            raise VLSegError(f'{where}: "kind" must be text')
        targets = None if masks is None else self.masks(masks, f"{where}: masks")
        return Query(text, targets, self.masks(entry.get("distractors") or [], f"{where}: distractors"), kind)

    def masks(self, entries: Any, where: str) -> list[RLE]:
        if not isinstance(entries, list):
            raise VLSegError(f"{where} must be a list with one mask a target")
        return [self.mask(entry, f"{where}[{i}]") for i, entry in enumerate(entries)]

    def mask(self, entry: Any, where: str) -> RLE:
        try:
            if isinstance(entry, dict):
                return codec.validate(entry)
            if isinstance(entry, list):
                return codec.from_coco(entry, *self.image_size())
            if isinstance(entry, str):
                return _mask_from_png(self.folder / entry)
        except VLSegError as error:
            raise VLSegError(f"{where}: {error}") from error
        raise VLSegError(f"{where}: a mask is an RLE, a list of polygons or the path of a PNG")

    def image_size(self) -> tuple[int, int]:
        if self.size is None:
            picture, _ = open_image(self.image)
            self.size = picture.height, picture.width
        return self.size


def _mask_from_png(path: Path) -> RLE:
    try:
        with Image.open(path) as image:
            # A palette or grey mask keeps its numbers; of colours only black is outside, of RGBA also the transparent.
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise VLSegError(f"{path}: not a mask that can be read ({error})") from error
    if pixels.ndim == 3:
        alpha = pixels.shape[2] in (2, 4)
        inside = np.any(pixels[..., : pixels.shape[2] - alpha] > 0, axis=2)
        return codec.encode(inside & (pixels[..., -1] > 0) if alpha else inside)
    return codec.encode(pixels > 0)


def _check_keys(data: Any, known: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    if not isinstance(data, dict):
        raise VLSegError(f"{where}: must be an object with {', '.join(needed)}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise VLSegError(f"{where}: unknown key {key!r}; {hint}")
    for key in needed:
        if key not in data:
            raise VLSegError(f"{where}: {key!r} is missing")
