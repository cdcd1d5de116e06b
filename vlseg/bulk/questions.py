"""What is asked of which image: a file with one query a line for all, or JSONL with queries for each image.

    {"image": "images/1.jpg", "queries": ["the red mug", "the dog on the left"]}

A query may also be an object with "text", so that data of one's own (DESIGN.md, 4.4) can be asked again as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlseg.data.reading import brief, parse_json, read_bytes
from vlseg.types import VLSegError


@dataclass(frozen=True, slots=True)
class Questions:
    """positions: of the images that are asked, in order; rows: their queries, or one list for all of them."""

    positions: Sequence[int]
    rows: Sequence[Sequence[str]]

    def __len__(self) -> int:
        return len(self.positions)

    def of(self, number: int) -> list[str]:
        """The queries of the image `positions[number]`."""
        return list(self.rows[number] if len(self.rows) > 1 else self.rows[0])


def same_for_all(texts: Sequence[str], count: int) -> Questions:
    """The same queries for each of `count` images. Raises VLSegError for none and for an empty one."""
    if not texts:
        raise VLSegError("no query: say in words what to segment")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise VLSegError(f"query {number} is empty: say in words what to segment")
    return Questions(range(count), [list(texts)])


def read_questions(file: str, names: Sequence[str]) -> Questions:
    """The queries of a file for the images of these names; JSONL where its name ends in .jsonl or .ndjson.

    A text file has a query a line; blank lines are skipped. In JSONL an image is named as results name it, or by a
    path relative to the file, or by its file name alone where no other image has it; images without a line are left
    out. Raises VLSegError for a file that cannot be read or is malformed, for one without a query, and for a line
    whose image is not there.
    """
    path = Path(file)
    if not file or path.is_dir() or not path.exists():
        raise VLSegError(f"--queries {file}: no such file; give one query a line, or JSONL with image and queries")
    if path.suffix in (".jsonl", ".ndjson"):
        return _own(path, names)
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise VLSegError(f"--queries {file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise VLSegError(f"--queries {file}: holds no query; write one a line")
    return same_for_all(texts, len(names))


def _own(path: Path, names: Sequence[str]) -> Questions:
    known = _Names(names, path.parent)
    asked: dict[int, list[str]] = {}
    for number, raw in enumerate(read_bytes(path).splitlines(), 1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        line = parse_json(raw, where)
        image = line.get("image") if isinstance(line, dict) else None
        queries = line.get("queries") if isinstance(line, dict) else None
        if not isinstance(image, str) or not isinstance(queries, list):
            raise VLSegError(f'{where}: a line is {{"image": path, "queries": [words, ...]}}, got {brief(line)}')
        texts = [_words(query, where) for query in queries]
        asked.setdefault(known.position(image, where), []).extend(texts)
    asked = {position: texts for position, texts in asked.items() if texts}
    if not asked:
        raise VLSegError(f"--queries {path}: holds no query")
    positions = sorted(asked)
    return Questions(positions, [asked[position] for position in positions])


def _words(query: Any, where: str) -> str:
    text = query.get("text") if isinstance(query, dict) else query
    if not isinstance(text, str) or not text.strip():
        raise VLSegError(f"{where}: a query must be words, got {brief(text)}")
    return text


class _Names:
    """Finds an image by its name, its path from the file, or its file name."""

    def __init__(self, names: Sequence[str], folder: Path):
        self.folder = folder
        self.exact = {name: i for i, name in enumerate(names)}
        self.paths: dict[str, int] = {os.path.abspath(name): i for i, name in enumerate(names)}
        self.files: dict[str, int | None] = {}
        for i, name in enumerate(names):
            file = os.path.basename(name)
            self.files[file] = None if file in self.files else i

    def position(self, image: str, where: str) -> int:
        beside = os.path.abspath(self.folder / image)
        found = self.exact.get(image, self.paths.get(beside, self.paths.get(os.path.abspath(image))))
        if found is None and os.path.basename(image) == image:
            found = self.files.get(image)
            if found is None and image in self.files:
                raise VLSegError(f"{where}: several images are called {image}; write its path")
        if found is None:
            raise VLSegError(
                f"{where}: {image} is none of the {len(self.exact)} images; such as {next(iter(self.exact))}"
            )
        return found
