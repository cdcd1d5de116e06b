"""What a run has got so far, on disk: one file a batch, so that a run killed at any instant goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlseg.data.files import write_whole
from vlseg.evaluation.batch import Batch
from vlseg.types import VLSegError

KEY = "run.json"


class Shards:
    """The folder of one run's batches. Every process may write; no two write the same batch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, key: Mapping[str, Any]) -> None:
        """Begin, or go on with, the run that `key` (plain data) describes. One process calls it, before any writes.

        Raises VLSegError where the folder holds batches of another run.
        """
        file = self.folder / KEY
        hint = "name another --out, or delete that folder to start over"
        if goes_on(file, key, f"{self.folder}: holds an evaluation", hint):
            return
        if self.folder.exists():
            shutil.rmtree(self.folder)  # batches whose run nobody knows
        self.folder.mkdir(parents=True)
        write_whole(file, as_text(key))

    def finished(self, number: int) -> bool:
        """Whether a batch is there and nothing in it went wrong that may go right this time."""
        file = self._file(number)
        return file.exists() and not self.read(number).crashed

    def write(self, batch: Batch) -> None:
        """Keep a batch."""
        write_whole(self._file(batch.number), json.dumps(batch.to_dict(), ensure_ascii=False))

    def read(self, number: int) -> Batch:
        """A batch that is there."""
        return Batch.from_dict(_read(self._file(number)))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def goes_on(file: Path, key: Mapping[str, Any], what: str, hint: str) -> bool:
    """Whether `file` holds the key of the run that `key` (plain data) describes; False where it is not there.

    what, hint: begin and end of the VLSegError that is raised where it holds the key of another run.
    """
    if not file.exists():
        return False
    wanted, stored = json.loads(as_text(key)), _read(file)
    differing = sorted(k for k in {*wanted, *stored} if wanted.get(k) != stored.get(k))
    if differing:
        raise VLSegError(f"{what} of another {', '.join(differing)}; {hint}")
    return True


def as_text(key: Mapping[str, Any]) -> str:
    """A key as its file holds it."""
    return json.dumps(key, indent=1)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLSegError(f"{file}: cannot be read ({error}); delete {file.parent} to start over") from error
