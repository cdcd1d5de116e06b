"""Pixel arithmetic that styles, backgrounds and lighting share: grain, waves, colours, edges."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from vlseg.worlds.draw import Draw

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
FIELD = 768


@cache
def noise_field() -> np.ndarray:
    """Smooth grain ``(FIELD, FIELD) float32`` of mean 0 and deviation 1, the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(20240917))
    raw = rng.standard_normal((FIELD, FIELD), dtype=np.float32)
    soft = (raw + np.roll(raw, 1, 0) + np.roll(raw, 1, 1) + np.roll(raw, (1, 1), (0, 1))) / 2
    return soft.astype(np.float32)


@cache
def grid() -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers, each ``(FIELD, FIELD) float32``."""
    y, x = np.mgrid[:FIELD, :FIELD]
    return y.astype(np.float32), x.astype(np.float32)


def grain(shape: tuple[int, int], d: Draw) -> np.ndarray:
    """A window of the noise field, ``shape`` float32; larger windows than the field are tiled."""
    h, w = shape
    field = noise_field()
    if h > FIELD - 64 or w > FIELD - 64:
        field = np.tile(field, (h // FIELD + 2, w // FIELD + 2))
    y, x = d.below(field.shape[0] - h), d.below(field.shape[1] - w)
    return field[y : y + h, x : x + w]


def waves(shape: tuple[int, int], d: Draw, period: float) -> np.ndarray:
    """A slanted sine in [-1, 1], ``shape`` float32; period in pixels."""
    h, w = shape
    if h > FIELD or w > FIELD:
        y, x = (a.astype(np.float32) for a in np.mgrid[:h, :w])
    else:
        y, x = (a[:h, :w] for a in grid())
    angle = d.between(0, np.pi)
    k = 2 * np.pi / period
    return np.sin(
        x * np.float32(k * np.cos(angle)) + y * np.float32(k * np.sin(angle)) + np.float32(d.between(0, 6.28))
    )


def vivid(d: Draw, light: bool | None = None) -> np.ndarray:
    """A random colour ``(3,) float32`` 0–255; light or dark where asked."""
    hue, sat = d.between(0, 6), d.between(0.15, 1.0)
    value = d.between(0.75, 1.0) if light else d.between(0.05, 0.4) if light is False else d.between(0.2, 1.0)
    channels = [(5 + hue) % 6, (3 + hue) % 6, (1 + hue) % 6]
    return np.array([255 * value * (1 - sat * max(0.0, min(k, 4 - k, 1.0))) for k in channels], np.float32)


def luma(rgb: np.ndarray) -> np.ndarray:
    """Lightness ``(h, w) float32`` 0–255."""
    return rgb @ LUMA


def stretched(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lightness stretched to 0–1 over the object."""
    light = luma(rgb)
    inside = light[alpha > 0.5]
    if inside.size == 0:
        return light / 255
    low, high = float(inside.min()), float(inside.max())
    return np.clip((light - low) / max(high - low, 12.0), 0, 1)


def edges(values: np.ndarray) -> np.ndarray:
    """Absolute differences to the right and lower neighbour, summed; the shape of ``values``."""
    out = np.zeros_like(values)
    out[:-1] = np.abs(values[1:] - values[:-1])
    out[:, :-1] += np.abs(values[:, 1:] - values[:, :-1])
    return out


def blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of ``(h, w) or (h, w, 3)`` values in 0–255."""
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def linear(rgb: np.ndarray, hue: float, saturation: float, gain: float, bias: float) -> np.ndarray:
    """Hue turned by ``hue`` radians, saturation and lightness scaled, ``bias`` added."""
    c, s = np.cos(hue) * saturation, np.sin(hue) * saturation
    # Rotation about the gray axis in YIQ, written out for RGB.
    turn = np.array(
        [
            [0.299 + 0.701 * c + 0.168 * s, 0.587 - 0.587 * c + 0.330 * s, 0.114 - 0.114 * c - 0.497 * s],
            [0.299 - 0.299 * c - 0.328 * s, 0.587 + 0.413 * c + 0.035 * s, 0.114 - 0.114 * c + 0.292 * s],
            [0.299 - 0.300 * c + 1.250 * s, 0.587 - 0.588 * c - 1.050 * s, 0.114 + 0.886 * c - 0.203 * s],
        ],
        np.float32,
    )
    return rgb @ (turn.T * np.float32(gain)) + np.float32(bias)
