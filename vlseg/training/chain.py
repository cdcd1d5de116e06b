"""Runs that begin with another run: adapters first, then quantisation-aware training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlseg.config import from_dict, to_dict
from vlseg.training.config import TrainConfig


def first_run(config: TrainConfig) -> TrainConfig | None:
    """The run that `config.first` describes, in the folder `first` of `config.out`; None where there is none.

    Raises VLSegError for settings that do not exist.
    """
    if not config.first:
        return None
    tree = overlaid(to_dict(config), {**config.first, "out": str(Path(config.out) / "first")})
    tree["first"] = config.first.get("first", {})
    return from_dict(TrainConfig, tree, "first")


def overlaid(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with changes; mappings are merged, all else is replaced."""
    out = dict(tree)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = overlaid(out[key], value) if both else value
    return out
