"""95 % intervals by bootstrap over images, and paired differences: whole images are drawn with replacement.

Percentile intervals (Efron & Tibshirani 1993). Sums run in a fixed order and on one thread, so that equal cases give
equal bytes on any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vlseg.metrics.calibration import BINS, RiskCoverage, score_bins, trust
from vlseg.metrics.case import Case
from vlseg.metrics.referring import SCORES

RESAMPLES = 2000
DIGITS = 6
NAMES = (*SCORES, "ECE", "AURC", "E-AURC")

_CHUNK = 50_000  # numbers drawn at a time: they stay in the cache, and the draws do not depend on it


def interval(
    terms: Sequence[tuple[str, float, float]], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The ratio of two sums, given as (image, numerator, denominator) terms, and its 95 % interval."""
    images = {name: i for i, name in enumerate(dict.fromkeys(t[0] for t in terms))}
    sums = np.zeros((len(images), 1, 2))
    for name, above, below in terms:
        sums[images[name], 0] += above, below
    drawn = np.concatenate([_ratios(_totals(sums, c)) for c in _draws(len(images), len(images), resamples, seed)])
    low, high = np.percentile(drawn[:, 0], [2.5, 97.5])
    return float(_ratios(sums.sum(0))[0]), (float(low), float(high))


def with_intervals(
    cases: Sequence[Case], resamples: int = RESAMPLES, seed: int = 0, ranking: bool = True
) -> dict[str, dict[str, Any]]:
    """`{"mIoU": {"value": …, "ci95": [low, high], "cases": n}, …}` for every score that some case counts for.

    ECE, AURC and E-AURC are over the cases whose answer has a score; ranking=False leaves the last two, which take most
    of the time, out.
    """
    scores = {}
    for name, (value, drawn, number) in _Resampled(cases, ranking).run(resamples, seed).items():
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        ci95 = [round(float(low), DIGITS), round(float(high), DIGITS)]
        scores[name] = {"value": round(value, DIGITS), "ci95": ci95, "cases": number}
    return scores


def paired_differences(
    a: Sequence[Case], b: Sequence[Case], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """`{"mIoU": {"a": …, "b": …, "difference": b - a, "ci95": [low, high]}, …}`: both see the same drawn images.

    a, b: the same cases in the same order. Scores that one side lacks are left out.
    """
    of_a, of_b = (_Resampled(cases, True).run(resamples, seed) for cases in (a, b))
    scores = {}
    for name in of_a:
        if name in of_b:
            (value_a, drawn_a, _), (value_b, drawn_b, _) = of_a[name], of_b[name]
            low, high = np.nanpercentile(drawn_b - drawn_a, [2.5, 97.5])
            scores[name] = {
                "a": round(value_a, DIGITS),
                "b": round(value_b, DIGITS),
                "difference": round(value_b - value_a, DIGITS),
                "ci95": [round(float(low), DIGITS), round(float(high), DIGITS)],
            }
    return scores


class _Resampled:
    """Cases summed up by image, ready to be drawn."""

    def __init__(self, cases: Sequence[Case], ranking: bool):
        index = {name: i for i, name in enumerate(dict.fromkeys(case.image for case in cases))}
        of_case = np.array([index[case.image] for case in cases], int)
        self.numbers = dict.fromkeys(SCORES, 0)
        # Sums of numerators and denominators of every score by image, then of (score - present, 1) by bin of the score.
        self.sums = np.zeros((len(index), len(SCORES) + BINS, 2))
        for m, (name, term_of) in enumerate(SCORES.items()):
            for i, case in zip(of_case, cases, strict=True):
                term = term_of(case)
                if term is not None:
                    self.sums[i, m] += term
                    self.numbers[name] += 1
        self.scored = np.array([i for i, case in enumerate(cases) if case.score is not None], int)
        scored = [cases[i] for i in self.scored]
        self.image = of_case[self.scored]
        self.ranking: dict[str, RiskCoverage] = {}
        if scored:
            score = np.array([case.score for case in scored], np.float64)
            for i, b, p, case in zip(self.image, score_bins(score), score, scored, strict=True):
                self.sums[i, len(SCORES) + b] += p - (not case.absent), 1.0
            if ranking:
                confidence, loss = trust(scored)
                self.ranking = {"score": RiskCoverage(confidence, loss), "best": RiskCoverage(-loss, loss)}

    def run(self, resamples: int, seed: int) -> dict[str, tuple[float, np.ndarray, int]]:
        """Of every score that some case counts for: its value, its (resamples,) drawn values, how many cases count."""
        if not len(self.sums):
            return {}
        ones = np.ones((1, len(self.sums)))
        whole = {name: float(v[0]) for name, v in self.scores(ones).items() if np.isfinite(v[0])}
        if not self.numbers["mIoU"]:
            whole.pop("cIoU", None)  # as `referring.value`
        widest = max(len(self.sums), len(self.scored) if self.ranking else 0)
        rows = [self.scores(counts) for counts in _draws(len(self.sums), widest, resamples, seed)]
        numbers = {**self.numbers, **dict.fromkeys(("ECE", "AURC", "E-AURC"), len(self.scored))}
        return {
            name: (value, np.concatenate([row[name] for row in rows]), numbers[name]) for name, value in whole.items()
        }

    def scores(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """counts: (R, images), how often each is drawn. Every score of each resample, (R,)."""
        totals = _totals(self.sums, counts)
        scores = dict(zip(SCORES, _ratios(totals[:, : len(SCORES)]).T, strict=True))
        if len(self.scored):
            bins = totals[:, len(SCORES) :]
            with np.errstate(invalid="ignore"):
                scores["ECE"] = np.abs(bins[..., 0]).sum(1) / bins[..., 1].sum(1)
        if self.ranking:
            weights = counts[:, self.image]
            area, best = self.ranking["score"].area(weights), self.ranking["best"].area(weights)
            scores |= {"AURC": area, "E-AURC": area - best}
        return scores


def _totals(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sums: (images, M, 2); counts: (R, images). The sums of each resample, (R, M, 2)."""
    # einsum without optimisation stays away from BLAS, whose sums depend on the number of threads
    flat = np.einsum("ri,im->rm", counts.astype(np.float64), sums.reshape(len(sums), -1), optimize=False)
    return flat.reshape(len(counts), -1, 2)


def _ratios(totals: np.ndarray) -> np.ndarray:
    """Numerators over denominators, (..., 2) to (...); NaN where nothing counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], np.nan)


def _draws(images: int, widest: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, (R, images), in chunks that make up `resamples` rows.

    widest: numbers that are handled per row; it sets the size of a chunk, on which the draws do not depend.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // max(widest, 1))
    for start in range(0, resamples, rows):
        many = min(rows, resamples - start)
        drawn = rng.integers(0, images, (many, images)) + images * np.arange(many)[:, None]
        yield np.bincount(drawn.ravel(), minlength=many * images).reshape(many, images)
