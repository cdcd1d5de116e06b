"""RefCOCO-M (moondream/refcoco-m): RefCOCO's validation images with masks drawn anew, as Parquet from the Hub.

A row is an image: {image, image_id, file_name, samples: [{id, category, sentences, bbox, mask: RLE}]}. Only the objects
that are referred to are there, so distractors are those of the same category among them.
"""

from __future__ import annotations

from pathlib import Path

from vlseg.data.gather import Gatherer, listed
from vlseg.data.official import REFCOCO_M, check_size
from vlseg.data.parquet import ParquetDataset, rows
from vlseg.data.request import Request
from vlseg.masks import rle as codec
from vlseg.types import VLSegError


def from_files(request: Request, files: list[Path]) -> ParquetDataset:
    """The data set of its files. What cannot be used is among its problems; raises VLSegError for unreadable files."""
    images, masks = Gatherer(request), 0
    for position, file in enumerate(files):
        for number, row in rows(file, ["image_id", "samples"]):
            where = f"{file.name}: row {number}"
            for place, entry in enumerate(listed(row["samples"])):
                try:
                    rle = codec.validate(entry["mask"])
                    coco_id = row["image_id"]
                    record = images.record(str(coco_id), f"{position}#{number}", rle["size"], coco_id)
                    name = f"object {entry.get('id', place)} of row {number}"
                    target = images.mask(record, dict(rle), name, entry.get("category"), where)
                    if target is not None:
                        masks += 1
                        prefix = f"{request.name}:{entry.get('id', f'{coco_id}-{place}')}"
                        images.ask(record, target, list(enumerate(entry["sentences"])), prefix, where)
                except VLSegError as error:
                    images.builder.problem(where, f"object {place}: {error}")
                except (TypeError, KeyError, AttributeError) as error:
                    images.builder.problem(where, f"object {place}: {type(error).__name__} {error}")
    index = images.finish().index()
    index.notes += check_size("images", len(index.records), REFCOCO_M["images"])
    index.notes += check_size("masks", masks, REFCOCO_M["masks"])
    return ParquetDataset(request.name, request.split, index, files, str(files[0].parent))
