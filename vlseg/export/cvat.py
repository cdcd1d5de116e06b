"""CVAT for images 1.1 (XML), as CVAT's "Upload annotations" and datumaro read it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from vlseg.data.files import whole_file, write_whole
from vlseg.export.pictures import copied, named
from vlseg.export.polygons import edge_polygons
from vlseg.export.source import Item, Results, category
from vlseg.masks import rle as codec
from vlseg.masks.palette import color, hexadecimal
from vlseg.types import Segment

if TYPE_CHECKING:
    from vlseg.export.kinds import Options

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # by XML 1.0, even escaped


def write(results: Results, out: Path, options: Options) -> Path:
    """OUT/annotations.xml, and OUT/labels.json to paste into the "Raw" tab of a new task's labels.

    masks: row-wise run lengths within the box of the mask, the outside first; polygons: one a component, those of an
    instance in one group. Scores and absent texts have no place here.
    """
    shape = "polygon" if options.shape == "polygons" else "mask"
    labels: list[dict[str, Any]] = [
        {"name": name, "color": hexadecimal(color(number)), "type": "any", "attributes": []}
        for name, number in results.categories.items()
    ]
    write_whole(out / "labels.json", json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
    path = out / "annotations.xml"
    with whole_file(path) as file:
        file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(
            f"<meta><task><name>vlseg</name><size>{len(results)}</size><mode>annotation</mode><labels>\n".encode()
        )
        for label in labels:
            file.write(
                f"<label><name>{_text(label['name'])}</name><color>{label['color']}</color><type>any</type>"
                "<attributes></attributes></label>\n".encode()
            )
        file.write(b"</labels></task></meta>\n")
        for item in results:
            name = copied(item, results, out / "images") if options.copy_images else named(item)
            height, width = item.result.size
            head = f'<image id="{item.number}" name={_quoted(name)} width="{width}" height="{height}">\n'
            file.write((head + "".join(_shapes(item, shape, options.tolerance)) + "</image>\n").encode())
        file.write(b"</annotations>\n")
    return path


def _shapes(item: Item, shape: str, tolerance: float) -> list[str]:
    out: list[str] = []
    group = 0
    for answer in item.result.answers:
        common = f'label={_quoted(category(answer.text))} source="auto" occluded="0"'
        for segment in answer.segments:
            if shape == "mask":
                out.append(f'<mask {common} {_mask(segment)} z_order="0"></mask>\n')
                continue
            group += 1
            polygons = edge_polygons(segment.rle, tolerance)
            together = f' group_id="{group}"' if len(polygons) > 1 else ""
            for flat in polygons:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(flat[::2], flat[1::2], strict=True))
                out.append(f'<polygon {common} points="{points}" z_order="0"{together}></polygon>\n')
    return out


def _mask(segment: Segment) -> str:
    left, top, width, height = (int(v) for v in segment.bbox)
    flat = codec.decode(segment.rle)[top : top + height, left : left + width].reshape(-1)
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size)).tolist()
    runs = ", ".join(map(str, [0, *lengths] if flat[0] else lengths))
    return f'rle="{runs}" left="{left}" top="{top}" width="{width}" height="{height}"'


def _text(text: str) -> str:
    return escape(_FORBIDDEN.sub("\ufffd", text))


def _quoted(text: str) -> str:
    return quoteattr(_FORBIDDEN.sub("\ufffd", text))
