"""What tells the answers of one set of weights from those of another: finished work is only kept of the same."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any


def model_key(args: Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """What the answers depend on beside images, questions and settings. options: those of tiles.

    Files are told apart by name, size and time of change; of models on the Hub only the name is known.
    """
    from vlseg.systems.refining import check_refine
    from vlseg.systems.registry import EMBEDDED_REFINER, WEIGHTS, resolve

    source = resolve(args.model)
    kind, folder = check_refine(args.refine)
    if kind == "vlseg" and not folder:
        folder = str(WEIGHTS / EMBEDDED_REFINER)
    return {
        "model": source.name,
        "files of the model": _files(source.location),
        "number type": args.dtype,
        "refiner": kind,
        "files of the refiner": _files(folder),
        "tiles": options,
    }


def _files(folder: str) -> list[list[Any]]:
    files = (
        sorted(file for file in Path(folder).iterdir() if file.is_file()) if folder and Path(folder).is_dir() else []
    )
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
