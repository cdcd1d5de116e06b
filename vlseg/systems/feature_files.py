"""Image features on disk, as safetensors: one file an entry, the least recently used dropped first."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.data.files import write_whole
from vlseg.systems.base import EncodedImage
from vlseg.types import VLSegError

log = logging.getLogger("vlseg")

LIMIT = 10 * 2**30
KEPT = 0.9  # share of the limit that is left when room is made, so that it is not made for every entry
OURS = ("vlseg.", "transformers.")  # whose dataclasses are made again from a file


class FeatureFiles:
    """Entries in a folder that several processes may share. limit: bytes of all files; an entry above it is not kept.

    device: where tensors go that were not on the CPU. What cannot be read is a miss, and what cannot be written is
    left: each is said once, on the logger "vlseg". Raises VLSegError for a folder that cannot be made.
    """

    def __init__(self, folder: str | Path, device: torch.device, limit: int = LIMIT):
        self.folder, self.device, self.limit = Path(folder).expanduser(), device, limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if self.folder.is_file() else error.strerror or error
            raise VLSegError(f"--cache {folder}: cannot be made ({reason}); name another folder") from error
        self._said: set[str] = set()
        self._bytes = sum(size for _, size, _ in self._entries())

    def get(self, key: str) -> EncodedImage | None:
        """The entry of a key (letters and digits), or None."""
        from safetensors import safe_open

        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads(file.metadata()["entry"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            size = (int(told["size"][0]), int(told["size"][1]))
            found = EncodedImage(size, _built(told["tree"], tensors, self.device), int(told["bytes"]))
            os.utime(path)
        except Exception as error:  # safetensors, json and what is made of them each have their own way to fail
            reason = " ".join(str(error).split())[:120]
            self._say("read", f"{path}: not readable ({reason}); the image is encoded anew")
            return None
        return found

    def put(self, key: str, entry: EncodedImage) -> None:
        """Keep an entry."""
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        try:
            told = {"size": entry.size, "bytes": entry.bytes, "tree": _plain(entry.features, tensors)}
            data = save(tensors, {"entry": json.dumps(told)})
            if len(data) > self.limit:
                return
            path = self._path(key)
            before = path.stat().st_size if path.exists() else 0
            path.parent.mkdir(exist_ok=True)
            write_whole(path, data)
        except (VLSegError, OSError, TypeError) as error:
            self._say("write", f"--cache {self.folder}: features cannot be kept ({error})")
            return
        self._bytes += len(data) - before
        if self._bytes > self.limit:
            self._make_room()

    def _make_room(self) -> None:
        """Drop the entries that were not used for longest; other processes may have added and dropped some."""
        entries = sorted(self._entries())
        self._bytes = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if self._bytes <= KEPT * self.limit:
                return
            path.unlink(missing_ok=True)
            self._bytes -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, file)."""
        found = []
        for path in self.folder.glob("??/*.safetensors"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # dropped by another process
                continue
            found.append((facts.st_mtime_ns, facts.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning("vlseg: %s", text)


def _plain(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A tree as JSON, its tensors moved to `tensors`. Raises TypeError for what is none of what is known here."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()  # safetensors takes no two tensors of one memory
        return ["tensor", name, tree.device.type == "cpu"]
    if isinstance(tree, Image.Image):
        name = str(len(tensors))
        tensors[name] = torch.from_numpy(np.array(tree))
        return ["image", name]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        values = {field.name: _plain(getattr(tree, field.name), tensors) for field in dataclasses.fields(tree)}
        return ["class", type(tree).__module__, type(tree).__qualname__, values]
    if isinstance(tree, dict):
        return ["dict", [[_plain(key, tensors), _plain(value, tensors)] for key, value in tree.items()]]
    if isinstance(tree, list | tuple):
        return ["list" if isinstance(tree, list) else "tuple", [_plain(value, tensors) for value in tree]]
    raise TypeError(f"{type(tree).__name__} among the features")


def _built(tree: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> Any:
    """The inverse of `_plain`."""
    if not isinstance(tree, list):
        return tree
    kind, first = tree[0], tree[1]
    if kind == "tensor":
        return tensors[first] if tree[2] else tensors[first].to(device)
    if kind == "image":
        return Image.fromarray(tensors[first].numpy())
    if kind == "class":
        made: Any = getattr(importlib.import_module(first), tree[2]) if first.startswith(OURS) else None
        if made is None or not dataclasses.is_dataclass(made):
            raise ValueError(f"{first}.{tree[2]} is no class of features")
        fields = {name: _built(value, tensors, device) for name, value in tree[3].items()}
        return made(**fields)  # type: ignore[operator]
    if kind == "dict":
        return {_built(key, tensors, device): _built(value, tensors, device) for key, value in first}
    values = [_built(value, tensors, device) for value in first]
    return values if kind == "list" else tuple(values)
