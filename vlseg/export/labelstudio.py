"""Label Studio tasks with predictions, to be corrected by people."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from vlseg.data.files import whole_file, write_whole
from vlseg.export.brush import encode_brush
from vlseg.export.pictures import copied, named
from vlseg.export.polygons import edge_polygons
from vlseg.export.source import Item, Results, category
from vlseg.masks import rle as codec
from vlseg.masks.palette import color, hexadecimal
from vlseg.types import Segment

if TYPE_CHECKING:
    from vlseg.export.kinds import Options

CONFIG = """<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <{tag} name="label" toName="image">
{labels}
  </{tag}>
</View>
"""


def write(results: Results, out: Path, options: Options) -> Path:
    """OUT/tasks.json and OUT/config.xml, the labelling interface that they need.

    masks: brush regions (`vlseg/export/brush.py`); polygons: in percent of the picture, a region a component. Texts
    that are absent stand in the task's data as `absent`.
    """
    tag = "PolygonLabels" if options.shape == "polygons" else "BrushLabels"
    labels = "\n".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(hexadecimal(color(number)))}/>"
        for name, number in results.categories.items()
    )
    write_whole(out / "config.xml", CONFIG.format(tag=tag, labels=labels))
    path = out / "tasks.json"
    with whole_file(path) as file:
        for item in results:
            name = copied(item, results, out / "images") if options.copy_images else named(item)
            task = _task(item, options.image_prefix + name, tag, options)
            file.write(((",\n" if item.number else "[\n") + json.dumps(task, ensure_ascii=False)).encode())
        file.write(b"\n]\n")
    return path


def _task(item: Item, image: str, tag: str, options: Options) -> dict[str, Any]:
    found = [(answer.text, segment) for answer in item.result.answers for segment in answer.segments]
    regions: list[dict[str, Any]] = []
    for text, segment in found:
        for value in _values(segment, options):
            regions.append(_region(item, category(text), segment, value, tag.lower(), len(regions)))
    absent = [category(answer.text) for answer in item.result.answers if answer.status == "absent"]
    score = sum(segment.score for _, segment in found) / len(found) if found else None
    prediction: dict[str, Any] = {"model_version": item.result.model, "result": regions}
    if score is not None:
        prediction["score"] = round(score, 6)
    return {"data": {"image": image, "absent": absent}, "predictions": [prediction]}


def _values(segment: Segment, options: Options) -> list[dict[str, Any]]:
    if options.shape != "polygons":
        return [{"format": "rle", "rle": encode_brush(codec.decode(segment.rle))}]
    height, width = segment.rle["size"]
    out = []
    for flat in edge_polygons(segment.rle, options.tolerance):
        points = [[100 * x / width, 100 * y / height] for x, y in zip(flat[::2], flat[1::2], strict=True)]
        out.append({"points": points, "closed": True})
    return out


def _region(item: Item, text: str, segment: Segment, value: dict[str, Any], kind: str, number: int) -> dict[str, Any]:
    height, width = item.result.size
    # The same Result gives the same ids, so that a task that is imported again can be compared.
    id = hashlib.sha256(f"{item.result.image}\n{number}".encode("utf-8", "replace")).hexdigest()[:10]
    return {
        "id": id,
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": round(segment.score, 6),
        "value": {**value, kind: [text]},
    }
