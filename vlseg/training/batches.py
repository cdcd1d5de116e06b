"""Batches for training: scenes to arrays, and a data set of whole batches, so that step n always sees batch n."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vlseg.models.packing import Packed, pack_queries
from vlseg.models.processing import VLSegProcessor
from vlseg.training.config import DataSection, Stage
from vlseg.types import VLSegError
from vlseg.worlds.sprites import Scene, SpriteWorld


@dataclass(slots=True)
class Batch:
    """B images with K queries over M regions (all objects of the image).

    pixels: (B, H, W, 3) uint8, as the model sees them. regions: (B, M, H, W) uint8 masks, at the size of the pixels or
    at that of the scene they were resized from. nouns: (B, M) int64, -1 where unknown or no region.
    targets, distractors: (B, K, M) bool. packed: the queries. ignored: (B, K, H, W) bool, pixels that no mask loss of
    the query looks at, or None where no query has any. source: name of the data set; problems: what was left out of it.
    """

    pixels: torch.Tensor
    regions: torch.Tensor
    nouns: torch.Tensor
    targets: torch.Tensor
    distractors: torch.Tensor
    packed: Packed
    ignored: torch.Tensor | None = None
    source: str = ""
    problems: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "packed"}
        packed = Packed(*(t.to(device) for t in self.packed.tensors().values()))
        moved = {name: v.to(device) for name, v in held.items() if isinstance(v, torch.Tensor)}
        return Batch(packed=packed, **{**held, **moved})


def collate_scenes(scenes: Sequence[Scene], processor: VLSegProcessor, resize: bool = False) -> Batch:
    """Scenes of one size to a batch. resize: to the size at which the model sees such pictures when it answers."""
    most = max(len(s.objects) for s in scenes)
    k_max = max(len(s.queries) for s in scenes)
    height, width = scenes[0].ids.shape
    regions = np.zeros((len(scenes), most, height, width), np.uint8)
    nouns = np.full((len(scenes), most), -1, np.int64)
    targets = np.zeros((len(scenes), k_max, most), bool)
    distractors = np.zeros_like(targets)
    for b, scene in enumerate(scenes):
        for m, thing in enumerate(scene.objects):
            regions[b, m] = scene.ids == m + 1
            nouns[b, m] = thing.glyph
        for k, query in enumerate(scene.queries):
            targets[b, k, list(query.targets)] = True
            distractors[b, k, list(query.distractors)] = True
    packed = pack_queries([[processor.query_ids(q.text) for q in s.queries] for s in scenes], processor.pad_id, k_max)
    pixels = np.stack([processor.resized(Image.fromarray(s.image)) if resize else s.image for s in scenes])
    arrays = {"pixels": pixels, "regions": regions, "nouns": nouns, "targets": targets, "distractors": distractors}
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Batch(packed=packed, **tensors)


def share(images: int, parts: int, part: int) -> range:
    """Which of a step's images part number `part` of `parts` (ranks times accumulated batches) takes."""
    return range(images * part // parts, images * (part + 1) // parts)


class SceneBatches(Dataset):
    """Batch n of a run is part `n % parts` of step `n // parts`. What a step sees does not depend on the parts.

    The step's stage gives size and number of images; image i of step s is scene `1024 s + i` of the world.
    """

    def __init__(
        self, data: DataSection, stages: Sequence[Stage], processor: VLSegProcessor, steps: int, parts: int = 1
    ):
        self.data, self.stages, self.processor = data, list(stages), processor
        self.steps, self.parts = steps, parts
        if (least := min(s.images for s in stages)) < parts:
            raise VLSegError(f"stages: {least} images a step cannot be dealt to {parts} ranks and accumulated batches")
        self.world: SpriteWorld | None = None
        self.paths: Callable[[Batch], Batch] | None = None  # puts paths behind the queries, where they are trained

    def __len__(self) -> int:
        return self.steps * self.parts

    def stage(self, step: int) -> Stage:
        """The stage that step number `step` belongs to."""
        ends = [s.until for s in self.stages]
        return self.stages[min(bisect_right(ends, step), len(self.stages) - 1)]

    def __getitem__(self, index: int) -> Batch:
        if self.world is None:  # built in the worker process, once
            self.world = SpriteWorld(styles="train")
        step, part = divmod(index, self.parts)
        stage = self.stage(step)
        height, width = stage.sizes[step % len(stage.sizes)]
        scenes = [
            self.world.scene(self.data.seed, 1024 * step + i, (height, width), self.data.queries)
            for i in share(stage.images, self.parts, part)
        ]
        batch = collate_scenes(scenes, self.processor, stage.resize)
        return batch if self.paths is None else self.paths(batch)
