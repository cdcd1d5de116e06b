"""`--refine`: sharper masks behind any system. One line of `refined` a refiner; no torch before it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.systems.base import System

KNOWN = "none, vlseg, vlseg=FOLDER, sam2, sam2=FOLDER"
CHECKPOINTS = {"vlseg": "refiner of vlseg", "sam2": "SAM 2 checkpoint"}


def check_refine(refine: str) -> tuple[str, str]:
    """(refiner, folder) that `--refine` means; folder "": none is named. Raises VLSegError, in one line."""
    kind, equals, place = refine.partition("=")
    if kind not in ("none", *CHECKPOINTS) or (equals and (kind == "none" or not place)):
        raise VLSegError(f"--refine {refine}: unknown; known: {KNOWN}")
    folder = Path(place).expanduser()
    if place and not (folder / "config.json").is_file():
        raise VLSegError(f"--refine {refine}: no config.json in {place}; name the folder of a {CHECKPOINTS[kind]}")
    return kind, place and str(folder)


def refined(system: System, refine: str, device: str | None = None, dtype: str | None = None) -> System:
    """The system with its refiner behind it. device, dtype: of the refiner, as for the system.

    Raises VLSegError for an unknown refiner, and where its checkpoint cannot be had or loaded.
    """
    kind, folder = check_refine(refine)
    if kind == "sam2":
        from vlseg.systems.refine_sam2 import refine_with_sam2

        return refine_with_sam2(system, folder, device, dtype)
    if kind == "vlseg":
        from vlseg.systems.refine_vlseg import refine_with_vlseg

        return refine_with_vlseg(system, folder, device)
    return system
