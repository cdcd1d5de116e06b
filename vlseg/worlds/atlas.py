"""The sprite atlas: decoded once, cut into premultiplied sprites at halving sizes when first asked for."""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

ASSETS = Path(__file__).parent / "assets"
SHEET = "sprites.webp"
CELL = 112
COLUMNS = 26
LEVELS = 3


@cache
def entries() -> list[dict[str, Any]]:
    """The glyphs in the order of their indices: name, also, group, subgroup, keywords, size (width, height)."""
    return json.loads((ASSETS / "nouns.json").read_text(encoding="utf-8"))


@cache
def _sheet() -> Image.Image:
    return Image.open(ASSETS / SHEET).convert("RGBA")


@lru_cache(maxsize=4096)
def sprite(glyph: int, level: int = 0) -> Image.Image:
    """The trimmed sprite of ``glyph`` as a premultiplied "RGBa" image, halved ``level`` times."""
    if level:
        return sprite(glyph, level - 1).reduce(2)
    width, height = entries()[glyph]["size"]
    x, y = glyph % COLUMNS * CELL, glyph // COLUMNS * CELL
    # A clear rim of two pixels keeps bilinear sampling from cutting the sprite's edge hard.
    padded = Image.new("RGBA", (width + 4, height + 4))
    padded.paste(_sheet().crop((x, y, x + width, y + height)), (2, 2))
    return padded.convert("RGBa")
