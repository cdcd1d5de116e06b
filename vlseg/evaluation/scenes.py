"""Score a native model on scenes of a world, many at a time: the validation of a training run and the model card."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.metrics.referring import Case, case_of
from vlseg.models.modeling import VLSegModel
from vlseg.models.packing import pack_queries
from vlseg.models.processing import VLSegProcessor, presence_scores


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
        masks = processor.masks(output, b, scene.ids.shape, len(scene.queries))
        for k, query in enumerate(scene.queries):
            found = bool(scores[b, k] >= threshold) and bool(masks[k].any())
            prediction = masks[k] if found else np.zeros_like(masks[k])
            truth = np.isin(scene.ids, np.array(query.targets, int) + 1) if query.targets else np.zeros_like(masks[k])
            boxes = [scene.objects[t].box for t in query.targets]
            extent = min((max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes), default=0.0)
            cases.append(
                case_of(
                    prediction,
                    truth,
                    [scene.ids == d + 1 for d in query.distractors],
                    image=str(first + b),
                    kind=query.kind,
                    absent=not query.targets,
                    found=found,
                    score=float(scores[b, k]),
                    extent=float(extent),
                    text=query.text,
                )
            )
    return cases
