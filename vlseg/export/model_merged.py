"""A checkpoint of plain weights: what anyone can load, with no adapter and no run around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vlseg.export.model_source import stored_dtype
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.types import VLSegError

DTYPES = ("float32", "float16", "bfloat16")


def pick(dtype: str | None, folder: Path) -> torch.dtype:
    """The number type of that name; None: that of the checkpoint. Raises VLSegError."""
    if dtype is None:
        return stored_dtype(folder)
    if dtype not in DTYPES:
        raise VLSegError(f"dtype {dtype}: unknown; there are {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def export_merged(folder: Path, out: Path, name: str, dtype: str | None = None) -> dict[str, Any]:
    """Write a plain checkpoint again. name: for its card; dtype: of the weights, default as they are stored.

    Returns facts for `export.json`. Raises VLSegError for an unknown dtype.
    """
    kind = pick(dtype, folder)
    model = VLSegModel.from_pretrained(folder, dtype=kind)
    model.save_pretrained(out, card_name=name)
    VLSegProcessor.from_pretrained(folder).save_pretrained(out)
    return {"dtype": str(kind).removeprefix("torch.")}
