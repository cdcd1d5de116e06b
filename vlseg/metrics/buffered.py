"""Buffered IoU: overlap that forgives errors of up to r pixels, for thin things such as the lines of a diagram.

The paper that reports it (arXiv 2604.02893) gives no formula, so both readings are here and every report prints r. A
buffer is a dilation by a square of 2 r + 1 pixels; r = 0 makes both the plain IoU.
"""

from __future__ import annotations

import numpy as np

from vlseg.metrics.morphology import box_of, dilate

RADIUS = 3  # pixels


def buffered_overlaps(
    prediction: np.ndarray, truth: np.ndarray, radius: int = RADIUS, valid: np.ndarray | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Numerator and denominator, in pixels, of both definitions; all masks ``(H, W)`` bool. valid: pixels that count.

    A, tolerant: T = (|P ∩ buf G| + |G ∩ buf P|) / 2 over T + (|P| - |P ∩ buf G|) + (|G| - |G ∩ buf P|); both are given
    doubled, to stay whole numbers. A shift or a fattening of up to r costs nothing.
    B, dilated: |buf P ∩ buf G| over |buf P ∪ buf G|. A shift still costs.
    """
    box = box_of(prediction, truth, margin=radius)
    p, t = prediction[box], truth[box]
    wide_p, wide_t = dilate(p, radius), dilate(t, radius)
    if valid is not None:
        inside = valid[box]
        p, t, wide_p, wide_t = p & inside, t & inside, wide_p & inside, wide_t & inside
    p_right, t_right = _count(p & wide_t), _count(t & wide_p)
    hits = p_right + t_right
    misses = _count(p) - p_right + _count(t) - t_right
    return (hits, hits + 2 * misses), (_count(wide_p & wide_t), _count(wide_p | wide_t))


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))
