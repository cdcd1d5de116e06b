"""`IndexedDataset`: a data set over an index of records, and the cache that spares the second opening the parsing.

An index holds one JSON text a sample in one run of bytes; a sample is decoded when it is asked for. The cache is a file
a split in the user's cache folder (``$VLSEG_CACHE``; "off" switches it off). It is valid as long as the *content* of
the annotation files is the same: they are hashed at each opening with XXH3, which runs at the speed of memory.
Whatever is wrong with the cache, the annotation files are read instead. Files under 4 MB are not worth a cache.

A large index lies in a file that is mapped, not read: of annotations that exceed the memory, a process holds what it is
using, and all processes of a machine share one copy.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from vlseg.data.dataset import Problem
from vlseg.data.files import whole_file
from vlseg.data.reading import paused_gc
from vlseg.data.records import Record, to_sample
from vlseg.types import Sample, VLSegError
from vlseg.version import __version__

# Rises whenever a reader comes to write other records for the same files.
FORMAT = 1
MAGIC = b"vlseg-index\n"
WORTH_CACHING = 4_000_000  # bytes of all annotation files together
IN_MEMORY = 64_000_000  # bytes of records; more are collected in a temporary file
PIECE = 1 << 24  # bytes that are hashed or copied at once
log = logging.getLogger(__name__)


class Records(Sequence[Record]):
    """Records as one run of JSON bytes; record i is `blob[marks[i]:marks[i + 1]]`.

    file: the cached index that the blob is a mapping of, and its key: what another process opens instead of being sent
    all records.
    """

    def __init__(self, blob: bytes | mmap.mmap, marks: np.ndarray, file: tuple[Path, str] | None = None):
        self.blob, self.marks, self.file = blob, marks, file

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is not None:
            return _opened_again, self.file
        return Records, (bytes(self.blob), self.marks)  # a mapping itself cannot be pickled

    def __len__(self) -> int:
        return len(self.marks) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return msgspec.json.decode(memoryview(self.blob)[int(self.marks[position]) : int(self.marks[position + 1])])


@dataclass
class Index:
    """What a reader makes of annotation files. notes: what a reader of a report should know ("a subset of ...")."""

    records: Records
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Builder:
    """Collects records, problems and notes, and packs them."""

    def __init__(self) -> None:
        self.parts = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (the index lives as long as it)
        self.marks = array("q", [0])
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def problem(self, where: str, what: str) -> None:
        """Name a record that is left out."""
        self.problems.append(Problem(where, what))

    def add(self, record: Record, where: str) -> None:
        """Take a record in; one that is no JSON (an integer beyond 64 bits, half a surrogate pair) is a problem.

        Raises VLSegError where the disk of temporary files is full.
        """
        try:
            part = msgspec.json.encode(record)
        except (TypeError, ValueError, OverflowError) as error:
            self.problem(where, f"cannot be kept ({error})")
            return
        try:
            self.parts.write(part)
        except OSError as error:
            raise _no_room(error) from error
        self.marks.append(self.marks[-1] + len(part))

    def index(self) -> Index:
        """All that was collected. Raises VLSegError where the disk of temporary files is full."""
        marks = np.frombuffer(self.marks, dtype=np.int64)
        blob: bytes | mmap.mmap
        if marks[-1] <= IN_MEMORY:
            self.parts.seek(0)
            blob = self.parts.read()
        else:
            try:
                self.parts.flush()
                blob = mmap.mmap(self.parts.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise _no_room(error) from error
        return Index(Records(blob, marks), self.problems, self.notes)


def _no_room(error: OSError) -> VLSegError:
    folder = tempfile.gettempdir()
    return VLSegError(f"{folder}: the index of the data set cannot be kept ({error.strerror or error}); set TMPDIR")


class IndexedDataset:
    """A `Dataset` over an index. folder: what image paths are relative to; source: the annotation file, for messages.

    decode: makes a `Sample` of (record, folder, source), a function of a module, so that the data set can be pickled.
    """

    def __init__(
        self,
        name: str,
        split: str,
        index: Index,
        folder: Path,
        source: str,
        decode: Callable[[Record, Path, str], Sample] = to_sample,
    ):
        self.name, self.split, self.folder, self.source = name, split, folder, source
        self.records, self.problems, self.notes = index.records, index.problems, index.notes
        self._decode = decode

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.labels(index)

    def labels(self, index: int) -> Sample:
        """The sample without pixels: its queries and masks, and as `image` only where the picture is."""
        return self._decode(self.records[index], self.folder, self.source)

    def load(self, index: int) -> tuple[tuple[int, int] | None, int]:
        """(height, width) where the record tells it, and the number of labelled queries; looks at no mask."""
        record = self.records[index]
        size = record["size"]
        return size and (size[0], size[1]), sum(query[2] is not None for query in record["queries"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of `fingerprint`; reads every mask once."""
        return fingerprint(self.labels(i) for i in range(len(self)))

    def counts(self) -> dict[str, int]:
        """Numbers of images, queries (present, absent, unlabelled), target masks, distractors and ignore regions."""
        return count(_outline(self.records[i]) for i in range(len(self)))

    def coco_ids(self) -> list[int | None]:
        """The COCO image id of each sample, where the source knows one."""
        return [self.records[i]["meta"].get("coco_id") for i in range(len(self))]


def _outline(record: Record) -> Iterator[tuple[int | None, int, bool, str | None]]:
    for _, _, targets, distractors, kind, ignore in record["queries"]:
        yield None if targets is None else len(targets), len(distractors), bool(ignore), kind


def outline(sample: Sample) -> Iterator[tuple[int | None, int, bool, str | None]]:
    """(number of targets or None, number of distractors, has an ignore region, kind) of each query."""
    for query in sample.queries:
        targets = None if query.masks is None else len(query.masks)
        yield targets, len(query.distractors), query.ignore is not None, query.kind


def count(samples: Iterable[Iterable[tuple[int | None, int, bool, str | None]]]) -> dict[str, int]:
    """Totals over outlines; kinds are counted under "kind NAME"."""
    out = dict.fromkeys(
        ("images", "queries", "present", "absent", "unlabelled", "masks", "distractors", "ignore regions"), 0
    )
    for sample in samples:
        out["images"] += 1
        for targets, distractors, ignore, kind in sample:
            out["queries"] += 1
            out["unlabelled" if targets is None else "present" if targets else "absent"] += 1
            out["masks"] += targets or 0
            out["distractors"] += distractors
            out["ignore regions"] += ignore
            if kind is not None:
                out[f"kind {kind}"] = out.get(f"kind {kind}", 0) + 1
    return out


def fingerprint(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) of the ids, texts, targets, distractors and ignored pixels of every query, in order.

    The same truth has the same fingerprint in whatever format it is kept: a converted data set keeps it.
    """
    digest = hashlib.sha256()
    for sample in samples:
        queries = [[q.id, q.text, q.masks, q.distractors, q.ignore] for q in sample.queries]
        digest.update(msgspec.json.encode([sample.id, queries]))
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """Where indexes are kept: $VLSEG_CACHE, else the user's cache folder; None where it is switched off."""
    chosen = os.environ.get("VLSEG_CACHE")
    if chosen is not None:
        return None if chosen.lower() in ("", "0", "off", "none") else Path(chosen).expanduser()
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "vlseg" / "cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "vlseg"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlseg"
    except RuntimeError:  # a user without a home
        return None


def load_index(name: str, split: str, sources: Sequence[Path], options: str, build: Callable[[], Index]) -> Index:
    """The index of annotation files: from the cache where it fits their content, else by `build`, which fills it.

    options: whatever else decides what `build` makes. Raises VLSegError where a source cannot be read, and as `build`.
    """
    folder = cache_folder()
    try:
        small = sum(source.stat().st_size for source in sources) < WORTH_CACHING
    except OSError:
        small = True  # whoever reads the file says what is wrong with it
    if folder is None or small:
        return _built(build)
    key = xxhash.xxh3_128(repr((FORMAT, __version__, name, split, options)).encode())
    for source in sources:
        key.update(content_hash(source))
    place = xxhash.xxh3_64(repr(([str(s.resolve()) for s in sources], options)).encode()).hexdigest()
    file = folder / f"{re.sub(r'[^a-z0-9+-]+', '_', name.lower())[-40:]}-{split or 'all'}-{place}.index"
    index = _load(file, key.hexdigest())
    if index is None:
        index = _built(build)
        _store(file, key.hexdigest(), index)
        if isinstance(index.records.blob, mmap.mmap):  # one copy for all processes, instead of a temporary file each
            index = _load(file, key.hexdigest()) or index
    return index


def _built(build: Callable[[], Index]) -> Index:
    with paused_gc():
        return build()


def content_hash(path: Path) -> bytes:
    """XXH3 (128 bits) of a file's content. Raises VLSegError where it cannot be read."""
    digest, buffer = xxhash.xxh3_128(), bytearray(1 << 20)
    view = memoryview(buffer)
    try:
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(view[:size])
    except OSError as error:
        raise VLSegError(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.digest()


def _store(file: Path, key: str, index: Index) -> None:
    body = (index.records.marks.data.cast("B"), memoryview(index.records.blob))
    head = {
        "key": key,
        "marks": len(index.records.marks),
        "check": _check(*body),
        "problems": [[p.where, p.what] for p in index.problems],
        "notes": index.notes,
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as out:
            out.writelines((MAGIC, msgspec.json.encode(head), b"\n"))
            for part in body:
                out.writelines(_pieces(part))
    except (OSError, VLSegError) as error:
        log.info("the index is not cached: %s", error)  # a read-only or full disk costs time only


def _load(file: Path, key: str) -> Index | None:
    """The stored index, or None where there is none, it belongs to other content, or it is damaged."""
    try:
        with open(file, "rb") as opened:
            raw = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        if raw[: len(MAGIC)] != MAGIC:
            return None
        body = raw.find(b"\n", len(MAGIC)) + 1
        head = msgspec.json.decode(raw[len(MAGIC) : body])
        if head["key"] != key or _check(memoryview(raw)[body:]) != head["check"]:
            return None
        start = body + 8 * head["marks"]
        # The file is kept as it is: the marks are moved instead of the records.
        marks = np.frombuffer(raw[body:start], dtype=np.int64) + start
        problems = [Problem(where, what) for where, what in head["problems"]]
        return Index(Records(raw, marks, (file, key)), problems, list(head["notes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("no cached index: %s", error)
        return None


def _opened_again(file: Path, key: str) -> Records:
    index = _load(file, key)
    if index is None:
        raise VLSegError(f"{file}: the index of a data set has changed while it was in use; start again")
    return index.records


def _pieces(part: memoryview) -> Iterator[memoryview]:
    return (part[start : start + PIECE] for start in range(0, len(part), PIECE))


def _check(*parts: memoryview) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        for piece in _pieces(part):
            digest.update(piece)
    return digest.hexdigest()
