"""Backgrounds: a pool of base pictures, each drawn once from its number, then cut, turned and re-coloured per scene."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlseg.worlds.atlas import ASSETS
from vlseg.worlds.draw import Draw
from vlseg.worlds.pigment import linear, vivid

SIDE = 256
POOL = 360
PAINTED = ("strokes", "shapes", "leaves", "cloudy", "spectrum", "stripes", "checks", "bands", "mosaic", "scribble")


def _rgb(d: Draw) -> tuple[int, int, int]:
    colour = vivid(d, True if d.chance(0.5) else None)
    return int(colour[0]), int(colour[1]), int(colour[2])


def _near(d: Draw, base: tuple[int, int, int], spread: float) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, c + d.between(-spread, spread)))) for c in base)
    return r, g, b


def _palette(d: Draw) -> list[tuple[int, int, int]]:
    base = _rgb(d)
    if d.chance(0.5):
        spread = d.between(15, 70)
        return [_near(d, base, spread) for _ in range(6)]
    return [_rgb(d) for _ in range(d.below(4) + 2)]


def _strokes(d: Draw) -> Image.Image:
    colours = _palette(d)
    picture = Image.new("RGB", (SIDE, SIDE), colours[0])
    pen = ImageDraw.Draw(picture)
    angle, width = d.between(0, 6.28), d.between(4, 26)
    for _ in range(d.below(140) + 60):
        x, y, turn = d.between(-20, SIDE + 20), d.between(-20, SIDE + 20), angle + d.between(-0.6, 0.6)
        length = d.between(20, 110)
        end = (x + length * np.cos(turn), y + length * np.sin(turn))
        pen.line([(x, y), end], fill=_near(d, d.choice(colours), 18), width=max(1, int(width * d.between(0.4, 1.2))))
    return picture.filter(ImageFilter.GaussianBlur(d.between(0.3, 1.6)))


def _polygon(d: Draw, x: float, y: float, r: float) -> list[tuple[float, float]]:
    corners, turn = d.below(5) + 3, d.between(0, 6.28)
    angles = [turn + 6.2832 * k / corners + d.between(-0.25, 0.25) for k in range(corners)]
    return [(x + r * d.between(0.6, 1.1) * np.cos(a), y + r * d.between(0.6, 1.1) * np.sin(a)) for a in angles]


def _shapes(d: Draw) -> Image.Image:
    colours = _palette(d)
    picture = Image.new("RGB", (SIDE, SIDE), colours[0])
    pen = ImageDraw.Draw(picture)
    for _ in range(d.below(50) + 8):
        x, y, r = d.between(0, SIDE), d.between(0, SIDE), d.log_between(6, 90)
        fill = _near(d, d.choice(colours), 20)
        if d.chance(0.4):
            pen.ellipse([x - r, y - r * 0.8, x + r, y + r * 0.8], fill=fill)
        else:
            pen.polygon(_polygon(d, x, y, r), fill=fill)
    return picture


def _leaves(d: Draw) -> Image.Image:
    colours = _palette(d)
    picture = Image.new("RGB", (SIDE, SIDE), colours[0])
    pen = ImageDraw.Draw(picture)
    for k in range(420):
        r = max(3.0, 60 * (1 - k / 420) ** 1.5 * d.between(0.4, 1.3) + 3)
        x, y = d.between(0, SIDE), d.between(0, SIDE)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=_near(d, d.choice(colours), 35))
    return picture.filter(ImageFilter.GaussianBlur(d.between(0.2, 1.2)))


def _noise_layers(d: Draw, roughness: float) -> np.ndarray:
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(7):
        cells = 2 << octave
        layer = Image.fromarray(d.rng.standard_normal((cells, cells), dtype=np.float32))
        total += np.asarray(layer.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) * np.float32(roughness**octave)
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _cloudy(d: Draw) -> Image.Image:
    field = _noise_layers(d, d.between(0.4, 0.85))[..., None]
    colours = [np.array(c, np.float32) for c in _palette(d)]
    out = colours[0] + (colours[1] - colours[0]) * field
    if d.chance(0.4):
        second = _noise_layers(d, d.between(0.4, 0.7))[..., None]
        out += (colours[-1] - out) * np.clip(second * 2 - 0.8, 0, 1)
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def _spectrum(d: Draw) -> Image.Image:
    """Colour noise whose power falls with frequency, as in photographs."""
    f = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    f[0, 0] = 1
    white = d.rng.standard_normal((3, SIDE, SIDE), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(white) / f ** d.between(0.8, 1.7), s=(SIDE, SIDE))
    field /= field.std(axis=(1, 2), keepdims=True)
    mix = np.eye(3) * d.between(0.2, 1.0) + 0.8
    base = np.array(_rgb(d), np.float32)
    out = np.einsum("ij,jhw->hwi", mix, field) * d.between(10, 36) + base
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def _stripes(d: Draw) -> Image.Image:
    colours = np.array(_palette(d), np.float32)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle, width = d.choice((0.0, 1.5708, d.between(0, 3.14))), d.log_between(5, 48)
    band = np.floor((x * np.cos(angle) + y * np.sin(angle)) / width).astype(int) % len(colours)
    return Image.fromarray(colours[band].astype(np.uint8))


def _checks(d: Draw) -> Image.Image:
    colours = np.array(_palette(d)[:2], np.float32)
    y, x = np.mgrid[:SIDE, :SIDE]
    size = int(d.log_between(6, 64))
    return Image.fromarray(colours[(x // size + y // size) % 2].astype(np.uint8))


def _bands(d: Draw) -> Image.Image:
    """Sky over ground: two or three gradients with a wavy border."""
    top, middle, ground = (np.array(c, np.float32) for c in (_rgb(d), _rgb(d), _rgb(d)))
    y, x = (np.mgrid[:SIDE, :SIDE] / SIDE).astype(np.float32)
    horizon = d.between(0.35, 0.8) + d.between(0, 0.06) * np.sin(x * d.between(4, 16) + d.between(0, 6))
    out = top + (middle - top) * np.clip(y / horizon, 0, 1)[..., None]
    floor = (ground * (0.75 + 0.5 * y[..., None])) + 10 * d.rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32)
    out = np.where((y > horizon)[..., None], floor, out)
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def _mosaic(d: Draw) -> Image.Image:
    """Tiles with joints: bricks, paving, planks."""
    colours, joint = _palette(d), _rgb(d)
    picture = Image.new("RGB", (SIDE, SIDE), joint)
    pen = ImageDraw.Draw(picture)
    tall, wide, gap = int(d.between(10, 60)), int(d.between(16, 130)), d.below(4) + 1
    for row in range(0, SIDE, tall):
        start = -d.below(wide)
        for column in range(start, SIDE, wide):
            box = [column, row, max(column, column + wide - gap), max(row, row + tall - gap)]
            pen.rectangle(box, fill=_near(d, colours[0], 28))
    grainy = np.asarray(picture, np.float32) + 9 * d.rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32)
    return Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8))


def _scribble(d: Draw) -> Image.Image:
    colours = _palette(d)
    picture = Image.new("RGB", (SIDE, SIDE), colours[0])
    pen = ImageDraw.Draw(picture)
    for _ in range(d.below(12) + 4):
        x, y, points = d.between(0, SIDE), d.between(0, SIDE), []
        for _ in range(18):
            x, y = x + d.between(-45, 45), y + d.between(-45, 45)
            points.append((x, y))
        pen.line(points, fill=_near(d, d.choice(colours), 25), width=d.below(7) + 1, joint="curve")
    return picture


DRAWN = {
    "strokes": _strokes,
    "shapes": _shapes,
    "leaves": _leaves,
    "cloudy": _cloudy,
    "spectrum": _spectrum,
    "stripes": _stripes,
    "checks": _checks,
    "bands": _bands,
    "mosaic": _mosaic,
    "scribble": _scribble,
}


@lru_cache(maxsize=POOL)
def painted(number: int) -> Image.Image:
    """The painted base picture ``number``, SIDE x SIDE RGB, fully determined by its number."""
    return DRAWN[PAINTED[number % len(PAINTED)]](Draw(77, number))


# What a person might see in a background, by glyph name: such a noun is not asked for there.
BACKDROP: dict[str, tuple[str, ...]] = {
    "gravel": ("rock",),
    "sand": ("rock",),
    "brick": ("brick", "wood"),
    "mosaic": ("brick", "wood"),
    "wood": ("wood",),
    "grass": ("herb", "seedling", "sheaf of rice", "fallen leaf", "maple leaf"),
    "lawn": ("herb", "flag in hole"),
    "leaves-dark": ("herb", "fallen leaf", "maple leaf", "potted plant"),
    "leaves-far": ("herb", "fallen leaf", "potted plant"),
    "sky": ("cloud",),
    "tissue": ("microbe",),
    "veins": ("sun",),
    "leaves": ("balloon",),
    "bands": ("mountain",),
}


@cache
def photos() -> list[tuple[str, Image.Image]]:
    """The photographic base pictures, RGB, with their names."""
    return [(path.stem, Image.open(path).convert("RGB")) for path in sorted((ASSETS / "photos").glob("*.jpg"))]


def seen_in(background: str) -> frozenset[str]:
    """The glyph names that ``background`` (as in ``Scene.background``) might be taken to show."""
    out: set[str] = set()
    for part in background.split(":", 1)[-1].split("+"):
        for begin, names in BACKDROP.items():
            if part.startswith(begin):
                out.update(names)
    return frozenset(out)


def _base(photo: bool, d: Draw) -> tuple[str, Image.Image]:
    """A base picture and its name."""
    if photo:
        return d.choice(photos())
    number = d.below(POOL)
    return PAINTED[number % len(PAINTED)], painted(number)


def _cut(base: Image.Image, size: tuple[int, int], d: Draw) -> np.ndarray:
    """A random window of ``base`` resized to ``size`` (H, W), maybe mirrored or turned: ``(H, W, 3) uint8``."""
    h, w = size
    width, height = base.size
    scale = min(width / w, height / h) * d.between(0.35, 1.0)
    cw, ch = w * scale, h * scale
    x, y = d.between(0, width - cw), d.between(0, height - ch)
    out = np.asarray(base.resize((w, h), Image.Resampling.BILINEAR, box=(x, y, x + cw, y + ch)))
    if d.chance(0.5):
        out = out[:, ::-1]
    if d.chance(0.2):
        out = out[::-1]
    if h == w and d.chance(0.15):
        out = out.transpose(1, 0, 2)
    return out


def gradient(size: tuple[int, int], d: Draw) -> np.ndarray:
    """A linear ramp between two colours, ``(H, W, 3) float32``."""
    h, w = size
    angle = d.between(0, 6.2832)
    y = np.linspace(-0.5, 0.5, h, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, w, dtype=np.float32)[None]
    ramp = np.clip(0.5 + (x * np.cos(angle) + y * np.sin(angle)) * d.between(0.5, 1.2), 0, 1).astype(np.float32)
    first, second = np.array(_rgb(d), np.float32), np.array(_rgb(d), np.float32)
    return first + (second - first) * ramp[..., None]


def background(size: tuple[int, int], d: Draw) -> tuple[np.ndarray, str]:
    """A background ``(H, W, 3) float32`` in 0–255 and the name of its kind."""
    h, w = size
    kind = d.weighted(("plain", "gradient", "painted", "photo", "blend"), (0.11, 0.11, 0.36, 0.3, 0.12))
    if kind == "plain":
        colour = (
            np.array(_rgb(d), np.float32) if d.chance(0.75) else np.full(3, d.choice((255.0, 245.0, 20.0)), np.float32)
        )
        return np.broadcast_to(colour, (h, w, 3)).copy(), kind
    if kind == "gradient":
        return gradient(size, d), kind
    name, picture = _base(kind == "photo" or (kind == "blend" and d.chance(0.6)), d)
    out = _cut(picture, size, d)
    if kind == "blend":
        other_name, other = _base(d.chance(0.7), d)
        share = np.float32(d.between(0.25, 0.75))
        return out * share + _cut(other, size, d) * (1 - share), f"{kind}:{name}+{other_name}"
    turn = d.between(-0.4, 0.4) if kind == "photo" and d.chance(0.7) else d.between(0, 6.28)
    if d.chance(0.6):
        changed = linear(out.astype(np.float32), turn, d.between(0.5, 1.3), d.between(0.7, 1.2), d.between(-25, 30))
        return np.clip(changed, 0, 255, out=changed), f"{kind}:{name}"
    return out.astype(np.float32), f"{kind}:{name}"
