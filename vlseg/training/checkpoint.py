"""Checkpoints that are whole or not there: written beside, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

STATE = "state.pt"


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
    """Write `root/step-N` whole, then drop all but the newest `keep`. Raises OSError, and leaves what was there."""
    try:
        begin(root, step)
        return finish(root, step, state, keep)
    except (OSError, RuntimeError):  # torch's zip writer tells of a full disk with a RuntimeError
        shutil.rmtree(partial(root, step), ignore_errors=True)
        raise


def begin(root: Path, step: int) -> Path:
    """The empty folder in which the checkpoint of a step grows, shards of other ranks included."""
    folder = partial(root, step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def finish(root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Put a checkpoint that has grown in its place, its state written last; drop all but the newest `keep`."""
    growing, target = partial(root, step), root / f"step-{step}"
    state = {**state, "files": sizes(growing)}
    with open(growing / STATE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():
        shutil.rmtree(target)
    os.replace(growing, target)
    for old in step_folders(root)[:-keep]:
        shutil.rmtree(old)
    return target


def partial(root: Path, step: int) -> Path:
    """Where the checkpoint of a step grows."""
    return root / f".step-{step}.partial"


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file in a folder but the state itself, by its path in it."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != STATE)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def load_newest(root: Path, log: Any = print) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None. A broken one is named and passed over."""
    for folder in reversed(step_folders(root)):
        try:
            state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # a cut or mixed-up file makes zip, pickle and torch fail in a dozen ways
            log(f"{folder}: cannot be read ({type(error).__name__}); falling back to the one before")
            continue
        there = sizes(folder)
        broken = [name for name, size in state.pop("files", {}).items() if there.get(name) != size]
        if not broken:
            return state
        log(f"{folder}: {broken[0]} is cut or missing; falling back to the one before")
    return None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def drop_lines_after(path: Path, step: int) -> None:
    """Take lines of later steps out of a metrics file, so that a resumed run does not tell them twice."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}") and json.loads(line)["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in lines))
    os.replace(partial, path)
