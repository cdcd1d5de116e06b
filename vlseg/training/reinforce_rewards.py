"""What a written path is worth: IoU and boundary IoU with the truth, less a cost of its length. No torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vlseg.masks import rle as runs
from vlseg.masks.path_codec import PathCodec
from vlseg.metrics.boundary import boundary_overlap
from vlseg.training.workers import leave_signals
from vlseg.types import RLE

Asked = tuple[RLE, Sequence[Sequence[int]]]  # a truth, and the paths that were written for it


@dataclass(frozen=True, slots=True)
class Worth:
    """reward = iou + boundary weight * boundary - cost * tokens. iou, boundary: in 0..1; tokens: the end included."""

    reward: float
    iou: float
    boundary: float
    tokens: int


def worths(codec: PathCodec, boundary: float, cost: float, asked: Asked) -> list[Worth]:
    """What each path is worth against the truth. boundary: weight of boundary IoU, 0 leaves it uncounted; cost: of a
    token. Raises VLSegError for tokens that are no whole path."""
    truth, paths = asked
    height, width = truth["size"]
    written = [codec.decode_rle(path, (height, width)) for path in paths]
    overlaps = runs.iou(written, [truth])[:, 0].tolist()
    edges = [0.0] * len(paths)
    if boundary:
        pixels = runs.decode(truth)
        pairs = (boundary_overlap(runs.decode(mask), pixels) for mask in written)
        edges = [both / either if either else 0.0 for both, either in pairs]
    return [
        Worth(iou + boundary * edge - cost * len(path), iou, edge, len(path))
        for iou, edge, path in zip(overlaps, edges, paths, strict=True)
    ]


class Rewards:
    """`worths` for many queries at once. workers: processes that share them; 0: this one does it all."""

    def __init__(self, codec: PathCodec, boundary: float, cost: float, workers: int = 0):
        self.rule = partial(worths, codec, boundary, cost)
        self.workers = workers
        # A pool's processes end by themselves when this one is killed; those of an executor would wait for ever.
        self.pool = multiprocessing.get_context("spawn").Pool(workers, leave_signals) if workers else None

    def __call__(self, asked: Sequence[Asked]) -> list[list[Worth]]:
        """The worth of every path of every query, in order."""
        if self.pool is None:
            return [self.rule(one) for one in asked]
        return self.pool.map(self.rule, asked, chunksize=-(-len(asked) // self.workers) or 1)

    def close(self) -> None:
        """End the processes."""
        if self.pool is not None:
            self.pool.close()  # they end when they have nothing left to do, and not when they are asked to
            self.pool.join()
            self.pool = None
