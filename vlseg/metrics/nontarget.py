"""Non-target activation: how far an answer lies on the objects that its words could be mistaken for.

TALENT (arXiv 2604.00609) names the effect and gives no formula; these definitions are vlseg's own. For a target g, its
distractors D and the probabilities p of an answer (its mask, where that is all there is):

    activation of d   mean of p over d; the case's is that of the most active d
    NTA-rate          share of cases whose activation is above 0.5
    NTA-mass          sum of p over ∪D without g, over the sum of p in the image; 0 for an empty answer; mean of cases
    wrong-instance    share of cases in which IoU(answer, some d) > IoU(answer, g)

Only cases that have a target and at least one distractor are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlseg.masks import rle as codec
from vlseg.metrics.overlap import intersections
from vlseg.types import RLE, VLSegError


@dataclass(frozen=True, slots=True)
class Activation:
    """Of one case. peak: activation of the most active distractor, 0..1; stray: NTA-mass; wrong: a distractor wins."""

    peak: float
    stray: float
    wrong: bool

    @property
    def active(self) -> bool:
        """Counts for the NTA-rate."""
        return self.peak > 0.5


def activation(prediction: RLE, target: RLE, distractors: Sequence[RLE]) -> Activation | None:
    """Of a mask; sizes are equal. Distractors without a pixel do not count; None where none is left."""
    sizes = codec.areas(distractors)
    kept = [d for d, size in zip(distractors, sizes, strict=True) if size]
    if not kept:
        return None
    sizes = sizes[sizes > 0]
    predicted, area = codec.area(prediction), codec.area(target)
    on = intersections([prediction] * len(kept), kept)
    both = codec.intersection_area(prediction, target)
    iou = on / (predicted + sizes - on)
    union = predicted + area - both
    outside = 0
    if on.any():
        anywhere = codec.merge(kept)
        covered = codec.merge([prediction, anywhere], intersect=True)
        outside = codec.area(covered) - codec.intersection_area(covered, target)
    return Activation(
        peak=float((on / sizes).max()),
        stray=outside / predicted if predicted else 0.0,
        wrong=bool(iou.max() > (both / union if union else 0.0)),
    )


def soft_activation(
    probability: np.ndarray, target: np.ndarray, distractors: Sequence[np.ndarray], threshold: float = 0.5
) -> Activation | None:
    """Of a probability map ``(H, W)`` float in 0..1; target and distractors ``(H, W)`` bool.

    `wrong` compares IoUs of the mask p > threshold. On a map of zeros and ones it equals `activation`.
    """
    kept = [d for d in distractors if d.any()]
    if any(mask.shape != probability.shape for mask in (target, *kept)):
        raise VLSegError(f"masks and probabilities must have one shape, {probability.shape}")
    if not kept:
        return None
    anywhere = np.any(kept, axis=0) & ~target
    total = float(probability.sum(dtype=np.float64))
    mask = probability > threshold

    def iou(other: np.ndarray) -> float:
        union = np.count_nonzero(mask | other)
        return np.count_nonzero(mask & other) / union if union else 0.0

    return Activation(
        peak=max(float(probability[d].mean(dtype=np.float64)) for d in kept),
        stray=float(probability[anywhere].sum(dtype=np.float64)) / total if total else 0.0,
        wrong=max(map(iou, kept)) > iou(target),
    )
