"""COCO instances JSON, as pycocotools, detectron2, FiftyOne, CVAT and supervision read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlseg.data.files import whole_file
from vlseg.export.pictures import copied, named
from vlseg.export.polygons import edge_polygons
from vlseg.export.source import Item, Results, category
from vlseg.types import Segment
from vlseg.version import __version__

if TYPE_CHECKING:
    from vlseg.export.kinds import Options


def write(results: Results, out: Path, options: Options) -> Path:
    """OUT/annotations.json; a category is the text of a query, an annotation a segment, all ids from 1.

    Besides what COCO has: `score` of an annotation; `neg_category_ids` of an image, the texts that are absent from it,
    and `not_exhaustive_category_ids`, those that failed (LVIS's keys, arXiv 1908.03195).
    """
    path = out / "annotations.json"
    with whole_file(path) as file:
        info = {"description": f"vlseg {__version__}", "version": "1.0"}
        file.write(f'{{"info": {json.dumps(info)}, "licenses": [],\n"categories": '.encode())
        categories = [{"id": k + 1, "name": name, "supercategory": ""} for name, k in results.categories.items()]
        file.write(json.dumps(categories, ensure_ascii=False).encode())
        for name, rows in (("images", _images(results, out, options)), ("annotations", _annotations(results, options))):
            file.write(f',\n"{name}": ['.encode())
            for number, row in enumerate(rows):
                file.write(((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False)).encode())
            file.write(b"]")
        file.write(b"}\n")
    return path


def _images(results: Results, out: Path, options: Options) -> Iterator[dict[str, Any]]:
    for item in results:
        name = copied(item, results, out / "images") if options.copy_images else named(item)
        height, width = item.result.size
        yield {
            "id": item.number + 1,
            "file_name": name,
            "width": width,
            "height": height,
            "neg_category_ids": _asked(item, results, "absent"),
            "not_exhaustive_category_ids": _asked(item, results, "failed"),
        }


def _asked(item: Item, results: Results, status: str) -> list[int]:
    ids = {results.categories[category(a.text)] + 1 for a in item.result.answers if a.status == status}
    return sorted(ids)


def _annotations(results: Results, options: Options) -> Iterator[dict[str, Any]]:
    number = 0
    for item in results:
        for answer in item.result.answers:
            for segment in answer.segments:
                number += 1
                yield {
                    "id": number,
                    "image_id": item.number + 1,
                    "category_id": results.categories[category(answer.text)] + 1,
                    "segmentation": _segmentation(segment, options),
                    "area": segment.area,
                    "bbox": segment.bbox,
                    "iscrowd": 0,
                    "score": round(segment.score, 6),
                }


def _segmentation(segment: Segment, options: Options) -> Any:
    return dict(segment.rle) if options.shape == "masks" else edge_polygons(segment.rle, options.tolerance)
