"""Results whose masks are hard to write down: holes, several parts, single pixels, the border of the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.svg import path_data
from vlseg.types import Answer, Result, Segment

SIZES = ((120, 160), (97, 203), (64, 64))


def ellipse(size: tuple[int, int], row: float, column: float, height: float, width: float) -> np.ndarray:
    """A filled ellipse; all numbers are shares of the size."""
    y, x = np.mgrid[: size[0], : size[1]]
    return ((y / size[0] - row) / height) ** 2 + ((x / size[1] - column) / width) ** 2 <= 1


def shapes(size: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Masks by name, each of 5-95 %."""
    random = np.random.default_rng(seed)
    ring = ellipse(size, 0.5, 0.4, 0.45, 0.35) & ~ellipse(size, 0.45, 0.35, 0.15, 0.12)
    ring &= ~ellipse(size, 0.75, 0.5, 0.06, 0.05)
    pair = ellipse(size, 0.3, 0.2, 0.25, 0.15) | ellipse(size, 0.7, 0.8, 0.2, 0.15)
    corner = np.zeros(size, bool)
    corner[: size[0] // 2, : size[1] // 3] = corner[size[0] // 2 :, size[1] // 3 : size[1] // 2] = True
    coarse = random.random((size[0] // 8 + 1, size[1] // 8 + 1)) < 0.45
    ragged = np.kron(coarse, np.ones((8, 8), bool))[: size[0], : size[1]]
    found = {"the ring": ring, "a pair & <more>": pair, "the corner": corner, "ragged blocks": ragged}
    assert all(0.05 <= mask.mean() <= 0.95 for mask in found.values())
    return found


def segment(mask: np.ndarray, score: float) -> Segment:
    """A mask as one segment."""
    rle = codec.encode(mask)
    return Segment(score, codec.bbox(rle), codec.area(rle), rle, path_data(mask))


def make_results(folder: Path, count: int = 3) -> list[Result]:
    """Results about pictures that are written to the folder; each has found, absent and failed answers."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        path = folder / f"photo {number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        answers = [
            Answer(text, "found", 0.9 - k / 10, size, segments=[segment(mask, 0.9 - k / 10)])
            for k, (text, mask) in enumerate(shapes(size, number).items())
        ]
        left, right = shapes(size, number)["the corner"], ~shapes(size, number)["the corner"]
        answers.append(Answer("both halves", "found", 0.8, size, segments=[segment(left, 0.8), segment(right, 0.3)]))
        answers.append(Answer("the zebra", "absent", 0.02, size))
        answers.append(Answer('é 右 "quoted"', "failed", None, size, "too long"))
        out.append(Result(str(path), size, "made", answers))
    return out


def write_lines(results: list[Result], file: Path) -> Path:
    """Results, one a line."""
    file.write_text("".join(json.dumps(result.to_dict(), ensure_ascii=False) + "\n" for result in results))
    return file


def masks_of(result: Result) -> list[tuple[str, np.ndarray]]:
    """(text, mask) of every segment, in order."""
    return [(a.text, codec.decode(s.rle)) for a in result.answers for s in a.segments]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum())
