"""Is the score to be trusted? Expected calibration error, and risk against coverage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.metrics.case import Case

BINS = 15


def score_bins(score: np.ndarray) -> np.ndarray:
    """The bin of each score, (N,) in 0..BINS - 1; bins are of equal width, the last one includes 1."""
    return np.minimum((np.asarray(score, np.float64) * BINS).astype(int), BINS - 1)


def calibration_error(score: np.ndarray, present: np.ndarray) -> float:
    """Expected calibration error with 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599).

    score: (N,) in 0..1; present: (N,) bool, whether the words had a referent. The sum over bins of the distance between
    sum of score and number present, over N.
    """
    gap = np.asarray(score, np.float64) - np.asarray(present, np.float64)
    return float(np.abs(np.bincount(score_bins(score), gap)).sum() / len(gap))


class RiskCoverage:
    """Answers accepted in order of confidence, and what those accepted lose (Geifman & El-Yaniv 2017, 1705.08500).

    confidence, loss: (N,) float. Cases of equal confidence are accepted in random order; all is the expectation, so
    that the order of the cases makes no difference.
    """

    def __init__(self, confidence: np.ndarray, loss: np.ndarray):
        self.order = np.argsort(-np.asarray(confidence, np.float64), kind="stable")
        ranked = np.asarray(confidence, np.float64)[self.order]
        self.loss = np.asarray(loss, np.float64)[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        self.harmonic = np.zeros(1)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Coverage k / N and the mean loss of the k cases accepted, both (N,)."""
        sizes = np.diff(np.append(self.starts, len(self.loss)))
        means = np.add.reduceat(self.loss, self.starts) / sizes
        accepted = np.arange(1, len(self.loss) + 1)
        return accepted / len(self.loss), np.cumsum(np.repeat(means, sizes)) / accepted

    def area(self, weights: np.ndarray | None = None) -> np.ndarray:
        """AURC, the mean risk of the curve, (R,). weights: (R, N) how often a resample holds each case; None: once."""
        weights = np.ones((1, len(self.loss))) if weights is None else weights[:, self.order].astype(np.float64)
        counts = np.add.reduceat(weights, self.starts, axis=1)
        losses = np.add.reduceat(weights * self.loss, self.starts, axis=1)
        after = np.cumsum(counts, axis=1)
        total = after[:, -1]
        # In a group of W ties behind C others, whose losses sum to L, the j-th has the expected risk (L + j m)/(C + j).
        # Summed over j = 1..W that is W m + (L - C m) (H(C + W) - H(C)), with H the harmonic numbers.
        mean = losses / np.maximum(counts, 1)
        behind = np.cumsum(losses, axis=1) - losses - (after - counts) * mean
        h = self._harmonic(int(total.max()))[after.astype(np.int64)]
        step = np.diff(h, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore"):
            return (losses + behind * step).sum(1) / total

    def _harmonic(self, largest: int) -> np.ndarray:
        if largest >= len(self.harmonic):
            self.harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 2 * largest + 1))])
        return self.harmonic


def aurc(confidence: np.ndarray, loss: np.ndarray) -> float:
    """Area under the risk-coverage curve, (N,) each."""
    return float(RiskCoverage(confidence, loss).area()[0])


def excess_aurc(confidence: np.ndarray, loss: np.ndarray) -> float:
    """`aurc` less that of the best possible order of the same cases: what the score itself costs."""
    return aurc(confidence, loss) - aurc(-np.asarray(loss, np.float64), loss)


def trust(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and loss, each (N,), of cases that all have a score.

    confidence: the score's probability that the status is right: the score where "found", 1 - score where "absent", 0
    where failed. loss: 1 - IoU, so that a rightly rejected case loses nothing.
    """
    sure = {"found": lambda score: score, "absent": lambda score: 1 - score, "failed": lambda score: 0.0}
    confidence = np.array([sure[case.status](case.score) for case in cases], np.float64)
    return confidence, np.array([1 - case.iou for case in cases], np.float64)
