"""Mask2Former (arXiv 2112.01527) by transformers: classes of COCO, ADE20K, Cityscapes, ... with masks."""

from __future__ import annotations

from collections.abc import Sequence

from vlseg.systems.universal import Kind, Task, Universal, open_universal

# Fusing stuff in the library reuses numbers of other segments (5.23); the parts of a class are united by the answer.
KIND = Kind(
    model="Mask2FormerForUniversalSegmentation",
    processor="Mask2FormerImageProcessor",
    soft=("panoptic",),
    overlap=("panoptic",),
    instance=(("return_binary_maps", True),),
    panoptic=(("label_ids_to_fuse", set()),),
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
