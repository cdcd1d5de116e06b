"""Erosion and dilation of bool masks by a square, in a number of passes that grows with its logarithm; numpy only."""

from __future__ import annotations

import numpy as np


def dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """``(H, W)`` bool grown by ``steps`` >= 0 pixels in all eight directions (a square of 2 steps + 1); same size."""
    grown = np.pad(mask, steps)
    for _ in range(2):  # along the rows, turn, along the columns, turn back
        grown = _slide(grown, 2 * steps + 1, np.logical_or).T
    return grown


def erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """``(H, W)`` bool shrunk by ``steps`` >= 0 pixels from all eight directions; what lies outside of it is outside."""
    shrunk = np.pad(mask, steps)
    for _ in range(2):
        shrunk = _slide(shrunk, 2 * steps + 1, np.logical_and).T
    return shrunk


def box_of(*masks: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns around what is inside any of the masks, all ``(H, W)`` bool, and ``margin`` pixels more."""
    height, width = masks[0].shape
    sides = []
    for axis, length in ((1, height), (0, width)):
        inside = np.flatnonzero(np.any([mask.any(axis=axis) for mask in masks], axis=0))
        first, last = (inside[0], inside[-1]) if len(inside) else (0, 0)
        sides.append(slice(max(0, int(first) - margin), min(length, int(last) + 1 + margin)))
    return sides[0], sides[1]


def _slide(values: np.ndarray, window: int, combine: np.ufunc) -> np.ndarray:
    """`combine` over every window of so many rows; window - 1 rows fewer come back."""
    covered = 1
    while 2 * covered <= window:
        values = combine(values[:-covered], values[covered:])
        covered *= 2
    rest = window - covered
    return combine(values[:-rest], values[rest:]) if rest else values
