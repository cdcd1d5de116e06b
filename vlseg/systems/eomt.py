"""EoMT (arXiv 2503.19108) by transformers: a plain ViT whose last blocks see mask queries; DINOv2 and DINOv3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlseg.systems.registry import model_type
from vlseg.systems.universal import Kind, Task, Universal, open_universal

KIND = Kind(
    model="EomtForUniversalSegmentation",
    processor="EomtImageProcessor",
    soft=("panoptic",),
    overlap=("panoptic",),
)


def open_system(
    places: Sequence[str | None],
    device: str | None = None,
    dtype: str | None = None,
    name: str | None = None,
    task: Task | None = None,
) -> Universal:
    """The factory of the preset; see `open_universal`."""
    v3 = Path(str(places[0])).is_dir() and model_type(str(places[0])) == "eomt_dinov3"
    kind = replace(KIND, model="EomtDinov3ForUniversalSegmentation") if v3 else KIND
    return open_universal(kind, places, device, dtype, name, task)
