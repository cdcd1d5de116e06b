"""What camera, light and file format do to a finished picture. No pixel moves, so masks stay true."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from vlseg.worlds.draw import Draw
from vlseg.worlds.pigment import grain


def light(image: np.ndarray, d: Draw) -> np.ndarray:
    """Light falling from one side, gain and contrast; ``(H, W, 3) float32`` in and out."""
    h, w = image.shape[:2]
    if d.chance(0.35):
        angle, depth = d.between(0, 6.2832), d.between(0.1, 0.5)
        y = np.linspace(-1, 1, h, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
        x = np.linspace(-1, 1, w, dtype=np.float32)[None] * np.float32(np.cos(angle))
        image = image * (1 + np.float32(depth / 2) * (x + y))[..., None]
    if d.chance(0.45):
        contrast = np.float32(d.between(0.7, 1.2))
        image = image * contrast + np.float32(128 * (1 - contrast) + d.between(-18, 18))
    if d.chance(0.2):
        tint = np.array([d.between(0.9, 1.1) for _ in range(3)], np.float32)
        image = image * tint
    return image


def camera(image: np.ndarray, d: Draw) -> np.ndarray:
    """Blur, noise and JPEG, each sometimes; ``(H, W, 3) uint8`` in and out."""
    h, w = image.shape[:2]
    short = min(h, w)
    if d.chance(0.18):
        radius = d.between(0.3, 1.0) * max(1.0, short / 200)
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if d.chance(0.3):
        noise = grain((h, w), d)[..., None] * np.float32(d.between(2, 9))
        if d.chance(0.5):
            noise = noise * np.array([d.between(-1, 1) for _ in range(3)], np.float32)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if d.chance(0.22):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=35 + d.below(60))
        image = np.asarray(Image.open(buffer))
    return image
