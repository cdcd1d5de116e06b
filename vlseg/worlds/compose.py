"""Draw a cast onto a background: sizes, places, occlusion, styles; ids say whose pixel is visible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlseg.worlds import styles
from vlseg.worlds.atlas import LEVELS, entries, sprite
from vlseg.worlds.colours import NAMES
from vlseg.worlds.draw import Draw

VISIBLE = 0.45
LAYOUTS = ("free", "apart", "row", "column", "grid")
# Mirrored or upside down, these would be another glyph.
DIRECTED = ("chart increasing", "chart decreasing", "outbox tray", "inbox tray", "magnifying glass tilted left")
COLOUR_NAMES = frozenset(NAMES) | {"grey", "golden", "silver"}


@dataclass(slots=True)
class Placed:
    """One drawn object. rgb ``(h, w, 3) float32``, alpha ``(h, w) float32``; x, y its corner in the image; pixels."""

    glyph: int
    rgb: np.ndarray
    alpha: np.ndarray
    x: int
    y: int
    style: str
    rotation: float
    flipped: bool
    full_area: int


def names_a_colour(glyph: int) -> bool:
    """Whether the glyph's own name says a colour ("green book"), so that its hues must stay."""
    return any(word in COLOUR_NAMES for word in entries()[glyph]["name"].split())


def drawn(glyph: int, extent: float, style: str, strong: bool, d: Draw) -> Placed:
    """The glyph with its longest side ``extent`` pixels before turning, in ``style``; at (0, 0)."""
    turn = d.between(-20, 20) if d.chance(0.85) else d.between(-180, 180)
    if d.chance(0.25):
        turn = 0.0
    flip = d.chance(0.5)
    if entries()[glyph]["name"] in DIRECTED:
        turn, flip = max(-20.0, min(20.0, turn)), False
    width, height = entries()[glyph]["size"]
    scale = extent / max(width, height)
    level = 0
    while level + 1 < LEVELS and scale * 2 ** (level + 1) <= 1.05:
        level += 1
    source = sprite(glyph, level)
    sx = sy = scale * 2**level
    if d.chance(0.3):
        stretch = d.between(0.85, 1.18)
        sx, sy = sx * stretch, sy / stretch
    a = np.deg2rad(turn)
    cos, sin = float(np.cos(a)), float(np.sin(a))
    full_w, full_h = source.width * sx, source.height * sy
    rim = 2 + (int(0.05 * extent) if style in ("sticker", "pixel") else 0)
    w = int(abs(cos) * full_w + abs(sin) * full_h) + 1 + 2 * rim
    h = int(abs(sin) * full_w + abs(cos) * full_h) + 1 + 2 * rim
    ix, iy = (-1 / sx if flip else 1 / sx), 1 / sy
    m = (cos * ix, sin * ix, -sin * iy, cos * iy)
    cx, cy = w / 2 + d.between(-0.5, 0.5), h / 2 + d.between(-0.5, 0.5)
    shift_x = source.width / 2 - m[0] * cx - m[1] * cy
    shift_y = source.height / 2 - m[2] * cx - m[3] * cy
    data = (m[0], m[1], shift_x, m[2], m[3], shift_y)
    turned = np.asarray(source.transform((w, h), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR), np.float32)
    alpha = turned[..., 3] * np.float32(1 / 255)
    rgb = turned[..., :3] / np.maximum(alpha, np.float32(0.02))[..., None]
    rgb, alpha = styles.apply(style, np.minimum(rgb, 255), alpha, d, strong)
    return Placed(glyph, rgb, alpha, 0, 0, style, turn, flip, int((alpha >= 0.5).sum()))


class Places:
    """Proposes centres (x, y in pixels) for one layout."""

    def __init__(self, size: tuple[int, int], count: int, d: Draw) -> None:
        self.h, self.w = size
        self.layout = d.weighted(LAYOUTS, (0.42, 0.26, 0.12, 0.07, 0.13))
        self.beside = 0.3 if d.chance(0.5) else 0.0
        columns = max(1, round((count * self.w / self.h) ** 0.5))
        rows = -(-count // columns)
        if self.layout == "row":
            columns, rows = count, 1
        elif self.layout == "column":
            columns, rows = 1, count
        self.cells = d.shuffled([((i + 0.5) / columns, (j + 0.5) / rows) for i in range(columns) for j in range(rows)])
        self.line = d.between(0.3, 0.7)

    def propose(self, index: int, shape: tuple[int, int], done: list[Placed], d: Draw) -> tuple[int, int]:
        """The corner (x, y) of an object of ``shape`` (h, w)."""
        h, w = shape
        if done and self.beside and d.chance(self.beside):
            near = d.choice(done)
            gap = d.between(0.9, 1.25)
            dx, dy = (near.alpha.shape[1] + w) / 2 * gap, (near.alpha.shape[0] + h) / 2 * gap
            x0, y0 = near.x + near.alpha.shape[1] / 2, near.y + near.alpha.shape[0] / 2
            wobble = d.between(-0.25, 0.25)
            if d.chance(0.6):
                cx, cy = x0 + d.choice((-dx, dx)), y0 + wobble * dy
            else:
                cx, cy = x0 + wobble * dx, y0 + d.choice((-dy, dy))
        elif self.layout in ("row", "column", "grid"):
            u, v = self.cells[index % len(self.cells)]
            if self.layout == "row":
                v = self.line
            elif self.layout == "column":
                u = self.line
            cx, cy = (u + d.between(-0.05, 0.05)) * self.w, (v + d.between(-0.07, 0.07)) * self.h
        else:
            cx, cy = d.unit() * self.w, d.unit() * self.h
        beyond = 0.22 if d.chance(0.1) else 0.0
        low_x, low_y = -beyond * w, -beyond * h
        x = min(max(cx - w / 2, low_x), self.w - w - low_x)
        y = min(max(cy - h / 2, low_y), self.h - h - low_y)
        return round(x), round(y)


def window(item: Placed, size: tuple[int, int]) -> tuple[slice, slice, slice, slice]:
    """Slices (image rows, image columns, sprite rows, sprite columns) of the part inside the image."""
    h, w = item.alpha.shape
    y0, x0, y1, x1 = max(item.y, 0), max(item.x, 0), min(item.y + h, size[0]), min(item.x + w, size[1])
    return slice(y0, y1), slice(x0, x1), slice(y0 - item.y, y1 - item.y), slice(x0 - item.x, x1 - item.x)


def try_place(
    item: Placed, ids: np.ndarray, visible: list[int], full: list[int], least: int, most: list[float]
) -> bool:
    """Lay ``item`` over ``ids`` if every earlier object stays visible enough; ``most``: the largest share of each."""
    rows, columns, sr, sc = window(item, ids.shape)
    inside = item.alpha[sr, sc] >= 0.5
    shown = int(np.count_nonzero(inside))
    if shown < least or shown < 0.7 * item.full_area:
        return False
    region = ids[rows, columns]
    covered = np.bincount(region[inside], minlength=len(visible) + 1).tolist()
    for k in range(len(visible)):
        lost = covered[k + 1]
        if lost and (visible[k] - lost < max(VISIBLE * full[k], least) or lost > most[k] * full[k]):
            return False
    for k in range(len(visible)):
        visible[k] -= covered[k + 1]
    visible.append(shown)
    full.append(item.full_area)
    region[inside] = len(visible)
    return True


def scene_styles(world: str, glyphs: list[int], d: Draw) -> list[str]:
    """A style per object: often one for the whole scene, often none."""
    if world == "held_out":
        return [d.choice(tuple(styles.HELD_OUT)) for _ in glyphs]
    if world == "plain":
        return ["original"] * len(glyphs)
    names = tuple(styles.TRAIN)
    weights = [weight for _, weight in styles.TRAIN.values()]
    shared = d.weighted(names, weights)
    share = d.weighted((0.0, 0.3, 0.5, 1.0), (0.34, 0.2, 0.2, 0.26))
    mixed = d.chance(0.5)
    out = []
    varied = d.chance(0.5)
    for glyph in glyphs:
        style = "original"
        if varied and glyphs.count(glyph) > 1:
            # Several of a kind in several colours, so that colour words are needed to tell them apart.
            style = d.weighted(("paint", "hue", "original"), (0.6, 0.2, 0.2))
            if names_a_colour(glyph):
                style = "original"
        elif d.chance(share):
            style = d.weighted(names, weights) if mixed else shared
            if names_a_colour(glyph) and style not in styles.KEEP_HUE:
                style = "original"
        out.append(style)
    return out


def extents(count: int, size: tuple[int, int], d: Draw) -> list[float]:
    """Longest sides in pixels, log-uniform, from 0.09 to 0.7 of the short side; crowds are smaller."""
    short = min(size)
    high = min(0.7, 1.15 / count**0.55 + (0.1 if count > 1 else 0))
    low = max(0.09, 0.35 * high * d.between(0.35, 1.0)) if d.chance(0.7) else 0.09
    if d.chance(0.3):
        low = max(low, 0.6 * high)
    out = [short * d.log_between(low, high) for _ in range(count)]
    if count > 1 and d.chance(0.35):
        # One clearly big, one clearly small; the cast begins with its repeated noun.
        out[0], out[1] = short * high * d.between(0.8, 1.0), short * max(0.09, high * d.between(0.25, 0.45))
    return out


def compose(image: np.ndarray, glyphs: list[int], world: str, d: Draw) -> tuple[np.ndarray, list[Placed], list[float]]:
    """Draw ``glyphs`` into ``image`` ``(H, W, 3) float32`` in place, back to front.

    Returns ids ``(H, W) uint8``, the objects that found a place, and their extents over the short side.
    """
    size = image.shape[0], image.shape[1]
    ids = np.zeros(size, np.uint8)
    sizes = extents(len(glyphs), size, d)
    names = scene_styles(world, glyphs, d)
    shade = d.below(4) + 2 if d.chance(0.12) else 0
    places = Places(size, len(glyphs), d)
    least = max(16, int(0.0011 * size[0] * size[1]))
    most = 0.5 if places.layout == "free" else 0.12
    done: list[Placed] = []
    kept: list[float] = []
    visible: list[int] = []
    full: list[int] = []
    for index, glyph in enumerate(glyphs):
        extent = sizes[index]
        for attempt in range(2):
            item = drawn(glyph, extent, names[index], not names_a_colour(glyph), d)
            if _settle(item, index, places, ids, visible, full, least, most, done, d):
                kept.append(extent / min(size))
                break
            extent = max(extent * 0.65, 0.09 * min(size)) if attempt == 0 else extent
    for item in done:
        rows, columns, sr, sc = window(item, size)
        if shade and rows.stop + shade < size[0] and columns.stop + shade < size[1]:
            below = image[rows.start + shade : rows.stop + shade, columns.start + shade : columns.stop + shade]
            below *= 1 - np.float32(0.4) * item.alpha[sr, sc, None]
        region, cover = image[rows, columns], item.alpha[sr, sc, None]
        difference = (item.rgb[sr, sc] - region) * cover
        if float(np.abs(difference[::2, ::2]).mean()) < 16 * float(cover[::2, ::2].mean()):
            # Nobody could find it: make it darker on light ground, lighter on dark ground.
            change = -70 if float(region[::4, ::4].mean()) > 120 else 70
            difference = (np.clip(item.rgb[sr, sc] + change, 0, 255) - region) * cover
        region += difference
    return ids, done, kept


def _settle(
    item: Placed, index: int, places: Places, ids: np.ndarray, visible: list[int], full: list[int], least: int,
    most: float, done: list[Placed], d: Draw,
) -> bool:  # fmt: skip
    # Two of a kind must stay two to the eye.
    bounds = [min(most, 0.08) if other.glyph == item.glyph else most for other in done]
    for _ in range(7):
        item.x, item.y = places.propose(index, item.alpha.shape, done, d)
        if try_place(item, ids, visible, full, least, bounds):
            done.append(item)
            return True
    return False
