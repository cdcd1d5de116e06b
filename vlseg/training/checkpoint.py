"""Checkpoints that are whole or not there: written beside, then renamed; their files are known by their checksums."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlseg.data.files import write_whole

STATE = "state.pt"
FILES = "files.json"  # bytes and CRC-32 of every other file of a checkpoint


class Ema:
    """Exponential moving average of parameters. `decay` is reached slowly: min(decay, (1 + n) / (10 + n)); 0: none."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.decay, self.updates = decay, 0
        self.parameters: list[torch.Tensor] = [_local(p) for p in parameters] if decay else []
        self.average = [p.detach().clone() for p in self.parameters]

    def update(self) -> None:
        """Fold in the parameters as they are now."""
        if not self.parameters:
            return
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self):
        """Within the block the model holds the averages."""
        if not self.parameters:
            yield
            return
        now = [p.detach().clone() for p in self.parameters]
        self._copy(self.average)
        try:
            yield
        finally:
            self._copy(now)

    def _copy(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, values)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.updates = state["updates"]
        if self.average:
            torch._foreach_copy_(self.average, state["average"])


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a parameter; the parameter where it is whole."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def step_folders(root: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [p for p in root.glob("step-*") if p.name[5:].isdigit() and (p / STATE).exists()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def save(root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `root/step-N` whole, then drop all but the newest `keep`.

    Raises what the disk had to say (see `storage.unwritten`), and leaves what was there.
    """
    try:
        begin(root, step)
        return finish(root, step, state, keep)
    except Exception:
        discard(root, step)
        raise


def begin(root: Path, step: int) -> Path:
    """The empty folder in which the checkpoint of a step grows, shards of other ranks included."""
    sweep(root)
    folder = partial(root, step)
    folder.mkdir(parents=True)
    return folder


def finish(root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Put a checkpoint that has grown in its place, its state written last; drop all but the newest `keep`.

    When it is in its place, its files and their names are on the disk, not only on their way there.
    """
    growing, target = partial(root, step), root / f"step-{step}"
    with open(growing / STATE, "wb") as file:
        torch.save(state, file)
    known = {file.relative_to(growing).as_posix(): [file.stat().st_size, checksum(file)] for file in files_in(growing)}
    (growing / FILES).write_text(json.dumps(known) + "\n", encoding="utf-8")
    for path in [*growing.rglob("*"), growing]:
        flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(growing, target)
    flush(root)
    for old in step_folders(root)[:-keep]:
        shutil.rmtree(old)
    return target


def partial(root: Path, step: int) -> Path:
    """Where the checkpoint of a step grows."""
    return root / f".step-{step}.partial"


def discard(root: Path, step: int) -> None:
    """Remove what has grown of a checkpoint."""
    shutil.rmtree(partial(root, step), ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what runs that were killed while they saved have left: half checkpoints of any step, gigabytes each."""
    for folder in root.glob(".step-*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file's content, or a folder's entries, written to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot be told
            raise
    finally:
        os.close(opened)


def files_in(folder: Path) -> list[Path]:
    """The files of a checkpoint but `FILES`, in order."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != FILES]


def checksum(path: Path, piece: int = 2**22) -> int:
    """CRC-32 of a file."""
    found = 0
    with open(path, "rb") as file:
        while data := file.read(piece):
            found = zlib.crc32(data, found)
    return found


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; None where they are as they were written."""
    try:
        known: dict[str, list[int]] = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None  # of a version of vlseg that kept no checksums
    except ValueError:
        return f"{FILES} cannot be read"
    there = {file.relative_to(folder).as_posix(): file for file in files_in(folder)}
    for name, (size, crc) in known.items():
        if name not in there or there[name].stat().st_size != size:
            return f"{name} is cut or missing"
        if checksum(there[name]) != crc:
            return f"{name} is damaged"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint. Raises whatever torch does for a file that is none."""
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


def load_newest(root: Path, log: Any = print) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None. A broken one is named and passed over."""
    for folder in reversed(step_folders(root)):
        wrong = damage(folder)
        if wrong is None:
            try:
                return read_state(folder)
            except Exception as error:  # a cut or mixed-up file makes zip, pickle and torch fail in a dozen ways
                wrong = f"cannot be read ({type(error).__name__})"
        log(f"{folder}: {wrong}; falling back to the one before")
    return None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line. Raises OSError, and what was cut by it stays a line of its own."""
    with open(path, "ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(start + json.dumps(record).encode() + b"\n")


def drop_lines_after(path: Path, step: int) -> None:
    """Take lines of later steps, which a resumed run will tell again, and cut ones out of a metrics file."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step(line) <= step]
    write_whole(path, "".join(line + "\n" for line in lines))


def _step(line: str) -> float:
    """The step that a line of a metrics file tells of; infinity for a cut one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
