"""The common shape of a sample at rest, which every reader writes and `to_sample` turns into a `Sample`.

A record is plain data, so that it goes into an index (`vlseg/data/index.py`) as JSON:

    {"id": "581857", "image": "COCO_train2014_000000581857.jpg", "size": [480, 640], "meta": {"coco_id": 581857},
     "masks": [segmentation, ...], "names": ["annotation 17", ...],
     "queries": [["refcoco:3:7", "the red mug", [0], [1, 2], None, None], ...]}

`masks`: COCO polygons, RLEs or paths of PNG files, each once, however many queries use it; `names` says in messages
what each was in its file. A query is [id, text, targets, distractors, kind, ignore], where targets, distractors and
ignore are lists of positions in `masks`; targets are None for an unlabelled query. `size` is [height, width] or None.
A record of a JSONL file has its `line` besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlseg.data.images import upright_size
from vlseg.data.reading import brief
from vlseg.masks import rle as codec
from vlseg.types import RLE, Query, Sample, VLSegError

Record = dict[str, Any]
# Far outside of any picture; a polygon out there would cost the rasteriser memory without bound.
FAR = 1_000_000.0


def to_sample(record: Record, folder: Path, source: str) -> Sample:
    """A record as a `Sample`; masks become RLEs. folder: what paths are relative to; source: the file, for messages.

    The picture is not opened, unless polygons need its size and the record does not have it. Raises VLSegError for a
    mask that is malformed.
    """
    image = folder / record["image"]
    where = f"{source}:{record['line']}" if "line" in record else source
    size = known = (record["size"][0], record["size"][1]) if record["size"] else None
    rles: list[RLE] = []
    for mask, name in zip(record["masks"], record["names"], strict=True):
        try:
            if isinstance(mask, list) and size is None:
                size = upright_size(image)
            rles.append(read_mask(mask, folder, size))
        except VLSegError as error:
            raise VLSegError(f"{where}: {name}: {error}") from error
    queries = [
        Query(text, None if targets is None else [rles[t] for t in targets], [rles[d] for d in distractors], kind,
              _union(ignore, rles), id)
        for id, text, targets, distractors, kind, ignore in record["queries"]
    ]  # fmt: skip
    return Sample(image, queries, record["id"], record["meta"], known)


def _union(positions: list[int] | None, rles: list[RLE]) -> RLE | None:
    if not positions:
        return None
    return rles[positions[0]] if len(positions) == 1 else codec.merge([rles[p] for p in positions])


def read_mask(mask: Any, folder: Path, size: tuple[int, int] | None) -> RLE:
    """One entry of `masks` as an RLE; size (height, width) is needed for polygons. Raises VLSegError."""
    if isinstance(mask, dict):
        return codec.validate(mask)
    if isinstance(mask, str):
        return mask_from_png(folder / mask)
    assert size is not None
    return codec.from_coco(mask, *size)


def mask_from_png(path: Path) -> RLE:
    """A mask picture: of a palette or grey one, all but 0 is inside; of colours all but black and the transparent."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VLSegError(f"{path}: not a mask that can be read ({error})") from error
    if pixels.ndim == 3:
        alpha = pixels.shape[2] in (2, 4)
        inside = np.any(pixels[..., : pixels.shape[2] - alpha] > 0, axis=2)
        return codec.encode(inside & (pixels[..., -1] > 0) if alpha else inside)
    return codec.encode(pixels > 0)


def usable(segmentation: Any, size: tuple[int, int]) -> tuple[Any, list[str]]:
    """What of a COCO segmentation can be rasterised at size (height, width), or None; and what is wrong with the rest.

    A polygon list keeps its sound polygons, as detectron2 does. The check is one pass in C over the coordinates.
    """
    if isinstance(segmentation, dict):
        try:
            return codec.from_coco(segmentation, *size), []
        except VLSegError as error:
            return None, [str(error)]
    if not isinstance(segmentation, list) or not segmentation:
        return None, [f"a segmentation is an RLE or a list of polygons, got {brief(segmentation)}"]
    if type(segmentation[0]) in (int, float):
        segmentation = [segmentation]  # one flat polygon, as some converters write it
    sound, wrong = [], []
    for number, polygon in enumerate(segmentation, 1):
        problem = _polygon_problem(polygon)
        if problem is None:
            sound.append(polygon)
        else:
            wrong.append(f"polygon {number}: {problem}; left out")
    return sound or None, wrong


def _polygon_problem(polygon: Any) -> str | None:
    if type(polygon) is not list:
        return f"must be a list of numbers, got {brief(polygon)}"
    count = len(polygon)
    if count < 6:
        return f"{count} coordinates; a polygon has at least 3 points"
    if count % 2:
        return f"{count} coordinates, an odd number"
    try:
        if -FAR < sum(polygon) < FAR:
            return None
        if all(-FAR <= value <= FAR for value in polygon):
            return None
    except TypeError:
        return "a coordinate is no number"
    return "a coordinate is NaN, infinite or beyond a million pixels"


def distinct(records: Iterable[Record], problem: Callable[[str, str], None], where: str) -> Iterator[Record]:
    """The records and queries whose ids come for the first time; the others are told to `problem` (where, what)."""
    samples: set[str] = set()
    seen: set[str] = set()
    for record in records:
        if record["id"] in samples:
            problem(f"{where}: sample {brief(record['id'])}", "this id occurs before; the second is left out")
            continue
        samples.add(record["id"])
        queries = []
        for query in record["queries"]:
            if query[0] in seen:
                problem(f"{where}: query {brief(query[0])}", "this id occurs before; the second is left out")
                continue
            seen.add(query[0])
            queries.append(query)
        record["queries"] = queries
        yield record
