"""Pictures to start with: those of examples/, with queries for the ones that examples.json names."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def folder() -> Path | None:
    """Where the examples lie: inside an installed package, or beside the demo in a checkout; None for neither."""
    return next((place for place in (HERE / "examples", HERE.parent / "examples") if place.is_dir()), None)


def examples() -> list[tuple[Path, str]]:
    """Pictures with their queries, one a line; without queries where examples.json has none."""
    place = folder()
    if place is None:
        return []
    queries = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    return [(file, "\n".join(queries.get(file.name, []))) for file in files]
