"""From the name of a model to a `System`: the embedded model, a checkpoint folder or one on the Hub, a preset.

Nothing here imports torch before `load_system`, so that a wrong name is told at once.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.systems.presets import PRESETS, Preset, preset_of_type
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.systems.base import System

EMBEDDED, EMBEDDED_REFINER = "vlseg-mini", "vlseg-refiner"
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
OPEN_CLIP_CONFIG = "open_clip_config.json"
ONNX_SHAPES = "graphs.json"  # beside the graphs of an ONNX export
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "vlseg_processor.json")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Known:
    """A model that has a name of its own. needs: what must be there to run it."""

    name: str
    what: str
    needs: str


KNOWN = (Known(EMBEDDED, "embedded; drawn sprites, not photographs", "nothing: its weights are part of the package"),)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is. kind: "folder" (a checkpoint of vlseg), "onnx" (an export of one), "hub" (location "org/name"),
    or "preset".

    preset: the name of the system of others; places: what the user gave for its parts, in their order.
    """

    name: str
    kind: str
    location: str
    preset: str = ""
    places: tuple[str, ...] = ()


def resolve(model: str | Path | None = None) -> Source:
    """What a model name means: None or "vlseg-mini", a preset ("clipseg"), a preset with places of one's own
    ("clipseg=FOLDER", "grounded-sam2:FOLDER,FOLDER"), an existing folder, or "org/name" on the Hub.

    The config.json of a folder tells which system opens it. Raises VLSegError for embedded weights that are missing, a
    folder that is no checkpoint, and any other name (with the nearest known one). No network, no torch.
    """
    name = EMBEDDED if model is None else str(model)
    if name == EMBEDDED:
        folder = WEIGHTS / EMBEDDED
        lacking = [file for file in NEEDED if not (folder / file).exists()]
        if lacking:
            raise VLSegError(
                f"the embedded model {EMBEDDED} is not in this installation ({lacking[0]} is missing); make it with "
                f"`vlseg train configs/mini.yaml` and put its folder final/ at {folder}, or name another with --model"
            )
        return Source(name, "folder", str(folder))
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if path.exists():
        raise VLSegError(f"--model {name}: is a file; name the folder of a checkpoint")
    if name in PRESETS:
        return Source(name, "preset", name, name)
    given = re.match(r"([^=:/]+)[=:](.+)", name)
    if given and not _HUB_ID.fullmatch(name):
        return _with_places(name, given[1], given[2])
    if _HUB_ID.fullmatch(name):
        return Source(name, "hub", name)
    if "/" in name or name.startswith((".", "~")):
        raise VLSegError(f"--model {name}: no such folder")
    raise VLSegError(f"--model {name}: unknown model{_nearest(name)}")


def load_system(model: str | Path | None = None, device: str | None = None, dtype: str | None = None) -> System:
    """The system of that name, ready to run. Raises VLSegError as `resolve`, and for what cannot be had or loaded."""
    source = resolve(model)
    if source.kind == "hub":
        from vlseg.systems.hub import download

        source = _folder(source.name, Path(download(source.location)))
    from vlseg.systems.quiet import quiet_loading

    if source.kind == "preset":
        places = _fetch(source)
        with quiet_loading():
            return _open(PRESETS[source.preset], places, device, dtype, source.name)
    with quiet_loading():
        if source.kind == "onnx":
            from vlseg.systems.onnx_model import load_onnx

            return load_onnx(source.location, device, dtype, source.name)
        from vlseg.systems.native import NativeSystem

        return NativeSystem.from_pretrained(source.location, device, dtype, source.name)


def fingerprint(model: str | Path | None = None) -> str:
    """What tells the files of a model from those of another, wherever they lie: 64 hexadecimal digits.

    Of each file its name, size, time of change, and parts of its content spread over it. What the library of a system
    fetches by a name is known by that name. Raises VLSegError as `load_system`.
    """
    source = resolve(model)
    places: list[str | None] = [source.location]
    if source.kind == "preset":
        places = _fetch(source)
    elif source.kind == "hub":
        from vlseg.systems.hub import download

        places = [download(source.location)]
    digest = hashlib.sha256(source.preset.encode())
    for number, place in enumerate(places):
        path = Path(place or "").expanduser()
        files = sorted(file for file in path.rglob("*") if file.is_file()) if place and path.is_dir() else [path]
        for file in files:
            known = place and file.is_file()
            facts = [file.name, file.stat().st_size, file.stat().st_mtime_ns] if known else [place]
            digest.update(json.dumps([number, *facts]).encode())
            if known:
                digest.update(_sample(file))
    return digest.hexdigest()


def _sample(file: Path, parts: int = 64, each: int = 2**16) -> bytes:
    """The content of a file, of a larger one than parts x each bytes so many parts."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        if size <= parts * each:
            return opened.read()
        read = []
        for part in range(parts):
            opened.seek((size - each) * part // (parts - 1))
            read.append(opened.read(each))
        return b"".join(read)


def _folder(name: str, path: Path) -> Source:
    if (path / OPEN_CLIP_CONFIG).exists():
        return Source(name, "preset", str(path), "open_clip", (str(path),))
    _check_folder(path)
    if (path / ONNX_SHAPES).exists():
        return Source(name, "onnx", str(path))
    kind = model_type(path)
    preset = preset_of_type(kind)
    if preset is not None:
        return Source(name, "preset", str(path), preset.name, (str(path),))
    if kind in ("sam2", "sam2_video"):
        raise VLSegError(f"--model {name}: SAM 2 takes no words; use --refine sam2, or grounded-sam2=DETECTOR,{path}")
    return Source(name, "folder", str(path))


def model_type(folder: str | Path) -> str:
    """That of the folder's config.json, "" where it names none. Raises VLSegError where the file cannot be read."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        # segmentation-models-pytorch names a class of its own instead
        return str(config.get("model_type") or config.get("_model_class") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise VLSegError(f"{folder}: config.json cannot be read ({error}); the checkpoint is broken") from error


def _with_places(name: str, system: str, rest: str) -> Source:
    if system not in PRESETS:
        raise VLSegError(f"--model {name}: {system} is no system{_nearest(system)}")
    parts = PRESETS[system].parts
    places = tuple(place.strip() for place in rest.split(","))
    if len(places) > len(parts):
        roles = ", ".join(part.role for part in parts)
        raise VLSegError(f"--model {name}: {len(places)} places, but {system} has {len(parts)} ({roles})")
    for place, part in zip(places, parts, strict=False):
        path = Path(place).expanduser()
        if place and part.hub and path.is_dir():
            _check_folder(path, part.config)
        elif place and not path.exists() and not part.named and not (part.hub and _HUB_ID.fullmatch(place)):
            raise VLSegError(f"--model {name}: no such {'folder' if part.hub else 'file'} {place} ({part.role})")
    return Source(name, "preset", rest, system, places)


def _fetch(source: Source) -> list[str | None]:
    """A local folder or file a part of the preset. Raises VLSegError where one cannot be had."""
    from vlseg.systems.hub import download

    places: list[str | None] = []
    for number, part in enumerate(PRESETS[source.preset].parts):
        given = source.places[number] if number < len(source.places) else ""
        if given and Path(given).expanduser().exists():
            places.append(str(Path(given).expanduser()))
        elif given and part.named and not _HUB_ID.fullmatch(given):
            places.append(given)
        elif given:
            places.append(download(given, model=source.preset))
        elif part.optional:
            places.append(None)
        else:
            places.append(download(part.id, part.revision, source.preset, part.gated) if part.hub else part.id)
    return places


def _open(preset: Preset, places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> System:
    module, _, function = preset.factory.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(places, device, dtype, name)
    except ModuleNotFoundError as error:
        lacking = " ".join(preset.packages) or error.name
        raise VLSegError(f"--model {name}: the package {error.name} is missing; pip install {lacking}") from error


def _check_folder(path: Path, config: str = "config.json") -> None:
    if (path / config).exists():
        return
    for inner in ("final", "best"):
        if (path / inner / "config.json").exists():
            raise VLSegError(f"--model {path}: is the folder of a run; name its checkpoint: {path / inner}")
    raise VLSegError(f"--model {path}: no {config} there; name the folder of a checkpoint")


def _nearest(name: str) -> str:
    names = [*(known.name for known in KNOWN), *PRESETS]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}, the folder of a checkpoint, or org/name on the Hub"
