"""Mask pictures: one of all categories with a palette, and one an instance."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlseg.data.files import whole_file, writable_folder, write_whole
from vlseg.export.source import Item, Results, category
from vlseg.masks import rle as codec
from vlseg.masks.drawing import mask_png
from vlseg.masks.palette import color
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.export.kinds import Options

# 255 means "ignored" in label maps of this kind (PASCAL VOC), so 8 bits hold this many categories.
SMALL, LARGE = 254, 65_534


def write(results: Results, out: Path, options: Options) -> Path:
    """OUT/labels.json (value of each category), OUT/masks/BASE.png, OUT/instances/BASE.N.png, OUT/instances.jsonl.

    masks: 0 outside, 1, 2, ... the category; 8 bits with a palette, or 16 bits grey where there are more than 254
    categories. Where segments overlap the smaller is on top. instances: 255 inside, 0 outside; instances.jsonl says
    for each file the picture, the text and the score. Raises VLSegError for more than 65,534 categories.
    """
    if len(results.categories) > LARGE:
        raise VLSegError(f"{len(results.categories)} texts are more than the {LARGE} values of a 16-bit picture")
    masks, instances = writable_folder(out / "masks"), writable_folder(out / "instances")
    with whole_file(out / "instances.jsonl") as file:
        for item in results:
            write_whole(masks / f"{item.base}.png", _bytes(_label_map(item, results)))
            for line, mask in _instances(item):
                write_whole(instances / line["file"], _bytes(mask_png(mask)))
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    labels = [
        {"value": number + 1, "text": name, "color": list(color(number))} for name, number in results.categories.items()
    ]
    path = out / "labels.json"
    write_whole(path, json.dumps({"outside": 0, "labels": labels}, ensure_ascii=False, indent=1) + "\n")
    return path


def _label_map(item: Item, results: Results) -> Image.Image:
    small = len(results.categories) <= SMALL
    values = np.zeros(item.result.size, dtype=np.uint8 if small else np.uint16)
    found = [(s, results.categories[category(a.text)] + 1) for a in item.result.answers for s in a.segments]
    for segment, value in sorted(found, key=lambda pair: -pair[0].area):
        values[codec.decode(segment.rle)] = value
    picture = Image.fromarray(values)
    if small:
        colours = [(0, 0, 0), *(color(number) for number in range(SMALL)), (224, 224, 192)]
        picture.putpalette([channel for colour in colours for channel in colour])
    return picture


def _instances(item: Item) -> list[tuple[dict[str, Any], np.ndarray]]:
    out: list[tuple[dict[str, Any], np.ndarray]] = []
    for answer in item.result.answers:
        for segment in answer.segments:
            line = {"file": f"{item.base}.{len(out) + 1}.png", "image": item.result.image,
                    "text": category(answer.text), "score": round(segment.score, 6)}  # fmt: skip
            out.append((line, codec.decode(segment.rle)))
    return out


def _bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
