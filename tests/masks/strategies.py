"""Masks for property tests: noise of every density, nested rings, checkerboards, and the degenerate ones."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def nested(height: int, width: int) -> np.ndarray:
    """Rings inside holes inside rings, to the middle."""
    y, x = np.indices((height, width))
    depth = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    return depth % 2 == 0


def checkerboard(height: int, width: int) -> np.ndarray:
    return np.indices((height, width)).sum(axis=0) % 2 == 0


@st.composite
def masks(draw: st.DrawFn, largest: int = 14) -> np.ndarray:
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    kind = draw(st.sampled_from(["noise", "bits", "blocks", "nested", "checkerboard", "full", "empty"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "noise":
        return rng.random((height, width)) < draw(st.floats(0, 1))
    if kind == "bits":  # shrinks well
        bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
        return np.array(bits).reshape(height, width)
    if kind == "blocks":
        coarse = rng.random((height // 3 + 1, width // 3 + 1)) < 0.5
        return np.kron(coarse, np.ones((3, 3), dtype=bool)).astype(bool)[:height, :width]
    if kind == "nested":
        return nested(height, width)
    if kind == "checkerboard":
        return checkerboard(height, width)
    return np.full((height, width), kind == "full")


def blobs(height: int, width: int, sigma: float, seed: int = 0) -> np.ndarray:
    """Smooth random regions with holes and islands."""
    from skimage.filters import gaussian

    mask = gaussian(np.random.default_rng(seed).standard_normal((height, width)), sigma) > 0
    assert 0.05 < mask.mean() < 0.95
    return mask
