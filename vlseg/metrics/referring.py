"""Scores of referring segmentation over cases. Each is a ratio of two sums with one term a case; the rules, with their
sources, are in docs/evaluation.md.

    mIoU, P@τ, boundary-IoU, buffered-IoU, T-acc   mean over the cases with a target; P@τ: IoU > τ, strictly
    gIoU                                           mean over all cases, empty ones by ReLA's table
    cIoU                                           sum of I over sum of U, all cases, by ReLA's table
    N-acc                                          share of the cases without a target that were answered "absent"
    NTA-rate, NTA-mass, wrong-instance             over the cases with a target and a distractor
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlseg.metrics.case import Case

Term = tuple[float, float]  # of numerator and denominator
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def _targets(value: Callable[[Case], float]) -> Callable[[Case], Term | None]:
    return lambda case: None if case.absent else (float(value(case)), 1.0)


def _rivals(value: Callable[[Case], float]) -> Callable[[Case], Term | None]:
    return lambda case: None if case.activation is None else (float(value(case)), 1.0)


def _precision(threshold: float) -> Callable[[Case], Term | None]:
    return _targets(lambda case: case.iou > threshold)


# What a case adds to a score; None where it does not count for it.
SCORES: dict[str, Callable[[Case], Term | None]] = {
    "mIoU": _targets(lambda case: case.iou),
    "cIoU": lambda case: (float(case.intersection), float(case.union)),
    **{f"P@{threshold}": _precision(threshold) for threshold in THRESHOLDS},
    "gIoU": lambda case: (case.iou, 1.0),
    "N-acc": lambda case: (float(case.status == "absent"), 1.0) if case.absent else None,
    "T-acc": _targets(lambda case: case.found),
    "boundary-IoU": lambda case: None if case.boundary is None else (case.ratio(case.boundary), 1.0),
    "buffered-IoU": lambda case: None if case.buffered is None else (case.ratio(case.buffered), 1.0),
    "buffered-IoU-dilated": lambda case: None if case.dilated is None else (case.ratio(case.dilated), 1.0),
    "NTA-rate": _rivals(lambda case: case.activation.active),  # type: ignore[union-attr]
    "NTA-mass": _rivals(lambda case: case.activation.stray),  # type: ignore[union-attr]
    "wrong-instance": _rivals(lambda case: case.activation.wrong),  # type: ignore[union-attr]
}


def value(name: str, cases: Sequence[Case]) -> float | None:
    """One score over cases; None where no case counts for it, or the sum below is 0. No target, no cIoU."""
    if name == "cIoU" and all(case.absent for case in cases):
        return None
    terms = [term for case in cases if (term := SCORES[name](case)) is not None]
    below = sum(term[1] for term in terms)
    return sum(term[0] for term in terms) / below if below else None


def summary(cases: Sequence[Case]) -> dict[str, float]:
    """All scores over cases, and how many "cases"; a score that no case counts for gives no entry."""
    scores: dict[str, float] = {"cases": len(cases)}
    for name in SCORES:
        score = value(name, cases)
        if score is not None:
            scores[name] = score
    return scores


def by_kind(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """`summary` for each kind of expression."""
    kinds = sorted({c.kind for c in cases})
    return {kind: summary([c for c in cases if c.kind == kind]) for kind in kinds}
