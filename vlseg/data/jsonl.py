"""Data of one's own: JSONL, one image a line (DESIGN.md, 4.4). Reads, checks and writes it.

    {"image": "images/1.jpg", "queries": [{"text": "the red mug", "masks": [RLE, ...], "distractors": [RLE, ...]}]}

A mask is an RLE, a list of polygons ([x1, y1, x2, y2, ...] in pixels) or the path of a PNG (non-zero is inside); paths
are relative to the file. `masks: []` says that nothing matches; without `masks` the query is unlabelled. Optional:
`kind`, `id` and `ignore` (one mask: pixels that no score looks at) of a query, `id`, `size` ([height, width] of the
upright image) and `meta` of a line.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlseg.data.files import write_whole
from vlseg.data.images import open_image
from vlseg.data.index import Builder, Index, IndexedDataset, load_index
from vlseg.data.reading import brief, parse_json, whole
from vlseg.data.records import Record, distinct, to_sample, usable
from vlseg.data.request import Request
from vlseg.masks import rle as codec
from vlseg.types import Query, Sample, VLSegError

LINE_KEYS = ("image", "queries", "id", "size", "meta")
QUERY_KEYS = ("text", "masks", "distractors", "kind", "ignore", "id")


def open_jsonl(request: Request) -> IndexedDataset:
    """A JSONL file as a data set; queries without an id are numbered within their sample. Raises VLSegError."""
    path = request.path
    assert path is not None
    index = load_index(request.name, request.split, [path], "jsonl", lambda: _build(path))
    return IndexedDataset(request.name, request.split, index, path.parent, str(path))


def _build(path: Path) -> Index:
    builder = Builder()

    def records() -> Iterator[Record]:
        for number, raw in _lines(path):
            where = f"{path}:{number}"
            try:
                record = to_record(parse_json(raw, where), where, f"{path.stem}-{number}", query_ids=True)
            except VLSegError as error:
                builder.problem(where, str(error).removeprefix(f"{where}: "))
            else:
                yield record | {"line": number}

    for record in distinct(records(), builder.problem, str(path)):
        builder.add(record, f"{path}: {record['id']}")
    return builder.index()


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
    for number, raw in _lines(path):
        try:
            yield number, parse_line(raw, path.parent, f"{path}:{number}", f"{path.stem}-{number}")
        except VLSegError as error:
            yield number, error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise VLSegError(f"{path}: cannot be read ({error.strerror or error})") from error


def parse_line(raw: bytes | str, folder: Path, where: str, default_id: str = "") -> Sample:
    """One line to a sample. folder: what paths are relative to; where: file and line, for errors.

    Raises VLSegError for text that is no JSON, a key that is missing, unknown or of the wrong type, and a mask that is
    malformed. The image is opened only where polygons need its size and the line does not say it.
    """
    data = parse_json(raw.encode() if isinstance(raw, str) else raw, where)
    return to_sample(to_record(data, where, default_id), folder, where)


def to_record(data: Any, where: str, default_id: str, query_ids: bool = False) -> Record:
    """A line's object, checked, as a record (`vlseg/data/records.py`); opens no file. Errors as `parse_line`.

    query_ids: number the queries that have no id.
    """
    _check_keys(data, LINE_KEYS, ("image", "queries"), where)
    if not isinstance(data["image"], str) or not data["image"]:
        raise VLSegError(f'{where}: "image" must be a path')
    if not isinstance(data["queries"], list):
        raise VLSegError(f'{where}: "queries" must be a list')
    if not isinstance(data.get("meta", {}), dict):
        raise VLSegError(f'{where}: "meta" must be an object')
    size = data.get("size")
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(whole(v) and 0 < v < 2**15 for v in size)
    ):
        raise VLSegError(f'{where}: "size" must be [height, width] in pixels, got {brief(size)}')
    id = str(data.get("id", default_id))
    record: Record = {"id": id, "image": data["image"], "size": size, "meta": data.get("meta", {}),
                      "masks": [], "names": [], "queries": []}  # fmt: skip
    for number, entry in enumerate(data["queries"], 1):
        query = _query(entry, where, f"query {number}", record)
        if query_ids and not query[0]:
            query[0] = f"{id}:{number}"
        record["queries"].append(query)
    return record


def _query(entry: Any, line: str, name: str, record: Record) -> list[Any]:
    where = f"{line}: {name}"
    _check_keys(entry, QUERY_KEYS, ("text",), where)
    text, kind, id = entry["text"], entry.get("kind"), entry.get("id", "")
    if not isinstance(text, str) or not text.strip():
        raise VLSegError(f'{where}: "text" must be words')
    if kind is not None and not isinstance(kind, str):
        raise VLSegError(f'{where}: "kind" must be text')
    if not isinstance(id, str | int):
        raise VLSegError(f'{where}: "id" must be text')

    def positions(key: str, entries: Any) -> list[int]:
        if not isinstance(entries, list):
            raise VLSegError(f"{where}: {key} must be a list with one mask a target")
        return [_position(mask, line, f"{name}: {key}[{i}]", record) for i, mask in enumerate(entries)]

    masks, ignore = entry.get("masks"), entry.get("ignore")
    targets = None if masks is None else positions("masks", masks)
    distractors = positions("distractors", entry.get("distractors") or [])
    ignored = None if ignore is None else [_position(ignore, line, f"{name}: ignore", record)]
    return [str(id), text, targets, distractors, kind, ignored]


def _position(mask: Any, line: str, name: str, record: Record) -> int:
    try:
        if isinstance(mask, dict):
            mask = codec.validate(mask)
        elif isinstance(mask, list):
            wrong = usable(mask, (1, 1))[1]  # polygons are checked without a size
            if wrong:
                raise VLSegError(wrong[0].removesuffix("; left out"))
        elif not isinstance(mask, str) or not mask:
            raise VLSegError("a mask is an RLE, a list of polygons or the path of a PNG")
    except VLSegError as error:
        raise VLSegError(f"{line}: {name}: {error}") from error
    record["masks"].append(mask)
    record["names"].append(name)
    return len(record["masks"]) - 1


def check_sample(sample: Sample) -> list[str]:
    """What is wrong with a sample that reads well: its image, and masks of another size or without a pixel."""
    try:
        image, _ = open_image(sample.image)
    except VLSegError as error:
        return [str(error)]
    size = [image.height, image.width]
    problems = []
    if sample.size is not None and list(sample.size) != size:
        problems.append(f"the annotations say size {list(sample.size)}, the upright image has {size}")
    for k, query in enumerate(sample.queries, 1):
        ignore = [] if query.ignore is None else [query.ignore]
        for what, rles in (("mask", query.masks or []), ("distractor", query.distractors), ("ignore", ignore)):
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
    if sample.size is not None:
        data["size"] = list(sample.size)
    if sample.meta:
        data["meta"] = sample.meta
    data["queries"] = [query_to_dict(query) for query in sample.queries]
    return data


def write_samples(path: str | Path, samples: Iterable[Sample]) -> int:
    """Write samples to a file, whole or not at all; returns how many. Image paths become relative to it.

    Raises VLSegError where the file cannot be written, or the image of a sample is no file.
    """
    path = Path(path)
    lines = [json.dumps(sample_to_dict(sample, path.parent), ensure_ascii=False) + "\n" for sample in samples]
    write_whole(path, "".join(lines))
    return len(lines)


def query_to_dict(query: Query) -> dict[str, Any]:
    """A query as it stands in a line; what is not there is left out."""
    data: dict[str, Any] = {"text": query.text}
    if query.id:
        data["id"] = query.id
    if query.kind is not None:
        data["kind"] = query.kind
    if query.masks is not None:
        data["masks"] = query.masks
    if query.distractors:
        data["distractors"] = query.distractors
    if query.ignore is not None:
        data["ignore"] = query.ignore
    return data


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
