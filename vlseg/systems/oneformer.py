"""OneFormer (arXiv 2211.06220) by transformers: one checkpoint for all three tasks, told in words which."""

from __future__ import annotations

from collections.abc import Sequence

from vlseg.systems.universal import Kind, Task, Universal, open_universal

# Fusing stuff in the library reuses numbers of other segments (5.23); the parts of a class are united by the answer.
KIND = Kind(
    model="OneFormerForUniversalSegmentation",
    processor="OneFormerProcessor",
    soft=("panoptic", "instance"),
    overlap=("panoptic", "instance"),
    panoptic=(("label_ids_to_fuse", set()),),
    told=True,
)


def open_system(
    places: Sequence[str | None],
    device: str | None = None,
    dtype: str | None = None,
    name: str | None = None,
    task: Task | None = None,
) -> Universal:
    """The factory of the preset; see `open_universal`."""
    return open_universal(KIND, places, device, dtype, name, task)
