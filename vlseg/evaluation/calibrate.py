"""Turn logit[SEG] - logit[REJ] into a probability: Platt scaling on held-out scenes, and its threshold."""

from __future__ import annotations

import numpy as np


def platt(evidence: np.ndarray, present: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Scale a and bias b of sigmoid(a x + b) by maximum likelihood with Platt's smoothed targets (Platt 1999).

    evidence: (N,) float; present: (N,) bool. Newton's method; the problem is convex.
    """
    x = np.stack([evidence.astype(float), np.ones(len(evidence))], 1)
    positives, negatives = present.sum(), (~present).sum()
    y = np.where(present, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weights = np.zeros(2)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= np.clip(step, -1, 1)  # far from the optimum a full Newton step can overshoot
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0]), float(weights[1])


def best_threshold(score: np.ndarray, present: np.ndarray) -> float:
    """The score that separates best: highest mean of the shares rightly found and rightly rejected, middle of ties."""
    levels = np.linspace(0.05, 0.95, 181)
    balance = np.array([((score[present] >= t).mean() + (score[~present] < t).mean()) / 2 for t in levels])
    return float(np.round(levels[balance >= balance.max() - 1e-9].mean(), 3))
