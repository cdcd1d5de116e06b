"""How tiles of one image are merged into one mask without seams, from coarse to fine.

Evidence is ``(h, w) uint8``: 0 surely outside, 255 surely inside, inside from `INSIDE` on. Each level starts from the
evidence of the coarser one, and a tile changes it only where the tile can be believed:

* what the tile sees whole (it touches no edge that cuts the image) it may add, where adding is allowed;
* what the coarser level knows already it may sharpen, if both mean the same pixels for the greater part.

Where tiles overlap their evidence is averaged with weights that fall to nothing at the edges, so that no seam is left.
With tiles that overlap by a quarter and levels a factor of two apart, every object is seen whole on some level: at full
size where it is smaller than the overlap, else at the level where it is an eighth to a quarter of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from vlseg.masks import rle as codec
from vlseg.types import RLE

INSIDE = 128
AGREED = 0.7  # share of an object's pixels from which two levels mean the same thing; at half, parts of balls were lost
HALO = 32  # pixels around what a tile says in which its "outside" counts as well
BASE = 0.25  # weight of the coarser level against a tile's 1: the fall-back where tiles fade out
_BAND = 1024  # rows at a time
_EIGHT = np.ones((3, 3), dtype=bool)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side of `length` pixels: evenly, the last flush with the end, >= `overlap` shared."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


@dataclass(frozen=True, slots=True)
class Place:
    """A tile on its level: left, top, width and height in pixels of the level; cut: which of its edges (left, top,
    right, bottom) lie within the image."""

    x: int
    y: int
    w: int
    h: int
    cut: tuple[bool, bool, bool, bool]


def columns(size: tuple[int, int], tile: int, overlap: int) -> Iterator[list[Place]]:
    """The tiles of a level of `size` (height, width), column by column from the left."""
    height, width = size
    w, h = min(tile, width), min(tile, height)
    for x in starts(width, tile, overlap):
        yield [Place(x, y, w, h, (x > 0, y > 0, x + w < width, y + h < height)) for y in starts(height, tile, overlap)]


@dataclass(slots=True)
class Word:
    """What a tile says and is believed: evidence in a box of its level with a weight a pixel.

    added: where the coarser level has no say, for it does not know the object.
    """

    x: int
    y: int
    evidence: np.ndarray
    weight: np.ndarray
    added: np.ndarray


def believed(view: np.ndarray, coarse: np.ndarray, place: Place, ramp: int, adds: bool) -> Word | None:
    """The part of a tile's evidence that counts; None where it says nothing to be believed.

    view: the tile's evidence, coarse: the coarser level's at the same pixels, both ``(h, w) uint8``. ramp: pixels over
    which a cut edge fades. adds: whether objects that the coarser level does not know may come in.
    """
    seen, known = view >= INSIDE, coarse >= INSIDE
    labels, count = ndimage.label(seen, _EIGHT)
    if not count:
        return None
    area = np.bincount(labels.ravel(), minlength=count + 1)
    shared = np.bincount(labels[known], minlength=count + 1)
    whole = np.ones(count + 1, dtype=bool)
    for edge, cut in zip((labels[:, 0], labels[0], labels[:, -1], labels[-1]), place.cut, strict=True):
        if cut:
            whole[np.unique(edge)] = False
    same = shared >= AGREED * area
    counts = np.where(shared > 0, whole | same, whole & adds)
    counts[0] = False
    if not counts.any():
        return None
    said = counts[labels]
    # Of what the coarser level knows, those objects that the tile means too are the tile's to draw.
    objects, _ = ndimage.label(known, _EIGHT)
    agreed = np.bincount(objects[said], minlength=objects.max() + 1) >= AGREED * np.bincount(objects.ravel())
    agreed[0] = False
    theirs = agreed[objects]
    around = _grown(said | theirs, HALO) & ~(seen & ~said) & ~(known & ~theirs & ~said)
    new = counts & ~same
    added = _grown(new[labels], HALO) & around if new.any() else np.zeros_like(around)
    rows, cols = np.flatnonzero(around.any(1)), np.flatnonzero(around.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    weight = np.where(around, _window(place, ramp), 0).astype(np.float16)
    return Word(place.x + int(cols[0]), place.y + int(rows[0]), *(a[box].copy() for a in (view, weight, added)))


def blend(base: np.ndarray, words: list[Word], x: int) -> np.ndarray:
    """A strip of a level's evidence, ``(height, w) uint8``. base: the coarser level's there; x: left edge in pixels."""
    out = np.empty_like(base)
    for top in range(0, len(base), _BAND):  # the sums are floats: of a whole strip they would take hundreds of MB
        out[top : top + _BAND] = _blend(base[top : top + _BAND], words, x, top)
    return out


def _blend(base: np.ndarray, words: list[Word], x: int, y: int) -> np.ndarray:
    height, width = base.shape
    fallback = np.full((height, width), BASE, dtype=np.float32)
    total, weight = np.zeros_like(fallback), np.zeros_like(fallback)
    for word in words:
        h, w = word.evidence.shape
        left, right = max(word.x, x), min(word.x + w, x + width)
        top, bottom = max(word.y, y), min(word.y + h, y + height)
        if left >= right or top >= bottom:
            continue
        own = slice(top - word.y, bottom - word.y), slice(left - word.x, right - word.x)
        here = slice(top - y, bottom - y), slice(left - x, right - x)
        share = word.weight[own].astype(np.float32)
        total[here] += share * (word.evidence[own] - np.float32(127.5))
        weight[here] += share
        fallback[here][word.added[own]] = 0
    total += fallback * (base - np.float32(127.5))
    weight += fallback
    return np.clip(np.rint(total / weight + np.float32(127.5)), 0, 255).astype(np.uint8)


def part(evidence: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """The evidence of a coarser level ("L") in a box (left, top, right, bottom) of a level of `size` (height, width),
    enlarged bilinearly; the same pixels whatever the box, up to rounding."""
    down, across = evidence.height / size[0], evidence.width / size[1]
    left, top, right, bottom = box
    source = (left * across, top * down, min(right * across, evidence.width), min(bottom * down, evidence.height))
    return np.asarray(evidence.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source))


class RunLengths:
    """A mask given strip by strip from the left, kept as run lengths only."""

    def __init__(self) -> None:
        self._flips: list[np.ndarray] = []
        self._length, self._last = 0, False

    def add(self, strip: np.ndarray) -> None:
        """The next columns, ``(H, w)`` bool."""
        flat = np.ascontiguousarray(strip.T).reshape(-1)
        flips = np.flatnonzero(flat[1:] != flat[:-1]) + (self._length + 1)
        if bool(flat[0]) != self._last:
            flips = np.concatenate([[self._length], flips])
        self._flips.append(flips)
        self._length, self._last = self._length + len(flat), bool(flat[-1])

    def rle(self, size: tuple[int, int]) -> RLE:
        """All of it, as a mask of `size` (height, width)."""
        flips = np.concatenate([*self._flips, [self._length]])
        return codec.from_runs(np.diff(flips, prepend=0), size)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Dilation by a square of 2 * by + 1 pixels."""
    grown: np.ndarray = ndimage.maximum_filter(mask.view(np.uint8), 2 * by + 1, mode="constant").view(bool)
    return grown


def _window(place: Place, ramp: int) -> np.ndarray:
    """Weights ``(h, w)`` float32 in (0, 1]: 1 within, falling over `ramp` pixels to nothing at edges that are cut."""

    def side(length: int, first: bool, last: bool) -> np.ndarray:
        rise = np.clip((np.arange(length, dtype=np.float32) + 0.5) / ramp, 0, 1)
        return np.minimum(rise if first else 1, rise[::-1] if last else np.ones(length, np.float32))

    left, top, right, bottom = place.cut
    window: np.ndarray = np.maximum(np.outer(side(place.h, top, bottom), side(place.w, left, right)), 1e-3)
    return window
