"""Boundary IoU (Cheng et al. 2021, arXiv 2103.16562), as its authors' code defines it."""

from __future__ import annotations

import math

import numpy as np

from vlseg.metrics.morphology import box_of, erode

DILATION_RATIO = 0.02  # of the image's diagonal


def boundary_width(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """Width d of the band in pixels for an image of size (height, width): max(1, round(ratio * diagonal))."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a ``(H, W)`` bool mask within ``width`` of its outside; beyond the image is outside."""
    return mask & ~erode(mask, width)


def boundary_overlap(
    prediction: np.ndarray, truth: np.ndarray, ratio: float = DILATION_RATIO, valid: np.ndarray | None = None
) -> tuple[int, int]:
    """Pixels of intersection and union of the two boundaries; Boundary IoU is their quotient.

    All ``(H, W)`` bool. valid: pixels that count (the bands are those of the whole masks); None: all.
    """
    box = box_of(prediction, truth)
    width = boundary_width((prediction.shape[0], prediction.shape[1]), ratio)
    p, t = boundary(prediction[box], width), boundary(truth[box], width)
    both, either = p & t, p | t
    if valid is not None:
        both, either = both & valid[box], either & valid[box]
    return int(np.count_nonzero(both)), int(np.count_nonzero(either))
