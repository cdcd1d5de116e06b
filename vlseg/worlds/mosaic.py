"""Crowded pictures without expressions: many sprites on a grid, to teach a tower what things are called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.worlds import backgrounds, photometric
from vlseg.worlds.atlas import entries
from vlseg.worlds.compose import drawn, names_a_colour, scene_styles, window
from vlseg.worlds.draw import Draw

MOSAIC = 77  # keeps the draws apart from those of scenes with the same seed and index


def mosaic(
    seed: int, index: int, size: tuple[int, int], restyled: float = 1.0, pool: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture ``index`` of the stream ``seed``: sprites of one size class on a jittered grid.

    restyled: the chance that the picture uses the training styles; else its sprites keep the artist's drawing. pool:
    the glyphs there are; default: all.

    Returns image ``(H, W, 3) uint8``, ids ``(H, W) uint8`` (0 background, i = object i) and glyphs ``(M,) int64``.
    A scene shows about five objects; a mosaic of the same size, and so of the same cost to a tower, about twenty.
    """
    h, w = size
    d = Draw(seed, index, h, w, MOSAIC)
    image, _ = backgrounds.background(size, d)
    cell = d.log_between(18, 60)
    columns, rows = max(1, round(w / cell)), max(1, round(h / cell))
    among = range(len(entries())) if pool is None else pool
    glyphs = [among[d.below(len(among))] for _ in range(columns * rows)]
    ids = np.zeros(size, np.uint8)
    styles = "train" if d.chance(restyled) else "plain"
    for i, (glyph, style) in enumerate(zip(glyphs, scene_styles(styles, glyphs, d), strict=True)):
        item = drawn(glyph, min(w / columns, h / rows) * d.between(0.7, 1.15), style, not names_a_colour(glyph), d)
        height, width = item.alpha.shape
        item.x = round((i % columns + 0.5 + d.between(-0.15, 0.15)) * w / columns - width / 2)
        item.y = round((i // columns + 0.5 + d.between(-0.15, 0.15)) * h / rows - height / 2)
        down, across, part_down, part_across = window(item, size)
        alpha = item.alpha[part_down, part_across]
        region = image[down, across]
        region += (item.rgb[part_down, part_across] - region) * alpha[..., None]
        ids[down, across][alpha >= 0.5] = i + 1
    lit = np.clip(photometric.light(image, d), 0, 255).astype(np.uint8)
    return photometric.camera(lit, d), ids, np.array(glyphs, np.int64)
