"""From the name of a model to a `System`: the embedded model, a checkpoint folder, or a checkpoint on the Hub.

Nothing here imports torch before `load_system`, so that a wrong name is told at once.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.systems.base import System

EMBEDDED = "vlseg-mini"
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "vlseg_processor.json")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Known:
    """A model that has a name of its own. needs: what must be there to run it."""

    name: str
    what: str
    needs: str


KNOWN = (
    Known(EMBEDDED, "embedded; sprites and diagrams, not photographs", "nothing: its weights are part of the package"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is. kind: "folder", or "hub" with location "org/name"."""

    name: str
    kind: str
    location: str


def resolve(model: str | Path | None = None) -> Source:
    """What a model name means: None or "vlseg-mini", an existing folder, or "org/name" on the Hub.

    Raises VLSegError for embedded weights that are missing, a folder that is no checkpoint, and any other name (with
    the nearest known one). No network, no torch.
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
        _check_folder(path)
        return Source(name, "folder", str(path))
    if path.exists():
        raise VLSegError(f"--model {name}: is a file; name the folder of a checkpoint")
    if _HUB_ID.fullmatch(name):
        return Source(name, "hub", name)
    if "/" in name or name.startswith((".", "~")):
        raise VLSegError(f"--model {name}: no such folder")
    raise VLSegError(f"--model {name}: unknown model{_nearest(name)}")


def load_system(model: str | Path | None = None, device: str | None = None, dtype: str | None = None) -> System:
    """The system of that name, ready to run. Raises VLSegError as `resolve`, and for what cannot be had or loaded."""
    source = resolve(model)
    folder = _download(source.location) if source.kind == "hub" else source.location
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from vlseg.systems.native import NativeSystem

        return NativeSystem.from_pretrained(folder, device, dtype, source.name)


def _check_folder(path: Path) -> None:
    if (path / "config.json").exists():
        return
    for inner in ("final", "best"):
        if (path / inner / "config.json").exists():
            raise VLSegError(f"--model {path}: is the folder of a run; name its checkpoint: {path / inner}")
    raise VLSegError(f"--model {path}: no config.json there; name the folder of a checkpoint")


def _nearest(name: str) -> str:
    names = [known.name for known in KNOWN]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}, the folder of a checkpoint, or org/name on the Hub"


def _download(repository: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        folder = snapshot_download(repository, allow_patterns=wanted)
    except RepositoryNotFoundError as error:
        raise VLSegError(
            f"--model {repository}: no folder of that name, and no such model on the Hub (a private one needs HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise VLSegError(f"--model {repository}: neither a folder nor a valid name on the Hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise VLSegError(
            f"--model {repository}: no folder of that name, and the Hub cannot be reached ({type(error).__name__}); "
            "fetch it once with a network, or name a local folder"
        ) from error
    _check_folder(Path(folder))
    return folder
