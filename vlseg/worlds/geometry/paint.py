"""Ink: the pixels that draw an element, exactly, and the picture made of them.

An element's mask is its ink: the pixels whose centre lies within half a stroke of its line, dashes left out, and the
inside where it is shaded. Lines cross, so masks may overlap. Letters and paper belong to nobody.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlseg.masks.raster import raster
from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry.figures import Element, distance_to_segment

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (25, 25, 28),
    "red": (205, 35, 40),
    "blue": (30, 80, 200),
    "green": (25, 135, 60),
    "orange": (235, 130, 20),
    "purple": (125, 50, 165),
    "white": (240, 240, 238),
}


def centres(box: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w, 2) x and y of the pixel centres of a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    return np.stack(np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5), -1)


def box_of(element: Element, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) in whole pixels that holds all ink of an element, cut to the picture."""
    height, width = size
    reach = element.look.width / 2 + 1.5 + (0 if element.kind in ("segment", "polygon") else element.radius)
    points = element.points[1:2] if element.kind == "angle" else element.points
    low, high = np.floor(points.min(0) - reach), np.ceil(points.max(0) + reach)
    x0, y0 = (int(max(0, v)) for v in low)
    return x0, y0, int(min(width, high[0])), int(min(height, high[1]))


def signed_distance(element: Element, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of (h, w, 2) points to the element's line, and the place along it in pixels (for dashes)."""
    p = element.points
    if element.kind == "point":
        return np.maximum(np.linalg.norm(grid - p[0], axis=-1) - element.radius, 0), np.zeros(grid.shape[:2])
    if element.kind == "segment":
        return distance_to_segment(grid, p[0], p[1])
    if element.kind == "circle":
        away = grid - p[0]
        turn = np.arctan2(away[..., 1], away[..., 0]) + np.pi
        return np.abs(np.linalg.norm(away, axis=-1) - element.radius), turn * element.radius
    if element.kind == "polygon":
        return _outline(p, grid, True)
    if element.right:
        side = element.radius * 0.75
        arms = [(q - p[1]) / np.linalg.norm(q - p[1]) * side for q in (p[0], p[2])]
        return _outline(np.stack([p[1] + arms[0], p[1] + arms[0] + arms[1], p[1] + arms[1]]), grid, False)
    away = grid - p[1]
    inside = _between(away, p[0] - p[1], p[2] - p[1])
    arc = np.abs(np.linalg.norm(away, axis=-1) - element.radius)
    tips = [p[1] + (q - p[1]) / np.linalg.norm(q - p[1]) * element.radius for q in (p[0], p[2])]
    ends = np.minimum(*(np.linalg.norm(grid - tip, axis=-1) for tip in tips))
    return np.where(inside, arc, ends), np.arctan2(away[..., 1], away[..., 0]) * element.radius


def _outline(corners: np.ndarray, grid: np.ndarray, closed: bool) -> tuple[np.ndarray, np.ndarray]:
    ends = np.roll(corners, -1, 0) if closed else corners[1:]
    starts = corners if closed else corners[:-1]
    best, place, before = np.full(grid.shape[:2], np.inf), np.zeros(grid.shape[:2]), 0.0
    for a, b in zip(starts, ends, strict=True):
        away, along = distance_to_segment(grid, a, b)
        place = np.where(away < best, before + along, place)
        best = np.minimum(best, away)
        before += float(np.hypot(*(b - a)))
    return best, place


def _between(away: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether directions lie between the arms a and b of an angle below 180 degrees."""
    turn = a[0] * b[1] - a[1] * b[0]
    first = (a[0] * away[..., 1] - a[1] * away[..., 0]) * turn
    second = (away[..., 0] * b[1] - away[..., 1] * b[0]) * turn
    return (first >= 0) & (second >= 0)


def inside(element: Element, grid: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels that shading fills, (h, w) bool."""
    p = element.points
    if element.kind == "polygon":
        return raster([p - np.array(box[:2])], grid.shape[:2])
    if element.kind == "circle":
        return np.linalg.norm(grid - p[0], axis=-1) <= element.radius
    if element.kind == "angle":
        away = grid - p[1]
        return (np.linalg.norm(away, axis=-1) <= element.radius) & _between(away, p[0] - p[1], p[2] - p[1])
    return np.zeros(grid.shape[:2], bool)


def coverage(element: Element, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float in 0..1, how much of each pixel the stroke covers, and (h, w) bool, what shading fills."""
    grid = centres(box)
    distance, place = signed_distance(element, grid)
    half = element.look.width / 2
    stroke = np.clip(half + 0.5 - distance, 0, 1)
    if element.look.dash:
        on, off = element.look.dash
        phase = place % (on + off)
        stroke = stroke * np.clip(np.minimum(phase, on - phase) + 0.5, 0, 1)
    return stroke, inside(element, grid, box) if element.look.shaded else np.zeros(grid.shape[:2], bool)


def mask_of(element: Element, size: tuple[int, int]) -> np.ndarray:
    """The ink of an element, (H, W) bool: pixels covered at least by half."""
    box = box_of(element, size)
    x0, y0, x1, y1 = box
    mask = np.zeros(size, bool)
    if x1 > x0 and y1 > y0:
        stroke, fill = coverage(element, box)
        mask[y0:y1, x0:x1] = (stroke >= 0.5) | fill
    return mask


def draw_element(image: np.ndarray, element: Element) -> None:
    """Lay an element over an (H, W, 3) float32 picture, in place."""
    box = box_of(element, image.shape[:2])
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return
    stroke, fill = coverage(element, box)
    colour = np.array(COLOURS[element.look.colour], np.float32)
    part = image[y0:y1, x0:x1]
    part += fill[..., None] * 0.35 * (colour - part)
    part += stroke[..., None].astype(np.float32) * (colour - part)


def draw_labels(image: np.ndarray, points: dict[str, np.ndarray], elements: list[Element], dark: bool, d: Draw) -> None:
    """Write each point's letter where it stands clearest of the lines, in place. image: (H, W, 3) float32, 0..255."""
    height, width = image.shape[:2]
    side = max(9, round(min(height, width) * d.between(0.05, 0.065)))
    font = ImageFont.load_default(side)
    colour = COLOURS["white" if dark else "black"]
    lines = [e for e in elements if e.kind != "angle"]
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    taken: list[np.ndarray] = []
    for name, point in points.items():
        angles = np.arange(16) * (2 * np.pi / 16)
        spots = point + 0.95 * side * np.stack([np.cos(angles), np.sin(angles)], -1)
        room = np.min([_clear(e, spots) for e in lines], axis=0)
        for other in taken:
            room = np.minimum(room, np.linalg.norm(spots - other, axis=-1) - 0.6 * side)
        edge = np.minimum(spots, np.array([width, height]) - spots).min(-1) - 0.5 * side
        best = spots[int(np.argmax(np.minimum(room, np.maximum(edge * 4, edge))))]
        pen.text((float(best[0]), float(best[1])), name, fill=colour, font=font, anchor="mm")
        taken.append(best)
    image[:] = np.asarray(picture, np.float32)


def _clear(element: Element, spots: np.ndarray) -> np.ndarray:
    return signed_distance(element, spots[None])[0][0]
