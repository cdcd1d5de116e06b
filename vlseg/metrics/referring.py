"""Scores of referring segmentation from per-case records (protocol: DESIGN 5): cIoU, mIoU, P@0.5, rejection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class Case:
    """One (image, expression). I, U: pixels of intersection and union of prediction and truth.

    absent: nothing matches; found: the system's answer; score: its probability of a referent. area: truth's pixels.
    wrong: some distractor overlaps the prediction more than the truth does. extent: longer side of the smallest target.
    """

    image: str
    kind: str
    intersection: int
    union: int
    absent: bool
    found: bool
    score: float
    area: int
    extent: float
    wrong: bool
    has_distractor: bool
    text: str = ""

    @property
    def iou(self) -> float:
        """I / U; an absent case scores 1 if nothing was predicted and 0 otherwise (ReLA's rule)."""
        if self.absent:
            return 0.0 if self.found and self.union else 1.0
        return self.intersection / self.union if self.union else 0.0


def case_of(prediction: np.ndarray, truth: np.ndarray, distractors: Sequence[np.ndarray], **facts: Any) -> Case:
    """Score one prediction. All masks (H, W) bool; facts: the other fields of `Case`."""
    intersection, union = int((prediction & truth).sum()), int((prediction | truth).sum())
    iou = intersection / union if union else 0.0

    def other(mask: np.ndarray) -> float:
        both = int((prediction | mask).sum())
        return int((prediction & mask).sum()) / both if both else 0.0

    wrong = any(other(d) > iou for d in distractors)
    return Case(
        intersection=intersection,
        union=union,
        area=int(truth.sum()),
        wrong=bool(wrong),
        has_distractor=bool(len(distractors)),
        **facts,
    )


def summary(cases: Sequence[Case]) -> dict[str, float]:
    """Scores over cases: mIoU, cIoU and P@0.5 over those with a referent, rejection over the absent ones.

    wrong-instance is over all cases with a referent and a distractor. Missing kinds give no entry.
    """
    there = [c for c in cases if not c.absent]
    gone = [c for c in cases if c.absent]
    scores: dict[str, float] = {"cases": len(cases)}
    if there:
        ious = np.array([c.iou for c in there])
        scores["mIoU"] = float(ious.mean())
        scores["cIoU"] = sum(c.intersection for c in there) / max(1, sum(c.union for c in there))
        scores["P@0.5"] = float((ious > 0.5).mean())
        scores["T-acc"] = float(np.mean([c.found for c in there]))
    rivals = [c for c in there if c.has_distractor]
    if rivals:
        scores["wrong-instance"] = float(np.mean([c.wrong for c in rivals]))
    if gone:
        scores["N-acc"] = float(np.mean([not c.found for c in gone]))
    return scores


def by_kind(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """`summary` for each kind of expression."""
    kinds = sorted({c.kind for c in cases})
    return {kind: summary([c for c in cases if c.kind == kind]) for kind in kinds}
