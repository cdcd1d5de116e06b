"""Mask classifiers of transformers: N masks with a class each (EoMT, Mask2Former, OneFormer), read by the library's own
post-processing for panoptic, instance or semantic checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from vlseg.systems.class_names import ClassNames, TextMatch
from vlseg.systems.clip_text import clip_text
from vlseg.systems.closed_vocabulary import ClosedVocabulary, Findings, Region, from_class_map
from vlseg.systems.foreign import load_pretrained, load_processor
from vlseg.systems.quiet import quiet_loading

Task = Literal["panoptic", "instance", "semantic"]
KEEPS = 0.8  # share of a mask's own pixels that it must win from the others, as the libraries' default


@dataclass(frozen=True, slots=True)
class Kind:
    """How one family is loaded and read. model, processor: names of classes of transformers.

    instance: options of its `post_process_instance_segmentation`. soft: tasks that follow a mask threshold.
    overlap: tasks that take `overlap_mask_area_threshold`. told: whether the model is told its task in words.
    """

    model: str
    processor: str
    soft: tuple[Task, ...]
    overlap: tuple[Task, ...]
    instance: tuple[tuple[str, Any], ...] = ()
    panoptic: tuple[tuple[str, Any], ...] = ()
    told: bool = False


class Universal(ClosedVocabulary):
    """A checkpoint of one of these families as a `System`.

    task: how it is read. keeps: see `KEEPS`. Masks are those of the library's own post-processing. Images are batched
    where their sizes agree, for the libraries do not take the padding of a mixed batch out of the masks.
    """

    def __init__(self, model: Any, processor: Any, kind: Kind, task: Task, name: str, near: TextMatch | None = None):
        labels = model.config.id2label
        how = f"{type(model).__name__}, {task} post-processing of transformers"
        super().__init__(name, ClassNames([labels[i] for i in range(len(labels))], near), how)
        self.model, self.processor, self.kind, self.task = model.eval(), processor, kind, task
        self.soft, self.keeps = task in kind.soft, KEEPS

    def look(self, images: Sequence[Image.Image]) -> list[Any]:
        """See `ClosedVocabulary.look`: class logits (Q, C + 1), mask logits (Q, h, w) and, of an image in tiles, where
        they lie; float32, a row a tile."""
        tasks = {"task_inputs": [self.task] * len(images)} if self.kind.told else {}
        inputs = self.processor(images=list(images), return_tensors="pt", **tasks)
        offsets = inputs.pop("patch_offsets", None) or []
        taken = {
            key: value.to(self.model.device, self.model.dtype)
            if value.is_floating_point()
            else value.to(self.model.device)
            for key, value in inputs.items()
            if key in ("pixel_values", "pixel_mask", "task_inputs")
        }
        output = self.model(**taken)
        classes, masks = output.class_queries_logits.float(), output.masks_queries_logits.float()
        rows = [[i] for i in range(len(images))]
        if offsets:
            rows = [[n for n, offset in enumerate(offsets) if int(offset[0]) == i] for i in range(len(images))]
        places = [[(0, int(offsets[n][1]), int(offsets[n][2])) for n in row] if offsets else [] for row in rows]
        return [(classes[row].clone(), masks[row].clone(), place) for row, place in zip(rows, places, strict=True)]

    def find(self, seen: Any, size: tuple[int, int], wanted: set[int], presence: float, mask: float) -> Findings:
        """See `ClosedVocabulary.find`."""
        classes, masks, places = seen
        output = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks, patch_offsets=places)
        post: Callable[..., Any] = getattr(self.processor, f"post_process_{self.task}_segmentation")
        if self.task == "semantic":
            (found,) = post(output, target_sizes=[size], return_segmentation_scores=True)
            scores = found["segmentation_scores"]
            share = scores.amax(0) / scores.sum(0).clamp(min=1e-12)
            return from_class_map(found["segmentation"], share, wanted, len(self.names.labels))
        options = dict(self.kind.instance if self.task == "instance" else self.kind.panoptic)
        if self.soft:
            options["mask_threshold"] = mask
        if self.task in self.kind.overlap:
            options["overlap_mask_area_threshold"] = self.keeps
        with quiet_loading():
            (found,) = post(output, target_sizes=[size], threshold=presence, **options)
        best = classes[0].softmax(-1)[:, :-1].amax(0).cpu().numpy()
        regions = [
            Region(int(segment["label_id"]), float(segment["score"]), own)
            for segment, own in zip(found["segments_info"], _masks(found), strict=True)
            if segment["label_id"] in wanted
        ]
        for region in regions:  # of an instance the score counts its mask's quality too
            best[region.label] = max(best[region.label], region.score)
        return Findings(best, regions)


def _masks(found: dict[str, Any]) -> list[np.ndarray]:
    """(H, W) bool of every segment that the library lists, in its order."""
    listed, segments = found["segmentation"], found["segments_info"]
    if listed is None or not segments:
        return []
    if listed.ndim == 3:  # one map a segment
        return [own.bool().cpu().numpy() for own in listed]
    numbers = listed.cpu().numpy()
    return [numbers == segment["id"] for segment in segments]


def task_of(folder: str | Path, config: Any) -> Task:
    """What a checkpoint was trained for: nothing but its name says so; panoptic where the name says nothing."""
    names = [Path(folder).name, str(getattr(config, "_name_or_path", "") or "").rpartition("/")[2]]
    names += [part for part in Path(folder).parts if part.startswith("models--")]
    for name in names:
        for task in get_args(Task):
            if re.search(rf"(^|[^a-z]){task}([^a-z]|$)", name.lower()):
                return task
    return "panoptic"


def open_universal(
    kind: Kind,
    places: Sequence[str | None],
    device: str | None = None,
    dtype: str | None = None,
    name: str | None = None,
    task: Task | None = None,
) -> Universal:
    """A checkpoint as a `Universal`. places: its folder, and that of a CLIP for the class names, or None.

    Raises VLSegError, in one line, for what is no whole checkpoint of the family.
    """
    import transformers

    folder, clip = str(places[0]), places[1] if len(places) > 1 else None
    model = load_pretrained(getattr(transformers, kind.model), folder, device, dtype)
    processor = load_processor(getattr(transformers, kind.processor), folder)
    labels = [model.config.id2label[i] for i in range(len(model.config.id2label))]
    near = clip_text(clip, labels, model.device)
    return Universal(model, processor, kind, task or task_of(folder, model.config), name or folder, near)
