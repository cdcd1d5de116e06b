"""COCO run-length encoding: arrays to RLE and back, and arithmetic that never leaves the runs.

A mask at rest is ``{"size": [height, width], "counts": str}``. The codec is pycocotools; what stands here is the types,
the checks and two of its traps: ``mask.area`` overflows on more than 255 RLEs (2.0.11 with numpy 2), and ``decode``
believes whatever counts it is handed.

Functions that do arithmetic (`area`, `bbox`, `iou`, `merge`, ...) trust their input for speed: pass what comes from
outside through `validate` or `from_coco` once. `decode` always checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from vlseg.types import RLE, VLSegError

# pycocotools builds uint8 arrays out of lengths in mask.area; larger chunks raise OverflowError under numpy 2.
_AREA_CHUNK = 255


def encode(mask: np.ndarray) -> RLE:
    """``(H, W)`` bool (or integer, non-zero is inside) to RLE. Raises VLSegError for floats and other shapes."""
    if np.ndim(mask) != 2:
        raise VLSegError(f"a mask is an (H, W) array, got shape {np.shape(mask)}")
    return encode_many(np.asarray(mask)[None])[0]


def encode_many(masks: np.ndarray) -> list[RLE]:
    """``(N, H, W)`` bool (or integer, non-zero is inside) to N RLEs; ``[]`` for N = 0. Errors as in `encode`."""
    masks = np.asarray(masks)
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise VLSegError(f"masks are an (N, H, W) array with H, W >= 1, got shape {masks.shape}")
    if masks.dtype != bool:
        if masks.dtype.kind not in "iu":
            raise VLSegError(f"a mask is bool or integer, got {masks.dtype}: threshold it first")
        masks = masks != 0
    if not len(masks):
        return []
    # Runs go down the columns: pycocotools wants (H, W, N) in Fortran order, which is (N, W, H) in C order.
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).view(np.uint8).transpose(2, 1, 0)
    return [_plain(r) for r in coco.encode(columns)]


def decode(rle: RLE) -> np.ndarray:
    """RLE to ``(H, W)`` bool, C-contiguous. Raises VLSegError for a malformed RLE."""
    return np.ascontiguousarray(_decoded(validate(rle)).view(bool))


def decode_many(rles: Sequence[RLE], size: tuple[int, int] | None = None) -> np.ndarray:
    """N RLEs of one size to ``(N, H, W)`` bool. ``size`` (height, width) is needed where N may be 0."""
    height, width = _common_size(rles, size)
    out = np.zeros((len(rles), height, width), dtype=bool)
    for row, rle in zip(out, rles, strict=True):
        row[:] = _decoded(validate(rle))
    return out


def decode_union(rles: Sequence[RLE], size: tuple[int, int]) -> np.ndarray:
    """The union of RLEs as ``(H, W)`` bool; all False for ``[]``. Raises VLSegError where a size differs."""
    height, width = _common_size(rles, size)
    if not rles:
        return np.zeros((height, width), dtype=bool)
    return decode(merge([validate(r) for r in rles]))


def area(rle: RLE) -> int:
    """Number of pixels inside."""
    return int(coco.area(rle))


def areas(rles: Sequence[RLE]) -> np.ndarray:
    """Number of pixels inside each of N RLEs, ``(N,)`` int64."""
    rles = list(rles)
    out = np.zeros(len(rles), dtype=np.int64)
    for start in range(0, len(rles), _AREA_CHUNK):
        chunk = rles[start : start + _AREA_CHUNK]
        out[start : start + len(chunk)] = coco.area(chunk)
    return out


def bbox(rle: RLE) -> list[float]:
    """COCO box [x, y, w, h] in pixels, as floats; [0, 0, 0, 0] for an empty mask."""
    return [float(v) for v in coco.toBbox(rle)]


def bboxes(rles: Sequence[RLE]) -> np.ndarray:
    """COCO boxes [x, y, w, h] in pixels of N RLEs, ``(N, 4)`` float64."""
    return np.asarray(coco.toBbox(list(rles)), dtype=np.float64).reshape(len(rles), 4)


def merge(rles: Sequence[RLE], intersect: bool = False) -> RLE:
    """Union, or intersection, of one or more RLEs of one size. Raises VLSegError for ``[]`` or differing sizes."""
    _common_size(rles, None)
    return _plain(coco.merge(list(rles), intersect=intersect))


def union(rles: Sequence[RLE], size: tuple[int, int]) -> RLE:
    """Union of any number of RLEs, none included; ``size`` is (height, width)."""
    height, width = _common_size(rles, size)
    return merge(rles) if rles else empty((height, width))


def empty(size: tuple[int, int]) -> RLE:
    """The RLE of an all-False mask of ``size`` (height, width)."""
    return _compress(np.array([size[0] * size[1]]), size[0], size[1])


def intersection_area(a: RLE, b: RLE) -> int:
    """Number of pixels inside both; equal sizes."""
    return area(merge([a, b], intersect=True))


def iou(a: Sequence[RLE], b: Sequence[RLE]) -> np.ndarray:
    """Intersection over union of every pair, ``(len(a), len(b))`` float64. Two empty masks give 0 (as pycocotools)."""
    a, b = list(a), list(b)
    if not a or not b:
        return np.zeros((len(a), len(b)))
    _common_size([*a, *b], None)
    return np.asarray(coco.iou(a, b, [0] * len(b)), dtype=np.float64).reshape(len(a), len(b))


def runs(rle: Mapping[str, Any]) -> np.ndarray:
    """The run lengths, ``(R,)`` int64, outside first, column by column; not checked against the size.

    Format: pycocotools ``rleFrString``: 5 bits a character from "0", bit 5 says more follow, two's complement; from the
    fourth run on, the difference to the run two before. Raises VLSegError for text that no encoder writes.
    """
    counts = rle["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        return _parse_counts(counts)
    if isinstance(counts, np.ndarray) and counts.ndim == 1 and counts.dtype.kind in "iu":
        return counts.astype(np.int64)
    if not isinstance(counts, list | tuple) or not all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        raise VLSegError(f"RLE counts must be a string or a list of integers, got {_brief(counts)}")
    if any(abs(c) >= 2**31 for c in counts):
        raise VLSegError("RLE counts hold a run of 2^31 pixels or more")
    return np.array(counts, dtype=np.int64)


def from_runs(lengths: np.ndarray, size: tuple[int, int]) -> RLE:
    """The RLE of run lengths ``(R,)``, outside first, column by column; zero runs are closed. Errors as `validate`."""
    return validate({"size": [size[0], size[1]], "counts": np.asarray(lengths)})


def validate(rle: Mapping[str, Any]) -> RLE:
    """A well-formed RLE with compressed text counts, equal to ``rle`` in pixels.

    Accepts compressed counts (str, bytes) and uncompressed lists. A well-formed str comes back as it is; zero runs
    inside are closed. Raises VLSegError, in one line, for a wrong size, text that is no RLE, negative runs, or runs
    that do not add up to height * width.
    """
    if not isinstance(rle, Mapping) or "size" not in rle or "counts" not in rle:
        raise VLSegError(f'an RLE is {{"size": [height, width], "counts": str}}, got {_brief(rle)}')
    height, width = _size(rle["size"])
    lengths = runs(rle)
    if len(lengths) and int(lengths.min()) < 0:
        raise VLSegError(f"RLE run {int(lengths.argmin())} is negative ({int(lengths.min())})")
    total = int(lengths.sum())
    if total != height * width:
        raise VLSegError(f"RLE runs add up to {total} pixels, but size {height} x {width} (H x W) has {height * width}")
    canonical = not (lengths[1:] == 0).any()
    if canonical and isinstance(rle["counts"], str):
        return {"size": [height, width], "counts": rle["counts"]}
    return _compress(lengths if canonical else _close_zero_runs(lengths), height, width)


def from_coco(segmentation: Any, height: int, width: int) -> RLE:
    """A COCO ``segmentation`` to RLE: polygon lists (their union, COCO's own rasteriser), compressed or list RLE.

    A single flat list of numbers counts as one polygon. Raises VLSegError for an odd number of coordinates, fewer than
    three points, coordinates that are no finite number, an empty list, or an RLE of another size.
    """
    height, width = _size([height, width])
    if isinstance(segmentation, Mapping):
        rle = validate(segmentation)
        if rle["size"] != [height, width]:
            raise VLSegError(f"the RLE has size {rle['size']}, the image {[height, width]} ([height, width])")
        return rle
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise VLSegError(f"a COCO segmentation is an RLE or a non-empty list of polygons, got {_brief(segmentation)}")
    polygons = segmentation if isinstance(segmentation[0], list | tuple | np.ndarray) else [segmentation]
    flat = [_flat_polygon(p, i) for i, p in enumerate(polygons)]
    return merge([_plain(r) for r in coco.frPyObjects(flat, height, width)])


def _flat_polygon(polygon: Any, index: int) -> list[float]:
    where = f"polygon {index}"
    try:
        values = np.asarray(polygon, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise VLSegError(f"{where}: coordinates must be numbers, got {_brief(polygon)}") from error
    if len(values) % 2:
        raise VLSegError(f"{where}: {len(values)} coordinates, an odd number; expected x1, y1, x2, y2, ...")
    if len(values) < 6:
        raise VLSegError(f"{where}: {len(values) // 2} points; a polygon needs at least 3")
    # The rasteriser walks every boundary pixel, so a wild coordinate costs memory without bound.
    if not np.isfinite(values).all() or np.abs(values).max() > 1e6:
        raise VLSegError(f"{where}: a coordinate is NaN, infinite or beyond a million pixels")
    return values.tolist()


def _decoded(rle: RLE) -> np.ndarray:
    try:
        return coco.decode(rle)
    except ValueError as error:  # some needlessly long spellings of a run
        raise VLSegError(f"RLE counts cannot be read: {_brief(rle['counts'])}") from error


def _parse_counts(text: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes):
        raise VLSegError("RLE counts are empty")
    if codes.min() < 0 or codes.max() > 63:
        raise VLSegError(f"RLE counts hold a character that no encoder writes, in {_brief(text)}")
    last = (codes & 32) == 0
    if not last[-1]:
        raise VLSegError(f"RLE counts end in the middle of a run: {_brief(text)}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 7:
        raise VLSegError(f"RLE counts hold a run of 2^31 pixels or more, in {_brief(text)}")
    place = np.arange(len(codes)) - np.repeat(starts, digits)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * digits), 0)
    # Runs 0, 1, 2 are written as they are, run m > 2 as its difference to run m - 2.
    values[2::2] = np.cumsum(values[2::2])
    values[1::2] = np.cumsum(values[1::2])
    return values


def _close_zero_runs(lengths: np.ndarray) -> np.ndarray:
    value = np.arange(len(lengths)) % 2
    keep = lengths > 0
    value, lengths = value[keep], lengths[keep]
    starts = np.flatnonzero(np.concatenate([[True], value[1:] != value[:-1]]))
    joined = np.add.reduceat(lengths, starts)
    return np.concatenate([[0], joined]) if value[0] else joined


def _compress(lengths: np.ndarray, height: int, width: int) -> RLE:
    return _plain(coco.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width))


def _plain(rle: Mapping[str, Any]) -> RLE:
    counts = rle["counts"]
    return {
        "size": [int(rle["size"][0]), int(rle["size"][1])],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(v) for v in size)
        if height < 1 or width < 1 or height * width >= 2**31 or [height, width] != list(size):
            raise ValueError(size)
    except (TypeError, ValueError) as error:
        raise VLSegError(f"an RLE size is [height, width] of two positive integers, got {_brief(size)}") from error
    return height, width


def _common_size(rles: Iterable[RLE], size: tuple[int, int] | None) -> tuple[int, int]:
    found = {(int(r["size"][0]), int(r["size"][1])) for r in rles}
    if size is not None:
        found.add((int(size[0]), int(size[1])))
    if not found:
        raise VLSegError("no RLE and no size given: say the (height, width) of the empty answer")
    if len(found) > 1:
        raise VLSegError(f"masks of different sizes (H, W): {', '.join(str(s) for s in sorted(found))}")
    return found.pop()


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
