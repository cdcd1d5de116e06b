"""Drawing styles: the same object as another artist would draw it.

A style maps ``(rgb (h, w, 3) float32 0–255, alpha (h, w) float32 0–1, draw)`` to the same pair.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from vlseg.worlds.draw import Draw
from vlseg.worlds.pigment import FIELD, blurred, edges, grain, grid, linear, luma, stretched, vivid, waves

Drawn = tuple[np.ndarray, np.ndarray]
Style = Callable[[np.ndarray, np.ndarray, Draw], Drawn]


def jitter(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """The everyday change of colour and light."""
    return linear(rgb, d.between(-0.2, 0.2), d.between(0.7, 1.25), d.between(0.75, 1.15), d.between(-12, 20)), alpha


def hue_turn(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """All hues turned."""
    return linear(rgb, d.between(0.6, 5.7), d.between(0.8, 1.3), d.between(0.85, 1.1), 0), alpha


# Saturated paints that their words name without doubt, with their share.
PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (214, 28, 30),
    "orange": (246, 134, 18),
    "yellow": (248, 218, 32),
    "green": (40, 158, 52),
    "blue": (32, 92, 214),
    "purple": (128, 40, 178),
    "pink": (246, 108, 184),
    "brown": (124, 74, 34),
    "black": (22, 22, 25),
    "white": (246, 246, 246),
    "gray": (162, 162, 164),
}


def paint(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """The object in shades of one nameable colour."""
    light = stretched(rgb, alpha)[..., None]
    colour = np.array(PAINTS[d.choice(tuple(PAINTS))], np.float32) * np.float32(d.between(0.93, 1.05))
    low = np.float32(d.between(0.5, 0.75))
    shade = colour * (low + (1 - low) * np.minimum(light * 1.3, 1))
    glint = np.maximum(light - 0.85, 0) * np.float32(d.between(0.5, 2.5))
    return shade + (255 - shade) * glint, alpha


def gray(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Black and white, or sepia."""
    light = luma(rgb)[..., None] * np.float32(d.between(0.8, 1.1))
    tone = np.array([1.08, 0.95, 0.72], np.float32) if d.chance(0.35) else np.ones(3, np.float32)
    return light * tone, alpha


def poster(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Flat areas of few tones."""
    step = np.float32(d.choice((64.0, 85.0, 127.0)))
    return np.round(linear(rgb, d.between(-0.4, 0.4), 1.25, 1.0, 0) / step) * step, alpha


def sketch(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """A line drawing: ink on paper, sometimes the colours faintly left."""
    lines = edges(luma(rgb)) / d.between(18, 45) + 1.6 * edges(alpha)
    if d.chance(0.5):
        lines = np.maximum(lines, np.roll(lines, 1, 1))
    lines = np.clip(lines, 0, 1)[..., None]
    paper, ink = vivid(d, True), vivid(d, False)
    if d.chance(0.5):
        paper = np.full(3, 250, np.float32)
    if d.chance(0.2):
        paper, ink = ink, paper
    body = paper + np.float32(d.choice((0.0, 0.0, 0.25, 0.5))) * (rgb - paper)
    return body + (ink - body) * lines, alpha


def two_tone(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """A stencil: every pixel one of two colours."""
    light = stretched(rgb, alpha)
    cut = np.clip((light - d.between(0.35, 0.65)) * 12 + 0.5, 0, 1)[..., None]
    dark, bright = vivid(d, False), vivid(d, True)
    return dark + (bright - dark) * cut, alpha


def duotone(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Lightness mapped to a ramp between two colours."""
    dark, bright = vivid(d, False), vivid(d, True)
    return dark + (bright - dark) * stretched(rgb, alpha)[..., None], alpha


def textured(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Grain, stripes, checks or dots printed on the object."""
    shape = alpha.shape
    period = d.between(4, max(5.0, 0.25 * max(shape)))
    kind = d.below(4)
    if kind == 0:
        print_ = np.clip(grain(shape, d), -2, 2) * 0.5
    elif kind == 1:
        print_ = waves(shape, d, period)
    elif kind == 2:
        print_ = np.sign(waves(shape, d, period) * waves(shape, d, period))
    else:
        print_ = np.clip((waves(shape, d, period) + waves(shape, d, period)) * 2, -1, 1)
    strength = np.float32(d.between(0.15, 0.4))
    return rgb * (1 + strength * print_[..., None] - strength / 2), alpha


def watercolour(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Colours run, pale inside and dark at the rim."""
    radius = max(0.6, 0.025 * max(alpha.shape))
    soft = blurred(rgb, radius)
    rim = np.clip((alpha * 255 - blurred(alpha * 255, 2 * radius)) / 90, 0, 1)[..., None]
    pale = np.float32(d.between(0.15, 0.4))
    wash = soft + (255 - soft) * pale
    return (wash + 9 * grain(alpha.shape, d)[..., None]) * (1 - np.float32(0.35) * rim), alpha


def pixelated(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Blocks of one colour; the outline turns blocky too."""
    h, w = alpha.shape
    block = max(2, round(max(h, w) / d.between(13, 26)))
    size = (max(1, -(-w // block)), max(1, -(-h // block)))
    stack = np.dstack([rgb * alpha[..., None], alpha * 255])
    small = Image.fromarray(np.clip(stack, 0, 255).astype(np.uint8), "RGBa").resize(size, Image.Resampling.BOX)
    big = np.asarray(small, np.float32).repeat(block, 0).repeat(block, 1)[:h, :w]
    cover = big[..., 3] / 255
    return big[..., :3] / np.maximum(cover, 0.05)[..., None], (cover > 0.45).astype(np.float32)


def sticker(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """A thick outline around the object, which belongs to it."""
    reach = 2 * max(1, min(4, round(max(alpha.shape) * d.between(0.02, 0.045)))) + 1
    solid = Image.fromarray((alpha * 255).astype(np.uint8))
    grown = np.asarray(solid.filter(ImageFilter.MaxFilter(reach)), np.float32) / 255
    line = np.full(3, 250, np.float32) if d.chance(0.6) else vivid(d, False)
    return line + (rgb - line) * alpha[..., None], grown


def outlined(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Comic ink: dark lines on colour."""
    lines = np.clip(edges(luma(rgb)) / d.between(40, 70) + 2.2 * edges(alpha), 0, 1)[..., None]
    flat = np.round(linear(rgb, d.between(-0.5, 0.5), 1.2, 1.0, 8) / 42) * 42
    return flat * (1 - lines) + 20 * lines, alpha


def inverted(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Light and dark exchanged, hues kept (or all channels inverted)."""
    if d.chance(0.5):
        return 255 - rgb, alpha
    light = luma(rgb)[..., None]
    return rgb + (255 - 2 * light), alpha


def halftone(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Printed dots, denser where the object is dark."""
    period = max(3.0, max(alpha.shape) / d.between(14, 24))
    y, x = grid()
    h, w = (min(n, FIELD) for n in alpha.shape)
    if alpha.shape != (h, w):
        return gray(rgb, alpha, d)
    k = np.float32(2 * np.pi / period)
    screen = (np.sin(k * (x[:h, :w] + y[:h, :w])) * np.sin(k * (x[:h, :w] - y[:h, :w]))) * 0.5 + 0.5
    ink = np.clip((screen - stretched(rgb, alpha) + 0.1) * 5 + 0.5, 0, 1)[..., None]
    paper = np.full(3, 245, np.float32) if d.chance(0.5) else vivid(d, True)
    colour = vivid(d, False) if d.chance(0.6) else rgb * np.float32(0.55)
    return paper + (colour - paper) * ink, alpha


def crayon(rgb: np.ndarray, alpha: np.ndarray, d: Draw) -> Drawn:
    """Held out of training: few crayon colours laid down in hatching strokes, with rough edges and bare paper."""
    tones = np.round(linear(rgb, 0, 1.4, 1.0, 10) / 72) * 72
    period = max(3.0, 0.05 * max(alpha.shape))
    rough = grain(alpha.shape, d)
    stroke = np.clip((waves(alpha.shape, d, period) + 0.55 * rough + 0.45) * 1.6, 0, 1)[..., None]
    paper = np.array([250, 247, 238], np.float32)
    drawn = paper + (tones - paper) * (0.35 + 0.65 * stroke)
    lines = np.clip(edges(luma(rgb)) / 45, 0, 1)[..., None] * np.clip(rough + 1, 0, 1)[..., None]
    soft = blurred(alpha * 255, max(0.8, 0.012 * max(alpha.shape))) / 255
    ragged = np.clip((soft - 0.5 + 0.12 * rough) * 5 + 0.5, 0, 1)
    return drawn * (1 - 0.7 * lines), ragged


TRAIN: dict[str, tuple[Style, float]] = {
    "hue": (hue_turn, 1.4),
    "paint": (paint, 2.0),
    "gray": (gray, 1.0),
    "poster": (poster, 0.8),
    "sketch": (sketch, 1.2),
    "two-tone": (two_tone, 0.7),
    "duotone": (duotone, 0.8),
    "texture": (textured, 1.0),
    "watercolour": (watercolour, 0.8),
    "pixel": (pixelated, 0.5),
    "sticker": (sticker, 0.8),
    "comic": (outlined, 0.9),
    "inverted": (inverted, 0.5),
    "halftone": (halftone, 0.6),
}
HELD_OUT: dict[str, tuple[Style, float]] = {"crayon": (crayon, 1.0)}
# These leave the hues as they are: for glyphs whose very name says a colour.
KEEP_HUE = ("sticker", "watercolour", "texture")
ALL = {**TRAIN, **HELD_OUT}


def apply(name: str, rgb: np.ndarray, alpha: np.ndarray, d: Draw, strong: bool = True) -> Drawn:
    """The style ``name`` ("original" included) after everyday jitter; rgb comes back within 0–255."""
    if strong:
        rgb, alpha = jitter(rgb, alpha, d)
    else:
        rgb = linear(rgb, 0, d.between(0.85, 1.15), d.between(0.85, 1.1), 0)
    if name != "original":
        rgb, alpha = ALL[name][0](np.clip(rgb, 0, 255), alpha, d)
    return np.clip(rgb, 0, 255), alpha
