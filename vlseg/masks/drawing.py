"""Pictures of answers: masks filled and outlined on the image, named by plates, what is absent said in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vlseg.masks import lettering
from vlseg.masks.palette import RGB, color, text_color
from vlseg.masks.rle import decode
from vlseg.types import Answer, Result, VLSegError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def overlay(
    image: Image.Image,
    result: Result,
    opacity: float = 0.45,
    labels: bool = True,
    *,
    contours: bool = True,
    captions: bool = True,
    scores: bool = True,
    colors: Sequence[RGB] | None = None,
) -> Image.Image:
    """The image with every found answer drawn on it, as a new RGB image of the same size.

    opacity: of the fill, 0-1. labels: a plate with the words, and with ``scores`` the score, near the largest segment.
    contours: 2 px wide, more on images above 1,000 px. captions: a strip at the bottom names what was not found or
    failed. colors: one a query, repeated as needed, instead of the palette's. Raises VLSegError where image and result
    have different sizes, or the opacity is out of range.
    """
    if (image.height, image.width) != tuple(result.size):
        raise VLSegError(
            f"the image is {image.height} x {image.width} (H x W), the result {result.size[0]} x {result.size[1]}: "
            "draw on the upright image that was segmented"
        )
    if not 0 <= opacity <= 1:
        raise VLSegError(f"opacity is a share between 0 and 1, got {opacity}")
    pixels = np.array(image.convert("RGB"))
    longest = max(result.size)
    thickness = max(2, round(longest / 500)) if contours else 0
    paints = [colors[i % len(colors)] if colors else color(i) for i in range(len(result.answers))]
    for answer, paint in zip(result.answers, paints, strict=True):
        for segment in answer.segments:
            _paint(pixels, decode(segment.rle), paint, opacity, thickness)
    out = Image.fromarray(pixels)
    size = round(9 + longest / 90)
    taken = _caption(out, result.answers, size) if captions else []
    if labels:
        for answer, paint in zip(result.answers, paints, strict=True):
            if answer.segments:
                taken.append(_plate(out, answer, paint, size, taken, scores))
    return out


def mask_png(mask: np.ndarray) -> Image.Image:
    """A ``(H, W)`` bool mask as a picture of mode "L": 255 inside, 0 outside. Raises VLSegError for other arrays."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise VLSegError(f"mask_png needs an (H, W) bool mask, got shape {mask.shape}, {mask.dtype}")
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _paint(pixels: np.ndarray, mask: np.ndarray, paint: RGB, opacity: float, thickness: int) -> None:
    """Fill and contour of one mask, in place; only its box is touched."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    halo = (thickness + 1) // 2
    height, width = mask.shape
    box = (
        slice(max(0, rows[0] - halo), min(height, rows[-1] + 1 + halo)),
        slice(max(0, columns[0] - halo), min(width, columns[-1] + 1 + halo)),
    )
    inside = mask[box]
    part = pixels[box].astype(np.float32)
    shade = np.array(paint, dtype=np.float32)
    part[inside] += (shade - part[inside]) * opacity
    if thickness:
        # A dark rim outside keeps the contour apart from a background of its own colour.
        rim = _grown(inside, halo) & ~inside
        part[rim] *= 0.55
        part[inside & _grown(~inside, thickness, edge=True)] = shade
    pixels[box] = np.clip(np.round(part), 0, 255).astype(np.uint8)


def _grown(mask: np.ndarray, steps: int, edge: bool = False) -> np.ndarray:
    """Dilation by ``steps`` pixels: rounds of four and of eight neighbours in turn, near to a disc."""
    grown = np.pad(mask, steps, constant_values=edge)
    for step in range(steps):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        # Taking the columns from what has just grown down the rows includes the diagonals.
        across = grown.copy() if step % 2 else before
        grown[:, 1:] |= across[:, :-1]
        grown[:, :-1] |= across[:, 1:]
    return grown[steps:-steps, steps:-steps]


def _plate(image: Image.Image, answer: Answer, paint: RGB, size: int, taken: Sequence[Box], scores: bool) -> Box:
    """Draws the plate of one answer where it covers no other, and returns its box."""
    score = f" {answer.score:.2f}" if scores and answer.score is not None else ""
    words = lettering.clean(answer.text)
    font = lettering.font_for(words + score + "…", size)
    pad = max(2, round(size * 0.3))
    limit = min(image.width - 2 * pad, max(image.width * 0.55, 12 * size))
    text = lettering.cut(words, font, limit - lettering.width(score, font)) + score
    width, height = round(lettering.width(text, font)) + 2 * pad, round(size * 1.2) + pad
    x, y, w, h = max(answer.segments, key=lambda s: s.area).bbox
    place = _free_place(image.size, (round(x), round(y), round(x + w), round(y + h)), (width, height), taken)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((place[0], place[1], place[2] - 1, place[3] - 1), radius=pad, fill=paint)
    draw.text((place[0] + pad, (place[1] + place[3]) / 2), text, font=font, fill=text_color(paint), anchor="lm")
    return place


def _free_place(canvas: tuple[int, int], box: Box, plate: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Above the object, else inside its top, below it, inside its bottom, else the first free row further down."""
    left, top, right, bottom = box
    width, height = plate
    xs = (left, right - width, (left + right - width) // 2)
    ys = [top - height, top, bottom, bottom - height]
    candidates = [(x, y) for y in ys for x in xs]
    candidates += [(left, y) for y in range(0, max(1, canvas[1] - height), max(1, height // 2))]
    boxes = []
    for x, y in candidates:
        fits = 0 <= y <= canvas[1] - height
        x = max(0, min(x, canvas[0] - width))
        y = max(0, min(y, canvas[1] - height))
        place = (x, y, x + width, y + height)
        boxes.append(place)
        if fits and not any(_overlap(place, other) for other in taken):
            return place
    return min(boxes, key=lambda b: sum(_overlap(b, other) for other in taken))


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _caption(image: Image.Image, answers: Sequence[Answer], size: int) -> list[Box]:
    """A dark strip at the bottom with what was not found, and what failed; its box, or [] where all was found."""
    lines = []
    absent = [lettering.clean(a.text) for a in answers if a.status == "absent"]
    if absent:
        lines.append("not found: " + ", ".join(absent))
    lines += [
        f"failed: {lettering.clean(a.text)}" + (f" ({lettering.clean(a.reason)})" if a.reason else "")
        for a in answers
        if a.status == "failed"
    ]
    if not lines:
        return []
    size = max(10, round(size * 0.85))
    pad, step = max(3, size // 3), round(size * 1.35)
    # On a small picture the strip may not hide what was found.
    most = max(1, (image.height // 4 - 2 * pad) // step)
    if len(lines) > most:
        lines = [*lines[: most - 1], "; ".join(lines[most - 1 :])]
    top = max(0, image.height - len(lines) * step - 2 * pad)
    strip = (0, top, image.width, image.height)
    dark = Image.new("RGB", (image.width, image.height - top), (16, 16, 20))
    image.paste(Image.blend(image.crop(strip), dark, 0.78), strip)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        font = lettering.font_for(line + "…", size)
        text = lettering.cut(line, font, image.width - 2 * pad - 2)
        draw.text((pad + 1, top + pad + (number + 0.5) * step), text, font=font, fill=(255, 255, 255), anchor="lm")
    return [strip]
