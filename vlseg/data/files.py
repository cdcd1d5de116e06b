"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vlseg.types import VLSegError


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file beside its place and move it there in one step; text as UTF-8. Raises VLSegError."""
    with whole_file(path) as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece, moved to its place when the block ends well. Raises VLSegError."""
    partial = path.with_name(f".part-{os.getpid()}-{path.name[-80:]}")
    try:
        try:
            with open(partial, "wb") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise VLSegError(f"{path}: cannot be written ({error.strerror or error})") from error


def writable_folder(folder: str | Path) -> Path:
    """The folder, made where it is missing. Raises VLSegError where it cannot be made or written to."""
    if not str(folder):
        raise VLSegError("--out is empty: name a folder")
    path = Path(folder)
    probe = path / f".part-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if path.is_file() else error.strerror or error
        raise VLSegError(f"--out {folder}: cannot be written to ({reason}); name another folder") from error
    return path
