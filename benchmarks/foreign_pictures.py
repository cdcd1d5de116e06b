"""The pictures of foreign_scenes.py: glyphs of the font, placed on painted or photographic backgrounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from foreign_nouns import Noun, apart, nouns
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 256
FONT, STRIKE = "NotoColorEmoji.ttf", 109  # the only bitmap size in that font
EXTENT, VISIBLE = (24, 110), 0.6
NEWER = "a colour bitmap font is needed: install fonts-noto-color-emoji, or give --font"
FLIPPED = ("animal", "plant", "food", "transport", "clothing", "tool", "household", "sport", "musical")  # no writing
# Hue (degrees), least saturation and value, largest value; neighbours in this list leave a gap between them.
COLOURS = {
    "red": (346, 12, 0.55, 0.45, 1.0), "orange": (20, 38, 0.65, 0.78, 1.0), "yellow": (45, 66, 0.45, 0.75, 1.0),
    "brown": (8, 42, 0.3, 0.18, 0.62), "green": (75, 165, 0.3, 0.25, 1.0), "blue": (192, 245, 0.4, 0.35, 1.0),
    "purple": (262, 300, 0.3, 0.3, 1.0), "pink": (315, 352, 0.2, 0.75, 1.0),
}  # fmt: skip


class FontError(Exception):
    """The font is missing, or has no colour bitmaps that Pillow reads."""


@dataclass
class Thing:
    """One object of a scene. box: x0, y0, x1, y1 of its visible pixels; colours: share of them in each colour."""

    noun: Noun
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    area: int = 0
    whole: int = 0
    colours: dict[str, float] = field(default_factory=dict)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def extent(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class Glyphs:
    """Bitmaps of the font, cropped; None where it has none, or only a see-through one."""

    def __init__(self, path: str | None = None) -> None:
        try:
            self.font = ImageFont.truetype(path or FONT, STRIKE)
            self.kept: dict[int, Image.Image | None] = {}
            dog = self.get(0x1F415)
        except OSError as error:
            raise FontError(f"cannot load {path or FONT}: {error}; {NEWER}") from error
        if dog is None or np.ptp(np.asarray(dog)[..., :3].astype(int), axis=2).max() < 30:
            raise FontError(f"{path or FONT} has no colour bitmaps; {NEWER}")

    def get(self, code: int) -> Image.Image | None:
        if code not in self.kept:
            sheet = Image.new("RGBA", (STRIKE * 2, STRIKE * 2))
            ImageDraw.Draw(sheet).text((STRIKE // 4, STRIKE // 4), chr(code), font=self.font, embedded_color=True)
            alpha = np.asarray(sheet)[..., 3]
            solid = (alpha >= 128).sum() >= max(1500, 0.85 * (alpha > 16).sum())
            self.kept[code] = sheet.crop(sheet.getbbox()) if solid else None
        return self.kept[code]


def sprite(glyph: Image.Image, extent: float, turn: int, flip: bool, rng: np.random.Generator) -> np.ndarray:
    """The glyph (h, w, 4) in 0..1 with its longer side at `extent`; turn: steps of hue, out of 256; flip: may be."""
    colour, alpha = glyph.convert("RGB"), glyph.getchannel("A")
    if turn:
        hsv = np.array(colour.convert("HSV"))
        hsv[..., 0] += np.uint8(turn)
        colour = Image.fromarray(hsv, "HSV").convert("RGB")
    image = Image.merge("RGBA", (*colour.split(), alpha))
    if rng.random() < 0.4 and flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.6:
        image = image.rotate(float(rng.uniform(-18, 18)), Image.Resampling.BICUBIC, expand=True)
    solid = image.getchannel("A").point(lambda v: 255 if v >= 128 else 0)
    image = image.crop(solid.getbbox())
    scale = extent / max(image.size)
    size = tuple(max(2, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32) / 255
    light, gamma = rng.uniform(0.88, 1.12), rng.uniform(0.9, 1.12)
    return np.dstack([np.clip(pixels[..., :3] ** gamma * light, 0, 1), pixels[..., 3:]])


def painted(rng: np.random.Generator) -> np.ndarray:
    """A gradient, with brush strokes or shapes over it, (SIDE, SIDE, 3) in 0..1."""
    yy, xx = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = np.clip(xx * np.cos(angle) + yy * np.sin(angle) + 0.5, 0, 1)
    if rng.random() < 0.3:
        along = np.clip(np.hypot(xx - rng.uniform(-0.4, 0.4), yy - rng.uniform(-0.4, 0.4)) * 1.4, 0, 1)
    palette = rng.uniform(0.15, 1.0) + rng.uniform(-0.22, 0.22, (6, 3)) * rng.uniform(0.3, 1.6)
    palette = np.clip(palette, 0, 1)
    image = palette[0] * (1 - along[..., None]) + palette[1] * along[..., None]
    style = rng.integers(4)
    if style:
        big = 2 * SIDE
        sheet = Image.new("RGBA", (big, big))
        draw = ImageDraw.Draw(sheet)
        for _ in range(rng.integers(6, 40) if style < 3 else rng.integers(3, 9)):
            ink = (*(int(255 * v) for v in palette[rng.integers(2, 6)]), int(rng.integers(40, 190)))
            x, y = rng.uniform(0, big, 2)
            if style < 3:  # strokes that curve
                way, bend, width = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.12), int(rng.integers(6, 70))
                line = [(x, y)]
                for _ in range(rng.integers(4, 14)):
                    way += bend
                    line.append((line[-1][0] + 28 * math.cos(way), line[-1][1] + 28 * math.sin(way)))
                draw.line(line, ink, width, joint="curve")
            else:
                corners = rng.integers(3, 7)
                spokes = np.sort(rng.uniform(0, 2 * np.pi, corners))
                far = rng.uniform(60, 330)
                draw.polygon([(x + far * math.cos(s), y + far * math.sin(s)) for s in spokes], ink)
        sheet = sheet.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 6))))
        over = np.asarray(sheet.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
        image = image * (1 - over[..., 3:]) + over[..., :3] * over[..., 3:]
    grain = rng.normal(0, 1, (SIDE // 2, SIDE // 2)).astype(np.float32)
    canvas = np.asarray(Image.fromarray(grain).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.clip(image + rng.uniform(0, 0.02) * canvas[..., None], 0, 1)


class Photos:
    """Photographic backgrounds: files of a folder, or textures of scikit-image, or none."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.files: list[Path] = []
        self.textures: list[np.ndarray] = []
        if folder is not None:
            kinds = {".jpg", ".jpeg", ".png", ".webp"}
            self.files = sorted(f for f in Path(folder).iterdir() if f.suffix.lower() in kinds)
            return
        try:
            from skimage import data

            self.textures = [data.grass(), data.gravel(), data.brick(), data.hubble_deep_field()]
        except Exception:  # not installed, or its pictures are not at hand
            self.textures = []

    def __bool__(self) -> bool:
        return bool(self.files or self.textures)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A blurred crop: what stands in the photograph must not be nameable, or an absent query would be false."""
        if self.files:
            photo = Image.open(self.files[rng.integers(len(self.files))]).convert("RGB")
        else:
            photo = Image.fromarray(self.textures[rng.integers(len(self.textures))]).convert("RGB")
        side = int(min(photo.size) * rng.uniform(0.4, 0.8))
        x, y = rng.integers(photo.width - side + 1), rng.integers(photo.height - side + 1)
        crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
        blur = rng.uniform(4, 8) if self.files else rng.uniform(0.5, 4)
        pixels = np.asarray(crop.filter(ImageFilter.GaussianBlur(float(blur))), np.float32) / 255
        tint = 1.0 if self.files else rng.uniform(0.7, 1.0, 3)
        return np.clip(pixels * tint * rng.uniform(0.8, 1.1), 0, 1)


def shares(pixels: np.ndarray) -> dict[str, float]:
    """Share of the pixels (n, 3) uint8 in each colour; white, grey, black and what lies between two are in none."""
    hue, sat, val = (np.asarray(Image.fromarray(pixels[None]).convert("HSV"), float)[0] / 255).T
    hue = hue * 360
    found = {}
    for name, (low, high, least, dark, light) in COLOURS.items():
        turned = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
        found[name] = float((turned & (sat >= least) & (val >= dark) & (val <= light)).mean())
    grey = sat <= 0.12
    found["white"] = float((grey & (val > 0.85)).mean())
    found["gray"] = float((grey & (val > 0.42) & (val < 0.72)).mean())
    found["black"] = float((val < 0.22).mean())
    return found


def cast(count: int, glyphs: Glyphs, rng: np.random.Generator) -> list[Noun]:
    """`count` nouns, most scenes with two or three of a kind, all kinds apart from each other."""
    patterns: list[list[int]] = [[2], [2, 2], [3], [3, 2], [2], []]
    groups = list(patterns[rng.integers(len(patterns))])
    while sum(groups) > count:
        groups.pop()
    groups += [1] * (count - sum(groups))
    chosen: list[Noun] = []
    found: list[Noun] = []
    for copies in groups:
        while True:
            noun = nouns()[rng.integers(len(nouns()))]
            if copies > 1 and not noun.countable:
                continue
            if all(apart(noun, other) for other in chosen) and glyphs.get(noun.code) is not None:
                break
        chosen.append(noun)
        found += [noun] * copies
    return found


def place(
    cast_: Sequence[Noun], glyphs: Glyphs, rng: np.random.Generator
) -> tuple[np.ndarray, list[Thing], list[tuple[np.ndarray, int, int]]] | None:
    """ids, things and their sprites with (x, y), back to front; None if they do not fit."""
    low, high = EXTENT
    extents = np.exp(rng.uniform(math.log(low + 1), math.log(high), len(cast_)))
    order = [int(i) for i in rng.permutation(len(cast_))]
    if rng.random() < 0.7:
        order.sort(key=lambda i: -extents[i])
    ids = np.zeros((SIDE, SIDE), np.uint8)
    things = [Thing(noun) for noun in cast_]
    drawn: list[tuple[np.ndarray, int, int]] = []
    for i in order:
        glyph = glyphs.get(cast_[i].code)
        assert glyph is not None
        twins = sum(n is cast_[i] for n in cast_) > 1
        turn = int(rng.integers(70, 187)) if twins and rng.random() < 0.3 else 0
        picture = sprite(glyph, float(extents[i]), turn, cast_[i].family.startswith(FLIPPED), rng)
        solid = picture[..., 3] >= 0.5
        h, w = solid.shape
        crowd = rng.random() < 0.25  # may cover a part of others
        for _ in range(60):
            x, y = int(rng.integers(2, SIDE - w - 1)), int(rng.integers(2, SIDE - h - 1))
            under = ids[y : y + h, x : x + w]
            hit = np.bincount(under[solid], minlength=len(cast_) + 1)[1:]
            if not crowd and hit.any():
                continue
            left = [t.area - n >= (VISIBLE + 0.05) * t.whole for t, n in zip(things, hit, strict=True) if n]
            if all(left):
                break
        else:
            return None
        under[solid] = i + 1
        for thing, n in zip(things, hit, strict=True):
            thing.area -= int(n)
        things[i].whole = things[i].area = int(solid.sum())
        drawn.append((picture, x, y))
    for i, thing in enumerate(things):
        ys, xs = np.nonzero(ids == i + 1)
        thing.box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        if not low <= thing.extent <= high:
            return None
    return ids, things, drawn


def paint(back: np.ndarray, drawn: Sequence[tuple[np.ndarray, int, int]], rng: np.random.Generator) -> np.ndarray:
    """The picture, uint8."""
    image = back.astype(np.float32)
    shadow = rng.uniform(0.2, 0.45) if rng.random() < 0.35 else 0.0
    for picture, x, y in drawn:
        h, w = picture.shape[:2]
        if shadow:
            cast_ = Image.new("L", (SIDE, SIDE))
            cast_.paste(Image.fromarray((picture[..., 3] * 255).astype(np.uint8)), (x + 2, y + 3))
            dark = np.asarray(cast_.filter(ImageFilter.GaussianBlur(3)), np.float32) / 255
            image *= 1 - shadow * dark[..., None]
        part = image[y : y + h, x : x + w]
        alpha = picture[..., 3:]
        part *= 1 - alpha
        part += picture[..., :3] * alpha
    image += rng.normal(0, 1, image.shape) * rng.uniform(0, 0.012)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
