"""ReasonSeg (LISA, arXiv 2308.00692): questions that need reasoning; a picture X.jpg with its labels X.json.

X.json: {"text": [sentences], "is_sentence": bool, "shapes": [{"label", "points": [[x, y], ...]}]}. The rules are those
of LISA's `utils/data_processing.py`: "flag" is skipped, a label with "ignore" in it is ignored, everything else is the
target; shapes are laid over each other from the largest to the smallest. All sentences of a picture share the region.
Shapes become pixels by our one raster convention, so a boundary may differ from cv2's by a pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlseg.data.images import PICTURE_SUFFIXES, upright_size
from vlseg.data.index import Builder, IndexedDataset
from vlseg.data.mirrors import find_mirror, open_mirror
from vlseg.data.official import REASONSEG, check_size
from vlseg.data.reading import brief, finite, read_json
from vlseg.data.records import Record, usable
from vlseg.data.request import Request
from vlseg.masks import rle as codec
from vlseg.types import Query, Sample, VLSegError


def open_reasonseg(request: Request) -> IndexedDataset:
    """One split, from the original folders or a Hub mirror. Raises VLSegError."""
    root, split = request.root, request.split
    bases = [root / "reason_seg" / "ReasonSeg", root / "ReasonSeg", root / "reasonseg", root]
    folder = next((base / split for base in bases if any((base / split).glob("*.json"))), None)
    if folder is None:
        mirror = find_mirror([base.with_name(f"{base.name}_{split}") for base in bases[:3]] + bases[1:])
        if mirror is not None:
            return open_mirror(request, mirror)
        place = bases[0] / split
        request.missing([place], "put the pictures X.jpg of that split and their labels X.json there")
    builder = Builder()
    files = sorted(folder.glob("*.json"))
    for file in files:
        try:
            record = _record(file, builder)
        except VLSegError as error:
            builder.problem(file.name, str(error).removeprefix(f"{file}: "))
            continue
        builder.add(record, file.name)
    index = builder.index()
    index.notes += check_size("images", len(files), REASONSEG[split])
    return IndexedDataset(request.name, split, index, folder, str(folder), to_sample)


def _record(file: Path, builder: Builder) -> Record:
    data = read_json(file, fallback_encoding="cp1252")
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
        raise VLSegError(f'no ReasonSeg labels; needs "text" and "shapes", got {brief(data)}')
    beside = (file.with_suffix(s) for suffix in PICTURE_SUFFIXES for s in (suffix, suffix.upper()))
    picture = next((path for path in beside if path.is_file()), None)
    if picture is None:
        raise VLSegError(f"no picture {file.stem}.jpg beside it")
    texts = data.get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise VLSegError(f'"text" must be a list of sentences, got {brief(data.get("text"))}')
    shapes, names = [], []
    for number, shape in enumerate(data["shapes"], 1):
        read = _shape(shape, f"{file.name}: shape {number}", builder)
        if read is not None:
            shapes.append(read)
            names.append(f"shape {number}")
    if not any(label == "target" for label, _ in shapes):
        raise VLSegError("no shape is a target, so nothing says what the sentences mean")
    kind = "sentence" if data.get("is_sentence") else "phrase"
    return {
        "id": file.stem,
        "image": picture.name,
        "size": None,
        "meta": {},
        "masks": shapes,
        "names": names,
        "queries": [
            [f"reasonseg:{file.stem}:{k}", text.strip(), [0], [], kind, None] for k, text in enumerate(texts)
        ],
    }  # fmt: skip


def _shape(shape: Any, where: str, builder: Builder) -> tuple[str, list[float]] | None:
    label, points = (shape.get("label"), shape.get("points")) if isinstance(shape, dict) else (None, None)
    if not isinstance(label, str):
        builder.problem(where, f"needs a label and points, got {brief(shape)}")
        return None
    if label.lower() == "flag":
        return None
    if not isinstance(points, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(map(finite, p)) for p in points
    ):
        builder.problem(where, f"points must be a list of [x, y], got {brief(points)}; left out")
        return None
    flat = [value for point in points for value in point]
    wrong = usable([flat], (1, 1))[1]
    if wrong:
        builder.problem(where, wrong[0].removeprefix("polygon 1: "))
        return None
    return ("ignore" if "ignore" in label.lower() else "target"), flat


def to_sample(record: Record, folder: Path, source: str) -> Sample:
    """A record with labelled shapes as a `Sample`; reads the header of the picture for its size. Raises VLSegError."""
    image = folder / record["image"]
    height, width = upright_size(image)
    drawn = []
    for (label, flat), name in zip(record["masks"], record["names"], strict=True):
        try:
            drawn.append((label, codec.decode(codec.from_coco([flat], height, width))))
        except VLSegError as error:
            raise VLSegError(f"{image}: {name}: {error}") from error
    target, ignore = np.zeros((2, height, width), dtype=bool)
    for label, mask in sorted(drawn, key=lambda shape: -np.count_nonzero(shape[1])):
        over, under = (target, ignore) if label == "target" else (ignore, target)
        over |= mask
        under &= ~mask
    truth, ignored = codec.encode(target), codec.encode(ignore) if ignore.any() else None
    queries = [Query(text, [truth], [], kind, ignored, id) for id, text, _, _, kind, _ in record["queries"]]
    return Sample(image, queries, record["id"], record["meta"], None)
