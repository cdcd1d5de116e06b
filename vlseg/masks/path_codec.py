"""The path codec: masks to path tokens, and path tokens to rings, masks, RLE and SVG path data.

A path is the mask's box in bins of the image, then its rings as nodes of a grid within the box; `vlseg.masks.tokens`
has the grammar, `vlseg.masks.path_search` the search for the rings. How many vertices a mask gets is decided by
measured IoU: a price says what IoU one more token must bring, for one mask as for a whole data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from vlseg.masks import rle as runs
from vlseg.masks.budget import allocate
from vlseg.masks.grid import DECIMALS, GridRing, box_bins, box_edges, canonical, to_pixels
from vlseg.masks.outline import outline
from vlseg.masks.path_search import EFFORTS, Target, search
from vlseg.masks.raster import raster, raster_rle
from vlseg.masks.svg_parser import parse_path
from vlseg.masks.tokens import Vocabulary
from vlseg.types import RLE, VLSegError

# What one more token must bring in IoU where the caller does not say.
PRICE = 1e-3
# Prices that are tried for a budget; at the last one nothing is worth more than the box.
_LADDER = (*np.geomspace(3e-5, 3e-2, 12).tolist(), 1.0)

EffortName = Literal["fast", "thorough"]
Mask = np.ndarray | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A path and what it is worth. tokens: ids; iou: of its mask with the mask that it was made for, exact."""

    tokens: list[int]
    iou: float


@dataclass(frozen=True)
class PathCodec:
    """Masks to path tokens and back; ids run from 0 to ``len(codec.vocabulary) - 1``.

    grid: places along each side of the box, 2 ... 4096. box_bins: bins along each side of the image. joint: one token a
    vertex (grid * grid of them; grid <= 256) in place of two. curves: cubic segments too, where they are worth their
    tokens. Raises VLSegError for values out of range.
    """

    grid: int = 64
    box_bins: int = 1024
    joint: bool = True
    curves: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= (256 if self.joint else 4096):
            raise VLSegError(f"a path grid has 2 to {256 if self.joint else 4096} places a side, got {self.grid}")
        if not 2 <= self.box_bins <= 65536:
            raise VLSegError(f"a path's box has 2 to 65536 bins a side, got {self.box_bins}")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Names, classes and grammar of the tokens."""
        return Vocabulary(self.grid, self.box_bins, self.joint, self.curves)

    # --- masks to tokens ---

    def encode(
        self, mask: Mask, price: float | None = None, budget: int | None = None, effort: EffortName = "thorough"
    ) -> list[int]:
        """The path of a ``(H, W)`` bool mask or an RLE; arguments and errors as in `encode_many`."""
        return self.encode_many([mask], price, budget, effort)[0].tokens

    def encode_many(
        self,
        masks: Sequence[Mask],
        price: float | None = None,
        budget: int | None = None,
        effort: EffortName = "thorough",
    ) -> list[Encoded]:
        """Paths of masks, ``(H, W)`` bool or RLE, of any sizes; many at once are quicker than one after the other.

        price: the IoU that one more token must bring (`PRICE` where neither is given); at 0 every pixel comes back that
        the grid can tell apart. budget: tokens for all masks together, spread over them by the one price that spends
        it. effort: "fast" is for targets that are made while training. Raises VLSegError for what is no mask, a price
        that is no number from 0 on, both price and budget, or a budget too small for the masks.
        """
        if price is not None and budget is not None:
            raise VLSegError("give a price of a token or a budget of tokens, not both")
        if budget is None:
            return [points[0] for points in self.trade_offs(masks, [PRICE if price is None else price], effort)]
        points = self.trade_offs(masks, _LADDER, effort)
        for mine in points:
            mine.append(Encoded(self.vocabulary.write(None, []), float(mine[0].tokens == self._empty)))
        tokens = [np.array([len(point.tokens) for point in mine]) for mine in points]
        taken = allocate(tokens, [np.array([point.iou for point in mine]) for mine in points], budget)
        return [mine[i] for mine, i in zip(points, taken, strict=True)]

    def trade_offs(
        self, masks: Sequence[Mask], prices: Sequence[float], effort: EffortName = "thorough"
    ) -> list[list[Encoded]]:
        """For every mask its path at each of the prices, which ascend. Errors as in `encode_many`."""
        if effort not in EFFORTS:
            raise VLSegError(f"no effort {effort!r}; there are {', '.join(EFFORTS)}")
        if not prices or not all(0 <= price < np.inf for price in prices) or sorted(prices) != list(prices):
            raise VLSegError(f"prices of a token are numbers from 0 on, ascending; got {list(prices)}")
        jobs = [self._job(mask) for mask in masks]
        found = search(
            [Target(job.pixels, job.box - np.tile(job.corner, 2)) for job in jobs if job],
            # A vertex that saves nothing at all is not worth its token at any price.
            [max(price, 1e-9) for price in prices],
            self.grid,
            1 if self.joint else 2,
            self.curves,
            EFFORTS[effort],
        )
        rings = iter(zip(*found, strict=True))
        nothing = [Encoded(self._empty, 1.0)] * len(prices)
        return [self._paths(job, next(rings), prices) if job else nothing[:] for job in jobs]

    def write(self, box: Sequence[int] | None, rings: Iterable[GridRing]) -> list[int]:
        """A box (bins x0, y0, x1, y1; None for the empty mask) and rings as tokens, in canonical order."""
        return self.vocabulary.write(box, canonical(rings))

    # --- tokens to masks ---

    def decode(self, tokens: Sequence[int], size: tuple[int, int]) -> np.ndarray:
        """The mask of a path in an image of ``size`` (height, width), ``(H, W)`` bool.

        Raises VLSegError, with the place, for tokens that are no whole path; any that the grammar accepts decode.
        """
        return raster(self.rings(tokens, size), size)

    def decode_rle(self, tokens: Sequence[int], size: tuple[int, int]) -> RLE:
        """`decode` as an RLE, without making the pixels."""
        return raster_rle(self.rings(tokens, size), size)

    def rings(self, tokens: Sequence[int], size: tuple[int, int]) -> list[np.ndarray]:
        """The rings of a path ``(N, 2)`` float64 of x, y in pixels, even-odd, curves as chords within 0.1 pixels.

        Rings of fewer than three points, which enclose nothing, are left out. Errors as in `decode`.
        """
        box, rings = self.vocabulary.read(tokens)
        if box is None:
            return []
        return self._drawn(rings, box_edges(box, size, self.box_bins))

    def svg(self, tokens: Sequence[int], size: tuple[int, int]) -> str:
        """SVG path data in pixels, even-odd, with the path's own lines and curves; "" for the empty mask.

        ``path_to_mask(codec.svg(tokens, size), size)`` is ``codec.decode(tokens, size)``. Errors as in `decode`.
        """
        box, rings = self.vocabulary.read(tokens)
        if box is None:
            return ""
        edges = box_edges(box, size, self.box_bins)
        return " ".join(_path_data(ring, to_pixels(ring.nodes, edges, self.grid)) for ring in rings or [self._frame])

    # --- inside ---

    @cached_property
    def _empty(self) -> list[int]:
        return self.vocabulary.write(None, [])

    @cached_property
    def _frame(self) -> GridRing:
        last = self.grid - 1
        return GridRing.of([(0, 0), (last, 0), (last, last), (0, last)])

    def _drawn(self, rings: Sequence[GridRing], box: np.ndarray) -> list[np.ndarray]:
        """Rings in pixels, curves as the chords that the SVG parser makes of them; of a box alone its frame."""
        drawn: list[np.ndarray] = []
        for ring in rings or [self._frame]:
            points = to_pixels(ring.nodes, box, self.grid)
            drawn += parse_path(_path_data(ring, points)) if ring.cubics else [points][: len(points) >= 3]
        return drawn

    def _job(self, mask: Mask) -> _Job | None:
        rle = runs.validate(mask) if isinstance(mask, Mapping) else None
        mask = np.asarray(mask if rle is None else runs.decode(rle))
        if mask.ndim != 2 or mask.dtype != bool:
            raise VLSegError(f"a mask is an (H, W) bool array or an RLE, got shape {mask.shape}, {mask.dtype}")
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return None
        size = (mask.shape[0], mask.shape[1])
        extent = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        bins = box_bins(extent, size, self.box_bins)
        box = box_edges(bins, size, self.box_bins)
        # Where bins are fine, the box may end within the outermost pixels.
        corner = np.minimum(np.floor(box[:2]).astype(np.int64), extent[:2])
        right, bottom = np.maximum(np.ceil(box[2:]).astype(np.int64), extent[2:])
        pixels = mask[corner[1] : bottom, corner[0] : right]
        return _Job(rle or runs.encode(mask), pixels, corner, bins, box)

    def _outline(self, job: _Job) -> list[GridRing]:
        """Every corner of the mask's pixels at its place on the grid."""
        cell = (job.box[2:] - job.box[:2]) / (self.grid - 1)
        places = ((ring + job.corner - job.box[:2]) / cell for ring in outline(job.pixels))
        nodes = (np.clip(np.rint(place), 0, self.grid - 1).astype(np.int64) for place in places)
        return [GridRing(some, np.zeros(len(some), dtype=bool)) for some in nodes]

    def _paths(self, job: _Job, found: Sequence[list[GridRing]], prices: Sequence[float]) -> list[Encoded]:
        """For each price the rings found for it as tokens, or what is worth more: the box alone, the whole outline."""
        box = self._encoded(job, [])
        out = []
        for rings, price in zip(found, prices, strict=True):
            offers = [self._encoded(job, canonical(rings)), box]
            if price == 0 and offers[0].iou < 1:
                offers.append(self._encoded(job, canonical(self._outline(job))))
            out.append(max(offers, key=lambda offer: (offer.iou - price * len(offer.tokens), -len(offer.tokens))))
        return out

    def _encoded(self, job: _Job, rings: list[GridRing]) -> Encoded:
        # In coordinates of the image, as it will be decoded: a line through a pixel's centre falls on one side or the
        # other by the last bit.
        drawn = raster_rle(self._drawn(rings, job.box), (job.rle["size"][0], job.rle["size"][1]))
        return Encoded(self.vocabulary.write(job.bins, rings), float(runs.iou([drawn], [job.rle])[0, 0]))


@dataclass(frozen=True)
class _Job:
    """A mask, and its pixels in and around its box; corner: their x, y in the image; the box as bins and in pixels."""

    rle: RLE
    pixels: np.ndarray
    corner: np.ndarray
    bins: tuple[int, int, int, int]
    box: np.ndarray


def _path_data(ring: GridRing, points: np.ndarray) -> str:
    """SVG path data of a ring through points in pixels; lines as L, cubics as C."""
    texts = [f"{_number(x)} {_number(y)}" for x, y in points.tolist()]
    texts.append(texts[0])
    parts = [f"M {texts[0]}"]
    for a, b in pairwise([*np.flatnonzero(~ring.control).tolist(), len(points)]):
        if b - a == 3:
            parts.append(f"C {' '.join(texts[a + 1 : b + 1])}")
        elif b < len(points):
            parts.append(f"L {texts[b]}")
    return " ".join([*parts, "Z"])


def _number(value: float) -> str:
    return f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
