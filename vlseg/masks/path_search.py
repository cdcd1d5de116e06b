"""The search for paths: for masks and prices of a token, the rings on a grid that are worth their tokens.

A price (lambda) is what IoU one more token must bring. The search begins with the outline, thins it on a fine grid
while vertices cost more than they save, goes over to the codec's grid and moves every vertex there to where the fewest
pixels are wrong, by exact counts throughout; then it tries a few times whether fewer or more vertices do better.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlseg.masks.canvas import Canvas
from vlseg.masks.curves import Curves
from vlseg.masks.descent import Polygons
from vlseg.masks.grid import GridRing
from vlseg.masks.outline import outline, signed_area
from vlseg.masks.resize import resize_mask
from vlseg.masks.simplify import simplify

_FINE_GRID = 1000  # places a side, at least, while an outline is thinned
_LOSSLESS = 1e-6  # at such a price of a token no pixel is given up for one
_MOST_SLOTS = 400_000  # pixels of a canvas, more or less
_LARGEST_SIDE = 2048  # pixels that a mask with thin parts may have on it


@dataclass(frozen=True)
class Effort:
    """How hard to search. side: pixels that masks are scaled down to. tolerance: of the first outline, in those pixels.

    steps: lengths of moves in pixels, one after the other. rounds: at most so many moves of each. cycles: how often to
    thin out and fill in again at the end.
    """

    side: int
    tolerance: float
    steps: tuple[float, ...]
    rounds: int
    cycles: int


EFFORTS = {
    "fast": Effort(side=128, tolerance=1.0, steps=(1.0, 0.5), rounds=2, cycles=0),
    "thorough": Effort(side=384, tolerance=0.8, steps=(1.0, 0.5, 0.25), rounds=6, cycles=2),
}


@dataclass(frozen=True)
class Target:
    """A mask to find a path for: ``(h, w)`` bool, and the grid's box x0, y0, x1, y1 in its pixels ``(4,)``."""

    mask: np.ndarray
    box: np.ndarray


def search(
    targets: Sequence[Target], prices: Sequence[float], grid: int, vertex_tokens: int, curves: bool, effort: Effort
) -> list[list[list[GridRing]]]:
    """Rings for every target and every price: ``[price][target]`` lists of rings, at least one each.

    prices: of a token in IoU, ascending. vertex_tokens: tokens a vertex. curves: cubics too, where they are worth it.
    """
    found: list[list[list[GridRing]]] = [[[] for _ in targets] for _ in prices]
    for batch in _batches(targets, effort.side):
        scaled = [_scaled(targets[i], effort.side) for i in batch]
        for level, rings in enumerate(_search_together(scaled, prices, grid, vertex_tokens, curves, effort)):
            for i, some in zip(batch, rings, strict=True):
                found[level][i] = some
    return found


def _batches(targets: Sequence[Target], side: int) -> Iterator[list[int]]:
    """Indices of targets that share a canvas, until that is full."""
    batch: list[int] = []
    slots = 0
    for i, target in enumerate(targets):
        height, width = target.mask.shape
        size = min(width, side) * (min(height, side) + 1)
        if batch and slots + size > _MOST_SLOTS:
            yield batch
            batch, slots = [], 0
        batch.append(i)
        slots += size
    if batch:
        yield batch


def _scaled(target: Target, side: int) -> Target:
    """The target no larger than ``side``, or larger where thin parts would be lost otherwise."""
    mask = target.mask
    height, width = mask.shape
    while True:
        size = min(height, side), min(width, side)
        small = resize_mask(mask, size, "nearest")
        kept = np.count_nonzero(small) * (height * width) / (size[0] * size[1] * max(1, np.count_nonzero(mask)))
        if 0.95 < kept < 1.05 or size == (height, width) or side >= _LARGEST_SIDE:
            break
        side *= 2
    if not small.any():
        small = np.ones_like(small)
    return Target(small, target.box * np.tile([size[1] / width, size[0] / height], 2))


def _search_together(
    targets: Sequence[Target], prices: Sequence[float], grid: int, vertex_tokens: int, curves: bool, effort: Effort
) -> Iterator[list[list[GridRing]]]:
    canvas = Canvas([target.mask for target in targets])
    boxes = np.stack([target.box for target in targets])
    worth = canvas.area * vertex_tokens  # wrong pixels that a vertex must save, for each unit of price
    fine_grid = grid
    # Where no pixel may be lost, none must be by going over to the codec's grid later.
    if grid < _FINE_GRID / 2 and prices[0] > _LOSSLESS:
        fine_grid = -(-_FINE_GRID // (grid - 1)) * (grid - 1) + 1
    rings = _outlines([target.mask for target in targets], worth * prices[0], effort.tolerance)
    fine = Polygons(canvas, boxes, fine_grid, rings)
    _move(fine, effort)
    for share in (0.25, 0.5) if effort.cycles else (0.5,):
        _thin(fine, worth * prices[0] * share, vertex_tokens, effort)
    best = _Best(vertex_tokens, len(targets))
    for price in prices:
        if curves:
            bendable = _on_grid(fine, grid)
        _thin(fine, worth * price, vertex_tokens, effort)
        best.begin(price)
        coarse = _on_grid(fine, grid)
        _polish(coarse, worth * price, effort)
        best.offer(coarse)
        for number in range(effort.cycles):
            _shake(coarse, worth * price, effort, fewer_first=number % 2 == 0)
            _polish(coarse, worth * price, effort)
            best.offer(coarse)
        if curves:
            _move(bendable, effort)
            bent = Curves(bendable, canvas.area * price, vertex_tokens)
            _polish(bent, worth * price, effort)
            best.offer(bent)
        yield list(best.rings)


def _outlines(masks: Sequence[np.ndarray], worth: np.ndarray, tolerance: float) -> list[list[np.ndarray]]:
    """The rings of each mask to begin with.

    worth: ``(N,)`` wrong pixels that a vertex must save; where that is little, every pixel counts from the start.
    """
    rings = [_outline(mask, 3 * pixels) for mask, pixels in zip(masks, worth, strict=True)]
    counts = [len(some) for some in rings]
    simple = simplify([ring for some in rings for ring in some], np.repeat(np.where(worth > 0.5, tolerance, 0), counts))
    ends = np.cumsum(counts)
    return [simple[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _outline(mask: np.ndarray, least: float) -> list[np.ndarray]:
    """The outline but for rings below ``least`` pixels of area (one stays).

    Pixels that touch at a corner are joined or not, whichever makes fewer rings.
    """
    rings = outline(mask)
    if len(rings) > 1 and _touching(mask):
        # Of the outside, seen as the inside, the first ring is the frame.
        joined = [ring - 1 for ring in outline(np.pad(~mask, 1, constant_values=True))[1:]]
        rings = min(rings, joined, key=len)
    # The largest comes first.
    return [ring for i, ring in enumerate(rings) if i == 0 or abs(signed_area(ring)) >= least]


def _touching(mask: np.ndarray) -> bool:
    """Whether pixels touch at a corner only."""
    unlike = mask[1:] != mask[:-1]
    return bool((unlike[:, 1:] & unlike[:, :-1] & (mask[1:, 1:] != mask[1:, :-1])).any())


def _on_grid(fine: Polygons, grid: int) -> Polygons:
    """A copy on another grid, with a canvas of its own."""
    coarse = copy.copy(fine)
    coarse.canvas, coarse.touched = fine.canvas.copy(), fine.touched.copy()
    coarse.set_grid(grid)
    return coarse


def _thin(polygons: Polygons, allowance: np.ndarray, vertex_tokens: int, effort: Effort) -> None:
    polygons.drop_rings(allowance, 1 / vertex_tokens)
    polygons.thin(allowance, 40)
    _move(polygons, effort)


def _move(polygons: Polygons, effort: Effort) -> None:
    for step in effort.steps:
        polygons.move(step, effort.rounds)


def _polish(polygons: Polygons, allowance: np.ndarray, effort: Effort) -> None:
    """Move all vertices to their best places, and take out or put in what is worth it there."""
    _move(polygons, effort)
    for _ in range(4 if effort.cycles else 1):
        polygons.touched[:] = False
        polygons.split(allowance, 1.0, 1)
        polygons.thin(allowance, 20)
        # A mask that is done stays as it is, whatever others on the canvas still need.
        polygons.active = polygons.touched.copy()
        if not polygons.active.any():
            break
        _move(polygons, effort)
    polygons.active = np.ones_like(polygons.touched)


def _shake(polygons: Polygons, allowance: np.ndarray, effort: Effort, fewer_first: bool) -> None:
    """Out of a local optimum: to fewer vertices than are worth it and back to more, or the other way round."""
    if fewer_first:
        polygons.thin(3 * allowance, 20)
        _move(polygons, effort)
        polygons.split(allowance / 2, 1.0, 3)
    else:
        polygons.split(allowance / 3, 1.0, 2)
        _move(polygons, effort)
        polygons.thin(2 * allowance, 20)


class _Best:
    """The best rings of each mask so far, by wrong pixels and tokens together."""

    def __init__(self, vertex_tokens: int, count: int):
        self.vertex_tokens = vertex_tokens
        self.wrong, self.tokens = np.full(count, np.inf), np.zeros(count, dtype=np.int64)
        self.rings: list[list[GridRing]] = [[] for _ in range(count)]

    def begin(self, price: float) -> None:
        """From now on a token costs this much; what was found at other prices stands until something better comes."""
        self.price = price

    def offer(self, polygons: Polygons) -> None:
        count = len(self.tokens)
        begins = np.flatnonzero(np.diff(polygons.ring, prepend=-1))
        control = polygons.control if isinstance(polygons, Curves) else np.zeros(len(polygons.vertex), dtype=bool)
        tokens = np.bincount(polygons.owner, minlength=count) * self.vertex_tokens
        tokens += np.bincount(polygons.owner[begins], minlength=count)
        tokens += np.bincount(polygons.owner, weights=control, minlength=count).astype(np.int64) // 2
        wrong = polygons.canvas.error / polygons.canvas.area
        better = wrong + self.price * tokens < self.wrong + self.price * self.tokens
        self.wrong[better], self.tokens[better] = wrong[better], tokens[better]
        for i in np.flatnonzero(better):
            self.rings[i] = []
        for begin, end in zip(begins, np.append(begins[1:], len(polygons.ring)), strict=True):
            owner = polygons.owner[begin]
            if better[owner]:
                self.rings[owner].append(GridRing(polygons.vertex[begin:end].copy(), control[begin:end].copy()))
