"""Data sets of coloured blocks: pictures, words and exact masks, as a person would hand them over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vlseg.masks.rle import encode

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}


def write_blocks(
    folder: Path, count: int = 12, seed: int = 0, broken: tuple[int, ...] = (), sized: bool = True
) -> Path:
    """A JSONL of pictures with a red, a green and a blue block each, and a query that fits nothing.

    Pictures are 64 x 64 or, every third, 64 x 96; of every second one only two queries are kept. broken: numbers of
    pictures whose file holds no image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        height, width = 64, 96 if number % 3 == 2 else 64
        pixels = random.integers(90, 150, (height, width, 3)).astype(np.uint8)
        masks = []
        for place, colour in enumerate(COLOURS.values()):
            mask = np.zeros((height, width), bool)
            top, left = int(random.integers(0, height // 2)), int(random.integers(0, width // 6)) + place * width // 3
            mask[top : top + height // 2, left : left + width // 4] = True
            pixels[mask] = colour
            masks.append(encode(mask))
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        if number in broken:
            (folder / name).write_bytes(b"no picture")
        queries = [
            {"text": f"the {colour} mug", "masks": [mask], "distractors": [m for m in masks if m is not mask]}
            for colour, mask in zip(COLOURS, masks, strict=True)
        ]
        queries.append({"text": "the big cat", "masks": []})
        if number % 2:
            queries = queries[:2]
        line = {"image": name, "id": f"p{number}", "queries": queries}
        lines.append({**line, "size": [height, width]} if sized else line)
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
