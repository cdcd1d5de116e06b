"""Colour words: which are true of an object's pixels, which are false, and which are open."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np

NAMES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
TRUE_SHARE = 0.55
FALSE_SHARE = 0.12
BITS = 4


# Shades that people call now this, now that: open for each of these words, true for none.
BETWEEN = {
    "tan": ("brown", "orange", "pink", "yellow"),
    "cream": ("yellow", "white", "brown"),
    "charcoal": ("black", "gray"),
    "pale": ("gray", "white"),
    "steel": ("blue", "gray", "white"),
    "maroon": ("red", "brown"),
    "caramel": ("orange", "brown"),
}


def _name(h: float, s: float, v: float) -> str:
    """The colour word, or a key of ``BETWEEN``, for hue (degrees), saturation and value (0–1)."""
    h %= 360
    if v < 0.2:
        return "black"
    if s < (0.22 if v < 0.38 else 0.14):
        return "charcoal" if v < 0.38 else "gray" if v < 0.7 else "pale" if v < 0.88 else "white"
    if 175 <= h < 255 and s < 0.38:
        return "steel" if v >= 0.36 else "charcoal"
    if 8 <= h < 46 and s < 0.5 and v >= 0.6:
        return "tan"
    if 46 <= h < 70 and s < 0.3 and v >= 0.7:
        return "cream"
    if h < 14 or h >= 346:
        if v > 0.75 and s < 0.5:
            return "pink"
        return "brown" if v < 0.35 else "maroon" if v < 0.6 else "red"
    if h < 42:
        return "brown" if v < 0.62 else "caramel" if v < 0.85 else "orange"
    if h < 66:
        return "brown" if v < 0.5 else "yellow"
    if h < 166:
        return "green"
    if h < 252:
        return "blue"
    if h < 296:
        return "purple"
    return "pink" if v > 0.6 else "purple"


@cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lut, strict, loose): a class per 4-bit RGB cell ``(4096,) intp``; ``(classes, 11) float32`` membership.

    A class is the set of words that a cell or its neighbours in hue, saturation and value go by; it is strictly a
    colour where that set has one word.
    """
    sets: dict[frozenset[str], int] = {}
    lut = np.zeros(1 << (3 * BITS), np.intp)
    levels = 1 << BITS
    for cell in range(lut.size):
        r, g, b = ((cell // levels**k % levels + 0.5) / levels for k in (2, 1, 0))
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        named = frozenset(
            _name(h * 360 + dh, min(1.0, max(0.0, s + ds)), min(1.0, max(0.0, v + dv)))
            for dh in (-9, 0, 9)
            for ds in (-0.06, 0, 0.06)
            for dv in (-0.05, 0, 0.05)
        )
        names = frozenset(word for shade in named for word in BETWEEN.get(shade, (shade,)))
        lut[cell] = sets.setdefault(names, len(sets))
    strict, loose = np.zeros((len(sets), len(NAMES)), np.float32), np.zeros((len(sets), len(NAMES)), np.float32)
    for names, row in sets.items():
        for name in names:
            loose[row, NAMES.index(name)] = 1
            # A cell between two words counts half for each: a clear orange often strays towards red.
            strict[row, NAMES.index(name)] = 1 if len(names) == 1 else 0.5 if len(names) == 2 else 0
    return lut, strict, loose


def words(image: np.ndarray, ids: np.ndarray, n: int) -> list[tuple[frozenset[str], frozenset[str]]]:
    """Per object the colour words that are true and those that are open, of its visible pixels.

    image: ``(H, W, 3) uint8``; ids: ``(H, W) uint8`` with 1…n.
    """
    lut, strict, loose = tables()
    step = 2 if image.size > 128 * 160 * 3 else 1
    small, owner = image[::step, ::step], ids[::step, ::step]
    keep = owner > 0
    pixels, owner = small[keep], owner[keep].astype(np.intp)
    shift = 8 - BITS
    cells = pixels.astype(np.intp) >> shift
    classes = lut[(cells[:, 0] << (2 * BITS)) | (cells[:, 1] << BITS) | cells[:, 2]]
    counts = np.bincount(owner * len(strict) + classes, minlength=(n + 1) * len(strict)).reshape(n + 1, -1)[1:]
    total = np.maximum(counts.sum(1, keepdims=True), 1)
    sure, maybe = (counts @ strict) / total, (counts @ loose) / total
    out = []
    for row in range(n):
        true = frozenset(c for c, share in zip(NAMES, sure[row].tolist(), strict=True) if share >= TRUE_SHARE)
        undecided = frozenset(c for c, share in zip(NAMES, maybe[row].tolist(), strict=True) if share > FALSE_SHARE)
        out.append((true, undecided - true))
    return out
