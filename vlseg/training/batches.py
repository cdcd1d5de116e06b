"""Batches for training: scenes to arrays, and a data set of whole batches, so that step n always sees batch n."""

from __future__ import annotations

import signal
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from vlseg.models.packing import Packed, pack_queries
from vlseg.models.processing import VLSegProcessor
from vlseg.training.config import DataSection, Stage
from vlseg.worlds.sprites import Scene, SpriteWorld


@dataclass(slots=True)
class Batch:
    """B images with K queries over M regions (all objects of the image).

    pixels: (B, H, W, 3) uint8. regions: (B, M, H, W) uint8 masks. nouns: (B, M) int64, -1 where unknown or no region.
    targets, distractors: (B, K, M) bool. packed: the queries.
    """

    pixels: torch.Tensor
    regions: torch.Tensor
    nouns: torch.Tensor
    targets: torch.Tensor
    distractors: torch.Tensor
    packed: Packed

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "packed"}
        packed = Packed(*(t.to(device) for t in self.packed.tensors().values()))
        return Batch(packed=packed, **moved)


def collate_scenes(scenes: Sequence[Scene], processor: VLSegProcessor) -> Batch:
    """Scenes of one size to a batch."""
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
    pixels = np.stack([s.image for s in scenes])
    arrays = {"pixels": pixels, "regions": regions, "nouns": nouns, "targets": targets, "distractors": distractors}
    return Batch(packed=packed, **{name: torch.from_numpy(a) for name, a in arrays.items()})


class SceneBatches(Dataset):
    """Batch n of a run: its stage gives size and number of images; its scenes have numbers that no other batch has."""

    def __init__(
        self, data: DataSection, stages: Sequence[Stage], processor: VLSegProcessor, length: int, per_step: int = 1
    ):
        self.data, self.stages, self.processor, self.length = data, list(stages), processor, length
        self.per_step = per_step
        self.world: SpriteWorld | None = None

    def __len__(self) -> int:
        return self.length

    def stage(self, batch: int) -> Stage:
        """The stage that batch number `batch` belongs to."""
        ends = [s.until for s in self.stages]
        return self.stages[min(bisect_right(ends, batch // self.per_step), len(self.stages) - 1)]

    def __getitem__(self, index: int) -> Batch:
        if self.world is None:  # built in the worker process, once
            if get_worker_info() is not None:  # signals are the main process's business; it stops its workers itself
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self.world = SpriteWorld(styles="train")
        stage = self.stage(index)
        size = stage.sizes[index % len(stage.sizes)]
        first = index * 1024  # room for 1024 images a batch
        scenes = [
            self.world.scene(self.data.seed, first + i, (size[0], size[1]), self.data.queries)
            for i in range(stage.images)
        ]
        return collate_scenes(scenes, self.processor)
