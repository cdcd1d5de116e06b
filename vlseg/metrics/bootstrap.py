"""95 % intervals by bootstrap over images: every score here is a ratio of two sums over cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.metrics.referring import Case


def ratios(cases: Sequence[Case]) -> dict[str, list[tuple[str, float, float]]]:
    """Each score as (image, numerator, denominator) terms, one a case that counts for it."""
    terms: dict[str, list[tuple[str, float, float]]] = {}

    def add(name: str, case: Case, value: float, weight: float = 1.0) -> None:
        terms.setdefault(name, []).append((case.image, float(value), float(weight)))

    for case in cases:
        if case.absent:
            add("N-acc", case, not case.found)
            continue
        add("mIoU", case, case.iou)
        add("cIoU", case, case.intersection, case.union)
        add("P@0.5", case, case.iou > 0.5)
        add("T-acc", case, case.found)
        if case.has_distractor:
            add("wrong-instance", case, case.wrong)
    return terms


def interval(
    terms: Sequence[tuple[str, float, float]], resamples: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The ratio and its 95 % percentile interval; whole images are drawn with replacement (Efron & Tibshirani 1993)."""
    images = {name: i for i, name in enumerate(dict.fromkeys(t[0] for t in terms))}
    sums = np.zeros((len(images), 2))
    for name, value, weight in terms:
        sums[images[name]] += value, weight
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    totals = sums[drawn].sum(1)
    spread = totals[:, 0] / np.maximum(totals[:, 1], 1e-12)
    low, high = np.percentile(spread, [2.5, 97.5])
    total = sums.sum(0)
    return float(total[0] / max(total[1], 1e-12)), (float(low), float(high))


def with_intervals(cases: Sequence[Case]) -> dict[str, dict[str, object]]:
    """`{"mIoU": {"value": …, "ci95": [low, high], "cases": n}, …}` for every score that has a case."""
    found = {}
    for name, terms in ratios(cases).items():
        value, (low, high) = interval(terms)
        found[name] = {"value": round(value, 4), "ci95": [round(low, 4), round(high, 4)], "cases": len(terms)}
    return found
