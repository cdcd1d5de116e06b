"""Draw `table.png`, the picture of the README: sprites of the embedded model's world on a wooden table.

    python examples/make_table.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlseg.worlds.backgrounds import photos
from vlseg.worlds.compose import drawn, window
from vlseg.worlds.draw import Draw
from vlseg.worlds.sprites import SpriteWorld

WIDTH, HEIGHT = 640, 480
# noun, centre x, centre y, longest side; pixels
THINGS = [
    ("teapot", 150, 150, 150),
    ("laptop", 420, 130, 190),
    ("red apple", 95, 350, 105),
    ("green apple", 245, 335, 100),
    ("banana", 400, 330, 120),
    ("cat", 555, 335, 150),
    ("key", 300, 430, 70),
    ("cat", 300, 215, 85),
]


def main() -> None:
    nouns = SpriteWorld().nouns
    wood = dict(photos())["wood"].resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    canvas = np.asarray(wood.convert("RGB"), np.float32).copy()
    for number, (noun, x, y, extent) in enumerate(THINGS):
        item = drawn(nouns.index(noun), extent, "original", False, Draw(2026, number))
        item.x, item.y = round(x - item.alpha.shape[1] / 2), round(y - item.alpha.shape[0] / 2)
        down, across, part_down, part_across = window(item, (HEIGHT, WIDTH))
        region = canvas[down, across]
        region += (item.rgb[part_down, part_across] - region) * item.alpha[part_down, part_across, None]
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    picture.save(Path(__file__).with_name("table.png"), optimize=True)


if __name__ == "__main__":
    main()
