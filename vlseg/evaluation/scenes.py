"""Score a native model on scenes of a world, many at a time: the validation of a training run and the model card."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.metrics.case import Case, score_case
from vlseg.models.modeling import VLSegModel
from vlseg.models.packing import pack_queries
from vlseg.models.processing import VLSegProcessor, presence_scores
from vlseg.types import Query, Status


@torch.no_grad()
def score_scenes(
    model: VLSegModel, processor: VLSegProcessor, scenes: Iterable[Any], batch: int = 8, threshold: float | None = None
) -> list[Case]:
    """Cases of all queries of the scenes (objects with `image`, `ids`, `objects`, `queries` as in `worlds.sprites`).

    Free-running: the state that predicts [SEG] or [REJ] decides; a mask is scored at the scene's own size.
    """
    was = model.training
    threshold = model.config.presence["threshold"] if threshold is None else threshold
    model.eval()
    cases: list[Case] = []
    pending: list[Any] = []
    first = 0
    for scene in itertools.chain(scenes, [None]):
        full = len(pending) == batch or scene is None or (pending and pending[0].ids.shape != scene.ids.shape)
        if pending and full:
            cases += _score_batch(model, processor, pending, threshold, first)
            first += len(pending)
            pending = []
        pending.append(scene)
    model.train(was)
    return cases


def _score_batch(
    model: VLSegModel, processor: VLSegProcessor, scenes: Sequence[Any], threshold: float, first: int
) -> list[Case]:
    packed = pack_queries([[processor.query_ids(q.text) for q in s.queries] for s in scenes], processor.pad_id)
    pixels = torch.cat([processor.pixel_values(Image.fromarray(s.image)) for s in scenes])
    device = model.device
    output = model(pixel_values=pixels.to(device), **{k: v.to(device) for k, v in packed.tensors().items()})
    scores = presence_scores(output.evidence, model.config.presence).cpu()
    cases = []
    for b, scene in enumerate(scenes):
        size = scene.ids.shape
        masks = processor.masks(output, b, size, len(scene.queries))
        for k, query in enumerate(labelled(scene)):
            score = float(scores[b, k])
            status: Status = "absent" if score < threshold else "failed"  # as `systems.base.decide`
            if score >= threshold and masks[k].any():
                status = "found"
            prediction = codec.encode(masks[k]) if status == "found" else None
            name = str(first + b)
            cases.append(score_case(query, size, status, prediction, score, id=f"{name}/{k}", image=name, rules=None))
    return cases


def labelled(scene: Any) -> list[Query]:
    """The queries of a scene with their masks and distractors as RLEs."""
    rles = [codec.encode(scene.ids == number + 1) for number in range(len(scene.objects))]
    return [
        Query(q.text, [rles[t] for t in q.targets], [rles[d] for d in q.distractors], q.kind) for q in scene.queries
    ]
