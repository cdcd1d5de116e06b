"""Where Results come from: a Result JSON, JSON lines, Parquet, or a folder of them, gone through one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlseg.data.jsonl import LINE_KEYS, parse_line
from vlseg.masks import rle as codec
from vlseg.types import Answer, Query, Result, Sample, Segment, VLSegError

LINES = (".jsonl", ".ndjson")
TABLE = ".parquet"
STATUSES = ("found", "absent", "failed")


@dataclass(frozen=True, slots=True)
class Item:
    """A Result to be written. number: from 0, in order; base: its name in files, unique whatever the case of letters.

    picture: its file, or None where that is not on this machine.
    """

    number: int
    base: str
    result: Result
    picture: Path | None


class Results:
    """The Results of a source, as often as one iterates, in the same order: folders by name, files by line.

    Lines of data of one's own (`vlseg/data/jsonl.py`, what `vlseg label` writes) count as Results too: labelled queries
    as found or absent with score 1. A folder's other JSON files are passed over.

    categories: number, from 0, of every text that is asked, in order of its first occurrence, absent ones included.
    problems: what could not be read, one line each; found by the first pass, which the constructor makes.
    """

    def __init__(self, source: str | Path, images: str | Path | None = None, min_score: float = 0.0):
        """images: folder where pictures lie that are not where their Result says. min_score: segments of a lower score
        are left out. Raises VLSegError where nothing can be read at all."""
        self.source, self.min_score = Path(source), min_score
        self.images = None if images is None else Path(images)
        self.problems: list[str] = []
        self.categories: dict[str, int] = {}
        self._files = _files(self.source)
        self._bases: list[str | None] = []  # by position of the entry; None for one that is left out
        if self.images is not None and not self.images.is_dir():
            raise VLSegError(f"--images {images}: no such folder")
        self._first_pass()

    def __len__(self) -> int:
        return len(self._bases) - self._bases.count(None)

    def __iter__(self) -> Iterator[Item]:
        number = 0
        for base, (_, result) in zip(self._bases, self._entries(), strict=True):
            if base is not None and isinstance(result, Result):
                self._drop(result)
                yield Item(number, base, result, self._picture(result.image))
                number += 1

    def _first_pass(self) -> None:
        names: set[str] = set()
        taken: set[str] = set()
        for where, result in self._entries():
            if isinstance(result, VLSegError):
                text = str(result)
                self.problems.append(text if text.startswith(where) else f"{where}: {text}")
            elif result.image in names:
                self.problems.append(f"{where}: {result.image} occurs before; the second is left out")
            else:
                names.add(result.image)
                for answer in result.answers:
                    self.categories.setdefault(category(answer.text), len(self.categories))
                self._bases.append(_unique(Path(result.image).stem, taken))
                continue
            self._bases.append(None)
        if not len(self):
            reason = f" ({self.problems[0]})" if self.problems else ""
            raise VLSegError(f"{self.source}: holds no Result{reason}")

    def _entries(self) -> Iterator[tuple[str, Result | VLSegError]]:
        for file in self._files:
            yield from _read(file, alone=file == self.source)

    def _drop(self, result: Result) -> None:
        for answer in result.answers:
            answer.segments = [s for s in answer.segments if s.score >= self.min_score]

    def _picture(self, image: str) -> Path | None:
        places = [Path(image), self.source.parent / image]
        if self.images is not None:
            places = [self.images / image, self.images / Path(image).name, *places]
        return next((place for place in places if place.is_file()), None)


def category(text: str) -> str:
    """The name of the category that a query asks for: its words, single spaces between them."""
    return " ".join(text.split())


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise VLSegError(f"{source}: no such file or folder; name a Result JSON, JSON lines, or a folder of them")
    found = [path for path in source.rglob("*") if path.suffix.lower() in (".json", *LINES, TABLE) and path.is_file()]
    hidden = {path for path in found if any(part.startswith(".") for part in path.relative_to(source).parts)}
    files = sorted(path for path in found if path not in hidden)
    if not files:
        raise VLSegError(
            f"{source}: no .json, .jsonl or .parquet file in this folder; name what `vlseg segment --out` wrote"
        )
    return files


def _read(file: Path, alone: bool) -> Iterator[tuple[str, Result | VLSegError]]:
    """(file and line, Result or what is wrong with it). alone: it was named itself, so it must hold Results."""
    if file.suffix.lower() in LINES:
        yield from _read_lines(file, alone)
        return
    if file.suffix.lower() == TABLE:
        yield from _read_table(file, alone)
        return
    where = str(file)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield where, VLSegError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error})")
        return
    entries = data if isinstance(data, list) else [data]
    for number, entry in enumerate(entries, 1):
        if alone or _is_ours(entry):
            where = f"{file}: entry {number}" if len(entries) > 1 else str(file)
            yield where, _parse(entry, file.parent, where)


def _read_lines(file: Path, alone: bool) -> Iterator[tuple[str, Result | VLSegError]]:
    try:
        with open(file, "rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.strip():
                    continue
                where = f"{file}:{number}"
                try:
                    entry = json.loads(raw)
                except ValueError as error:
                    yield where, VLSegError(f"{where}: not JSON ({error})")
                    continue
                if alone or _is_ours(entry):
                    yield where, _parse(entry, file.parent, where)
    except OSError as error:
        yield str(file), VLSegError(f"{file}: cannot be read ({error.strerror or error})")


def _read_table(file: Path, alone: bool) -> Iterator[tuple[str, Result | VLSegError]]:
    """The shards that `vlseg segment --format parquet` writes: the result JSON as columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
            for entry in batch.to_pylist():
                row += 1
                if alone or _is_ours(entry):
                    where = f"{file}: row {row}"
                    yield where, _parse(entry, file.parent, where)
    except (OSError, pa.ArrowException) as error:
        yield str(file), VLSegError(f"{file}: cannot be read ({' '.join(str(error).split())})")


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, dict) and "image" in entry and ("answers" in entry or "queries" in entry)


def _parse(entry: Any, folder: Path, where: str) -> Result | VLSegError:
    """A Result whose segments can be trusted, from plain data; or what is wrong with it."""
    try:
        if isinstance(entry, dict) and "queries" in entry and "answers" not in entry:
            line = {key: value for key, value in entry.items() if key in LINE_KEYS}
            return _from_labels(parse_line(json.dumps(line), folder, where), where)
        result = Result.from_dict(entry)
        if not isinstance(result.image, str) or not result.image:
            raise VLSegError('"image" must be a path or a name')
        for number, answer in enumerate(result.answers, 1):
            _check(answer, f"answer {number}")
        return result
    except VLSegError as error:
        return error
    except (TypeError, ValueError, AttributeError) as error:
        return VLSegError(f"not a vlseg Result ({' '.join(str(error).split())})")


def _check(answer: Answer, name: str) -> None:
    """Raises VLSegError for what no system answers; areas and boxes are taken from the runs anew."""
    if answer.status not in STATUSES:
        raise VLSegError(f"{name}: status {answer.status!r}; known: {', '.join(STATUSES)}")
    if not isinstance(answer.text, str) or not answer.text.strip():
        raise VLSegError(f"{name}: its text is empty")
    sound = []
    for number, segment in enumerate(answer.segments, 1):
        try:
            rle = codec.validate(segment.rle)
        except VLSegError as error:
            raise VLSegError(f"{name}, segment {number}: {error}") from error
        if tuple(rle["size"]) != answer.size:
            raise VLSegError(f"{name}, segment {number}: size {rle['size']}, the image has {list(answer.size)}")
        area = codec.area(rle)
        if area:
            sound.append(replace(segment, score=float(segment.score), bbox=codec.bbox(rle), area=area, rle=rle))
    answer.segments = sound


def _from_labels(sample: Sample, where: str) -> Result:
    """A line of labelled data as a Result; queries without labels are left out."""
    from vlseg.data.images import upright_size

    masks = [rle for query in sample.queries for rle in query.masks or []]
    size = sample.size or (masks and (masks[0]["size"][0], masks[0]["size"][1])) or upright_size(str(sample.image))
    answers = [_answer(query, size) for query in sample.queries if query.masks is not None]
    for number, answer in enumerate(answers, 1):
        _check(answer, f"{where}: query {number}")
    return Result(str(sample.image), size, "labels", answers)


def _answer(query: Query, size: tuple[int, int]) -> Answer:
    segments = [Segment(1.0, [], 0, rle, "") for rle in query.masks or []]
    return Answer(query.text, "found" if segments else "absent", 1.0 if segments else 0.0, size, segments=segments)


def _unique(stem: str, taken: set[str]) -> str:
    """The stem as a file name that no other has; some file systems do not tell A from a."""
    clean = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in stem).lstrip(".") or "image"
    clean = clean.encode("utf-8", "replace")[:120].decode("utf-8", "ignore")
    name, number = clean, 2
    while name.casefold() in taken:
        name, number = f"{clean}-{number}", number + 1
    taken.add(name.casefold())
    return name
