"""Wrong masks with a known truth: what codecs, low resolutions, slips of a model and neighbours do to a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from vlseg.masks.path_codec import PathCodec
from vlseg.masks.raster import raster
from vlseg.masks.resize import resize_mask
from vlseg.metrics.morphology import box_of

Random = np.random.Generator
Neighbours = Sequence[np.ndarray]
PRICES = (2e-3, 5e-2)  # of the paths: from about 30 tokens to a box or a triangle
_CODEC = PathCodec()


def extent(mask: np.ndarray) -> float:
    """The longer side in pixels of the box around a mask (H, W) bool."""
    rows, columns = box_of(mask)
    return float(max(rows.stop - rows.start, columns.stop - columns.start))


def shifted(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """Moved by up to 12 % of its extent, and stretched by up to 15 % along each axis."""
    rows, columns = box_of(mask)
    cx, cy = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
    dx, dy = random.uniform(-0.12, 0.12, 2) * extent(mask)
    sx, sy = np.exp(random.uniform(-0.14, 0.14, 2))
    data = (1 / sx, 0, cx - (cx + dx) / sx, 0, 1 / sy, cy - (cy + dy) / sy)
    picture = Image.fromarray(mask.astype(np.uint8))
    size = (mask.shape[1], mask.shape[0])
    return np.asarray(picture.transform(size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST)) > 0


def grown(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """Dilated or eroded, by up to 10 % of its extent."""
    return _by_distance(mask, lambda shape: np.full(shape, random.uniform(-0.1, 0.1)))


def wobbly(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """An edge that wanders in and out, smoothly, by up to about 15 % of its extent."""

    def noise(shape: tuple[int, int]) -> np.ndarray:
        coarse = random.normal(0, random.uniform(0.02, 0.08), (int(random.integers(3, 9)),) * 2).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))

    return _by_distance(mask, noise)


def holes(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """One to three ellipses taken out of it."""
    out = mask.copy()
    places = np.argwhere(mask)
    for _ in range(random.integers(1, 4)):
        out &= ~_ellipse(mask.shape, places[random.integers(len(places))], extent(mask), random)
    return out


def blobs(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """One to three ellipses around points of it added to it."""
    out = mask.copy()
    places = np.argwhere(mask)
    for _ in range(random.integers(1, 4)):
        out |= _ellipse(mask.shape, places[random.integers(len(places))], extent(mask), random)
    return out


def leaked(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """A neighbour, or the nearer part of one, added to it; blobs where there is none."""
    if not neighbours:
        return blobs(mask, neighbours, random)
    other = neighbours[int(random.integers(len(neighbours)))]
    if random.random() < 0.6:
        places = np.argwhere(other)
        away = np.linalg.norm(places - np.argwhere(mask).mean(0), axis=1)
        near = places[away <= np.quantile(away, random.uniform(0.2, 0.8))]
        other = np.zeros_like(mask)
        other[near[:, 0], near[:, 1]] = True
    return mask | other


def cut_off(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """10 to 35 % of its pixels missing on one side of a straight line."""
    places = np.argwhere(mask)
    angle = random.uniform(0, 2 * np.pi)
    along = places @ np.array([np.sin(angle), np.cos(angle)])
    keep = places[along <= np.quantile(along, random.uniform(0.65, 0.9))]
    out = np.zeros_like(mask)
    out[keep[:, 0], keep[:, 1]] = True
    return out


def low_resolution(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """As a map at stride 4 or 8 knows it: in blocks, or smooth."""
    height, width = mask.shape
    stride = 8 if extent(mask) >= 32 and random.random() < 0.5 else 4
    small = (-(-height // stride), -(-width // stride))
    if random.random() < 0.4:
        return resize_mask(resize_mask(mask, small), mask.shape, "nearest")
    soft = Image.fromarray(mask.astype(np.float32)).resize((small[1], small[0]), Image.Resampling.BOX)
    return np.asarray(soft.resize((width, height), Image.Resampling.BILINEAR)) > 0.5


def boxed(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """Its box, each side off by up to 5 %."""
    rows, columns = box_of(mask)
    slip = random.uniform(-0.05, 0.05, 4) * extent(mask)
    ends = np.rint(np.array([rows.start, rows.stop, columns.start, columns.stop]) + slip).astype(int).clip(0)
    out = np.zeros_like(mask)
    out[ends[0] : ends[1], ends[2] : ends[3]] = True
    return out


def exact(mask: np.ndarray, neighbours: Neighbours, random: Random) -> np.ndarray:
    """The truth itself: a refiner must also know when there is nothing to do."""
    return mask


# Share of each kind. Paths are made many at a time, see `corrupt`.
KINDS: dict[str, float] = {
    "path": 0.14,
    "written path": 0.16,
    "shifted": 0.08,
    "grown": 0.07,
    "wobbly": 0.12,
    "holes": 0.05,
    "blobs": 0.05,
    "leaked": 0.08,
    "cut off": 0.06,
    "low resolution": 0.06,
    "box": 0.03,
    "exact": 0.1,
}
_MAKERS: dict[str, Callable[[np.ndarray, Neighbours, Random], np.ndarray]] = {
    "shifted": shifted,
    "grown": grown,
    "wobbly": wobbly,
    "holes": holes,
    "blobs": blobs,
    "leaked": leaked,
    "cut off": cut_off,
    "low resolution": low_resolution,
    "box": boxed,
    "exact": exact,
}
_SECOND = ("shifted", "grown", "wobbly", "cut off")  # what may come on top
TWICE = 0.25


def corrupt(
    masks: Sequence[np.ndarray], neighbours: Sequence[Neighbours], kinds: Sequence[str], random: Random
) -> list[np.ndarray]:
    """Each of N masks (H, W) bool, not empty, made wrong in its kind (one of `KINDS`); never empty.

    neighbours: for each the masks of the objects around it. "path": the path codec with few tokens; "written path": the
    same with vertices out of place, dropped, and a box that is off, as a model writes it.
    """
    ways = [i for i, kind in enumerate(kinds) if kind in ("path", "written path")]
    paths = iter(_paths([masks[i] for i in ways], [kinds[i] == "written path" for i in ways], random))
    out = []
    for mask, around, kind in zip(masks, neighbours, kinds, strict=True):
        wrong = next(paths) if kind in ("path", "written path") else _MAKERS[kind](mask, around, random)
        if kind != "exact" and random.random() < TWICE and wrong.any():
            twice = _MAKERS[_SECOND[random.integers(len(_SECOND))]](wrong, around, random)
            wrong = twice if twice.any() else wrong
        out.append(wrong if wrong.any() else mask)
    return out


def _paths(masks: Sequence[np.ndarray], written: Sequence[bool], random: Random) -> list[np.ndarray]:
    """One price for all: masks that are encoded together are encoded quickly."""
    if not masks:
        return []
    price = float(np.exp(random.uniform(*np.log(PRICES))))
    out = []
    for mask, slips, path in zip(masks, written, _CODEC.encode_many(masks, price, effort="fast"), strict=True):
        size = (mask.shape[0], mask.shape[1])
        rings = _CODEC.rings(path.tokens, size)
        out.append(raster(_slipped(rings, extent(mask), random) if slips else rings, size))
    return out


def _slipped(rings: Sequence[np.ndarray], length: float, random: Random) -> list[np.ndarray]:
    """Rings (N, 2) with errors of a box and of vertices that grow together."""
    strength = random.uniform(0.1, 1.0)
    every = np.concatenate(rings)
    middle = (every.min(0) + every.max(0)) / 2
    scale = np.exp(random.normal(0, 0.07 * strength, 2))
    move = random.normal(0, 0.05 * strength * length, 2)
    out = []
    for ring in rings:
        keep = random.random(len(ring)) > 0.3 * strength
        own = ring[keep] if keep.sum() >= 3 else ring
        out.append((own - middle) * scale + middle + move + random.normal(0, 0.05 * strength * length, own.shape))
    return out


def _by_distance(mask: np.ndarray, offset: Callable[[tuple[int, int]], np.ndarray]) -> np.ndarray:
    """The mask whose edge lies `offset` (in shares of the extent, positive outwards) from that of `mask`."""
    length = extent(mask)
    near = box_of(mask, margin=int(0.3 * length) + 2)
    inner = np.pad(mask[near], 1)  # somewhere there is an outside
    distance = distance_transform_edt(inner) - distance_transform_edt(~inner)
    out = np.zeros_like(mask)
    out[near] = distance[1:-1, 1:-1] + offset(mask[near].shape) * length > 0
    return out


def _ellipse(shape: tuple[int, ...], centre: np.ndarray, length: float, random: Random) -> np.ndarray:
    """An ellipse with half axes of 5 to 18 % of a length."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    ry, rx = random.uniform(0.05, 0.18, 2) * length + 1
    return ((y - centre[0]) / ry) ** 2 + ((x - centre[1]) / rx) ** 2 < 1
