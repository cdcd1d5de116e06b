"""What a bulk run leaves in its folder, shard by shard, so that a run killed at any instant goes on where it was.

    results-00012-of-00050.jsonl   the results of a shard, an image a line, in the order of the images (or .parquet)
    errors.jsonl                   once all is done: images that could not be answered, {"image", "error"}
    shards/run.json                what must be the same for the run to go on
    shards/00012.json              what went wrong in a shard; written before its results, which say that it is done

A shard is written by one process, whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlseg.bulk.job import Answered
from vlseg.data.files import write_whole
from vlseg.data.reading import read_json
from vlseg.evaluation.shards import KEY, as_text, goes_on
from vlseg.types import VLSegError

FORMATS = ("jsonl", "parquet")
ERRORS = "errors.jsonl"


class Output:
    """The folder of a run with `shards` shards. Any process may write, no two the same shard."""

    def __init__(self, folder: Path, format: str, shards: int):
        self.folder, self.format, self.shards = folder, format, shards
        self.inner = folder / "shards"
        self.seen = self.inner / ".seen"  # a byte an image that this run has answered; for progress

    def open(self, key: Mapping[str, Any]) -> None:
        """Begin, or go on with, the run that `key` describes. Raises VLSegError where the folder holds another."""
        file = self.inner / KEY
        hint = "name another --out, or delete what it holds to start over"
        if not goes_on(file, key, f"{self.folder}: holds a run", hint):
            others = next(self.folder.glob("results-*"), None)
            if others is not None:
                raise VLSegError(f"{self.folder}: holds {others.name} of a run that nobody knows; {hint}")
            self.inner.mkdir(parents=True, exist_ok=True)
            write_whole(file, as_text(key))
        self.seen.write_bytes(b"")

    def finished(self, shard: int) -> bool:
        """Whether a shard is there and nothing in it went wrong that may go right this time."""
        return self.results(shard).exists() and self._status(shard).exists() and not self.status(shard)["crashed"]

    def write(self, shard: int, answered: Answered) -> None:
        """Keep a shard."""
        status = {
            "images": len(answered.results) + len(answered.errors),
            "errors": answered.errors,
            "failed": answered.failed,
            "crashed": answered.crashed,
        }
        write_whole(self._status(shard), json.dumps(status, ensure_ascii=False))
        lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in answered.results)
        write_whole(self.results(shard), lines if self.format == "jsonl" else _parquet(answered.results))

    def status(self, shard: int) -> dict[str, Any]:
        """What is known of a shard that is there: "images", "errors", "failed", "crashed". Raises VLSegError."""
        status: dict[str, Any] = read_json(self._status(shard))
        return status

    def results(self, shard: int) -> Path:
        """The file with the results of a shard."""
        return self.folder / f"results-{shard:05d}-of-{self.shards:05d}.{self.format}"

    def tick(self, images: int) -> None:
        """Tell that so many more images are done; any process may."""
        with open(self.seen, "ab", buffering=0) as file:
            file.write(b"." * images)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """No second run on this folder meanwhile. Raises VLSegError where one is going on."""
        try:
            import fcntl
        except ImportError:  # not on Windows; there two runs would do the same work twice
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise VLSegError(f"--out {self.folder}: another run is writing there; wait for it") from error
            yield

    def _status(self, shard: int) -> Path:
        return self.inner / f"{shard:05d}.json"


def read_results(folder: Path) -> Iterator[dict[str, Any]]:
    """The results of a run, as result JSON, in the order of its images. Raises VLSegError for what cannot be read."""
    for file in sorted(folder.glob("results-*-of-*")):
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            yield from map(_without_nulls, pq.read_table(file).to_pylist())
        else:
            with open(file, encoding="utf-8") as lines:
                yield from map(json.loads, lines)


def _without_nulls(result: dict[str, Any]) -> dict[str, Any]:
    """A row as result JSON: a segment that was not refined has no "coarse" there."""
    for segment in (segment for answer in result["answers"] for segment in answer["segments"]):
        if segment.get("coarse") is None:
            segment.pop("coarse", None)
    return result


def clean(folder: Path) -> None:
    """Take away what processes that were killed have left half written."""
    for place in (folder, folder / "shards"):
        for file in place.glob(".part-*"):
            with contextlib.suppress(OSError):
                os.unlink(file)


def _parquet(results: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    rle = pa.struct([("size", pa.list_(whole)), ("counts", text)])
    coarse = pa.struct([("stage", text), ("rle", rle), ("path", text)])
    segment = pa.struct(
        [
            ("score", real),
            ("bbox", pa.list_(real)),
            ("area", whole),
            ("rle", rle),
            ("path", text),
            ("stage", text),
            ("coarse", coarse),
        ]
    )
    answer = pa.struct(
        [("text", text), ("status", text), ("score", real), ("reason", text), ("segments", pa.list_(segment))]
    )
    schema = pa.schema(
        [
            ("image", text),
            ("size", pa.list_(whole)),
            ("model", text),
            ("protocol", text),
            ("seconds", real),
            ("answers", pa.list_(answer)),
        ]
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(results, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()
