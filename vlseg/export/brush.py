"""Label Studio's run lengths of brush masks.

The format is that of the JavaScript package rle-pack: 32 bits for the number of values, 5 for the bits of a value less
one, four times 4 for the sizes of the length field less one; then runs: a bit that says "repeated", 2 bits for which of
the four sizes the length field has, the length less one, the value. The values are an RGBA picture's, row by row.
"""

from __future__ import annotations

import numpy as np

from vlseg.types import VLSegError

FIELDS = (3, 4, 8, 16)  # bits of the length field
LONGEST = 2 ** FIELDS[-1]


def encode_brush(mask: np.ndarray) -> list[int]:
    """A ``(H, W)`` bool mask as a list of bytes. Raises VLSegError for a mask of 2^30 pixels or more."""
    if mask.size >= 2**30:
        raise VLSegError(f"a mask of {mask.size} pixels: Label Studio's runs end at 2^30; write --as polygons")
    flat = np.ascontiguousarray(mask).reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = 4 * np.diff(np.append(starts, flat.size))
    # Runs beyond the longest that there is are cut into several.
    pieces = -(-lengths // LONGEST)
    value = np.repeat(np.where(flat[starts], 255, 0), pieces)
    length = np.full(len(value), LONGEST)
    last = np.cumsum(pieces) - 1
    length[last] = lengths - LONGEST * (pieces - 1)
    which = np.searchsorted([2**bits for bits in FIELDS], length)
    bits = np.array(FIELDS)[which]
    codes = (((1 << 2 | which) << bits | (length - 1)) << 8) | value
    head = [_bits(np.array([mask.size * 4]), np.array([32])), _bits(np.array([7]), np.array([5]))]
    sizes = _bits(np.array(FIELDS) - 1, np.full(len(FIELDS), 4))
    packed: list[int] = np.packbits(np.concatenate([*head, sizes, _bits(codes, bits + 11)])).tolist()
    return packed


def _bits(codes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The lowest `widths` (at most 32) bits of each code, the highest first, behind each other."""
    aligned = (codes.astype(np.uint64) << (32 - widths).astype(np.uint64)).astype(">u4")
    every = np.unpackbits(aligned.view(np.uint8)).reshape(-1, 32)
    return every[np.arange(32) < widths[:, None]]
