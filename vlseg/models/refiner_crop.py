"""Crops for the refiner: a square window around a box, cut from image and mask, and masks put back in their place.

A window may reach beyond the image; there the outermost pixels are repeated, in image and masks alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.models.refiner import Refiner, RefinerConfig
from vlseg.types import RLE

LEAST_SIDE = 16.0  # pixels of the image: a crop of a single pixel shows what is around it
CROPS_A_PASS = 16
ROWS_A_BAND = 512


@dataclass(frozen=True, slots=True)
class Window:
    """A square in pixels of an image: its corner x, y (which may be negative) and its side."""

    x: float
    y: float
    side: float

    @classmethod
    def around(cls, box: Sequence[float], margin: float) -> Window:
        """Around a COCO box [x, y, w, h], with a margin on each side that is a share of the longer side."""
        x, y, width, height = box
        side = max(max(width, height) * (1 + 2 * margin), LEAST_SIDE)
        return cls(x + (width - side) / 2, y + (height - side) / 2, side)

    def span(self, length: int, cells: int, axis: int) -> tuple[int, int, float, float]:
        """Along x (axis 0) or y: first and last + 1 of the cells whose area lies within the image, and the pixels
        from where to where they reach. At least one cell."""
        start = (self.x, self.y)[axis]
        size = self.side / cells
        first = min(max(math.ceil(-start / size - 1e-9), 0), cells - 1)
        last = max(min(math.floor((length - start) / size + 1e-9), cells), first + 1)
        return first, last, max(start + first * size, 0.0), min(start + last * size, float(length))


def cut(picture: Image.Image, window: Window, cells: int, how: Image.Resampling) -> np.ndarray:
    """The window at `cells` x `cells`, (cells, cells) or (cells, cells, 3), in the picture's own number type."""
    left, right, x0, x1 = window.span(picture.width, cells, 0)
    top, bottom, y0, y1 = window.span(picture.height, cells, 1)
    inside = picture.resize((right - left, bottom - top), how, box=(x0, y0, x1, y1))
    around = [(top, cells - bottom), (left, cells - right)]
    array = np.asarray(inside)
    return np.pad(array, around + [(0, 0)] * (array.ndim - 2), mode="edge")


def cut_image(image: Image.Image, window: Window, config: RefinerConfig) -> torch.Tensor:
    """(3, S, S) float32, normalised as the refiner wants it. image: RGB."""
    crop = cut(image, window, config.size, Image.Resampling.BICUBIC).astype(np.float32) / 255
    normal = (crop - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)
    return torch.from_numpy(normal).permute(2, 0, 1)


def cut_mask(mask: np.ndarray, window: Window, cells: int) -> torch.Tensor:
    """(cells, cells) float32, the share of each cell that is inside. mask: (H, W) bool."""
    crop = cut(Image.fromarray(mask.astype(np.uint8) * 255), window, cells, Image.Resampling.BOX)
    return torch.from_numpy(crop.astype(np.float32) / 255)


def put_back(logits: torch.Tensor, window: Window, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """The mask of a window's logits (n, n) in an image of `size` (height, width), (H, W) bool; False outside of it.

    Logits are interpolated between the centres of cells and read at the centres of pixels, band by band.
    """
    height, width = size
    level = math.log(threshold / (1 - threshold))
    x0, x1 = max(math.ceil(window.x - 0.5), 0), min(math.ceil(window.x + window.side - 0.5), width)
    y0, y1 = max(math.ceil(window.y - 0.5), 0), min(math.ceil(window.y + window.side - 0.5), height)
    mask = np.zeros(size, dtype=bool)
    if x0 >= x1 or y0 >= y1:
        return mask
    source = logits.detach().float().cpu()[None, None]
    x = (torch.arange(x0, x1) + 0.5 - window.x) / window.side * 2 - 1
    for top in range(y0, y1, ROWS_A_BAND):
        bottom = min(top + ROWS_A_BAND, y1)
        y = (torch.arange(top, bottom) + 0.5 - window.y) / window.side * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
        found = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
        mask[top:bottom, x0:x1] = (found[0, 0] > level).numpy()
    return mask


@dataclass(slots=True)
class Refined:
    """A refined mask, and the IoU with the truth that the refiner expects of it, in 0..1."""

    rle: RLE
    iou: float

    @property
    def mask(self) -> np.ndarray:
        """Its pixels, (H, W) bool."""
        return codec.decode(self.rle)


def refine(
    model: Refiner,
    image: Image.Image,
    coarse: Sequence[RLE],
    iterations: int | None = None,
    mask_threshold: float = 0.5,
) -> list[Refined | None]:
    """Each of N coarse masks of an image (RGB, upright) made sharper, on its own; None for one without a pixel.

    iterations: default: the refiner's own; at 0 every mask comes back as it is, with an IoU of NaN.
    """
    count = model.config.iterations if iterations is None else iterations
    found: list[Refined | None] = [None] * len(coarse)
    if not count:
        return [Refined(rle, math.nan) if codec.area(rle) else None for rle in coarse]
    for place, window, steps in _passes(model, image, coarse, count):
        found[place] = _placed(steps[-1], window, image, mask_threshold)
    return found


def refine_each(
    model: Refiner, image: Image.Image, coarse: Sequence[RLE], iterations: int, mask_threshold: float = 0.5
) -> list[list[Refined]]:
    """As `refine`, with the masks after 1, 2, ... `iterations` iterations of each; `[]` for a mask without a pixel."""
    found: list[list[Refined]] = [[] for _ in coarse]
    for place, window, steps in _passes(model, image, coarse, iterations):
        found[place] = [_placed(step, window, image, mask_threshold) for step in steps]
    return found


@torch.inference_mode()
def _passes(
    model: Refiner, image: Image.Image, coarse: Sequence[RLE], iterations: int
) -> Iterator[tuple[int, Window, list[tuple[torch.Tensor, float]]]]:
    """(which mask, its window, logits (S/2, S/2) and expected IoU after each iteration)."""
    todo = [i for i, rle in enumerate(coarse) if codec.area(rle)]
    cells = model.config.size // 2
    for start in range(0, len(todo), CROPS_A_PASS):
        mine = todo[start : start + CROPS_A_PASS]
        windows = [Window.around(codec.bbox(coarse[i]), model.config.margin) for i in mine]
        pixels = torch.stack([cut_image(image, window, model.config) for window in windows])
        masks = [cut_mask(codec.decode(coarse[i]), window, cells) for i, window in zip(mine, windows, strict=True)]
        steps = model(pixels.to(model.device), torch.stack(masks).to(model.device), iterations)
        best = [(step.best.cpu(), step.iou.amax(1).sigmoid().tolist()) for step in steps]
        for place, (i, window) in enumerate(zip(mine, windows, strict=True)):
            yield i, window, [(logits[place], expected[place]) for logits, expected in best]


def _placed(step: tuple[torch.Tensor, float], window: Window, image: Image.Image, threshold: float) -> Refined:
    logits, expected = step
    return Refined(codec.encode(put_back(logits, window, (image.height, image.width), threshold)), expected)
