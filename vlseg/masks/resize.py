"""Masks and RLEs from one size to another."""

from __future__ import annotations

import numpy as np

from vlseg.masks import rle as codec
from vlseg.types import RLE, VLSegError


def resize_mask(mask: np.ndarray, size: tuple[int, int], method: str = "area") -> np.ndarray:
    """A ``(H, W)`` bool mask at ``size`` (height, width).

    method "area": a pixel is inside where at least half of what it covers is, computed exactly; keeps area and shape
    best, loses what is thinner than half a new pixel. "nearest": the value at the new pixel's centre; thin structures
    survive by chance. Enlarged by whole factors both repeat pixels.
    Raises VLSegError for another method, a size below 1, or anything but a two-dimensional bool array.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool or 0 in mask.shape:
        raise VLSegError(f"resize_mask needs an (H, W) bool mask, got shape {mask.shape}, {mask.dtype}")
    height, width = int(size[0]), int(size[1])
    if height < 1 or width < 1:
        raise VLSegError(f"resize_mask needs a size (height, width) of at least 1 x 1, got {size}")
    if mask.shape == (height, width):
        return mask.copy()
    if method == "nearest":
        # In integers: a centre that falls on an edge between pixels takes the pixel after it, on every platform.
        rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
        columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
        return mask[rows[:, None], columns]
    if method != "area":
        raise VLSegError(f'resize method {method!r} is not known; use "area" or "nearest"')
    covered = _covered(_covered(mask.astype(np.int64), height).T, width).T
    return 2 * covered >= mask.shape[0] * mask.shape[1]


def _covered(values: np.ndarray, count: int) -> np.ndarray:
    """Sums of ``(H, W)`` int64 over ``count`` equal bands of rows, split exactly, times ``count``: all integer."""
    height = len(values)
    total = np.zeros((height + 1, values.shape[1]), dtype=np.int64)
    np.cumsum(values, axis=0, out=total[1:])
    whole, rest = np.divmod(np.arange(count + 1) * height, count)
    upto = total[whole] * count + rest[:, None] * values[np.minimum(whole, height - 1)]
    return np.diff(upto, axis=0)


def resize_rle(rle: RLE, size: tuple[int, int], method: str = "area") -> RLE:
    """`resize_mask` from RLE to RLE; the same object where the size is already right."""
    if list(rle["size"]) == [size[0], size[1]]:
        return rle
    return codec.encode(resize_mask(codec.decode(rle), size, method))
