"""YOLO segmentation labels, as Ultralytics and supervision read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlseg.data.files import writable_folder, write_whole
from vlseg.export.pictures import copied
from vlseg.export.polygons import pixel_polygon
from vlseg.export.source import Results, category

if TYPE_CHECKING:
    from vlseg.export.kinds import Options


def write(results: Results, out: Path, options: Options) -> Path:
    """OUT/data.yaml and OUT/labels/train/BASE.txt, one line "class x1 y1 x2 y2 ..." in 0..1 a segment.

    A picture in which nothing was found gets an empty file, which makes it background. Scores have no place here.
    """
    import yaml

    folder = writable_folder(out / "labels" / "train")
    for item in results:
        if options.copy_images:
            copied(item, results, out / "images" / "train")
        lines = [
            _line(results.categories[category(answer.text)], pixel_polygon(segment.rle, options.tolerance), segment.rle)
            for answer in item.result.answers
            for segment in answer.segments
        ]
        write_whole(folder / f"{item.base}.txt", "".join(lines))
    names = {number: name for name, number in results.categories.items()}
    head = "# Nothing was held out: name another folder for val before you trust its scores.\n"
    data = {"path": ".", "train": "images/train", "val": "images/train", "names": names}
    path = out / "data.yaml"
    write_whole(path, head + yaml.safe_dump(data, allow_unicode=True, sort_keys=False))
    return path


def _line(number: int, ring: np.ndarray, rle: object) -> str:
    height, width = rle["size"]  # type: ignore[index]
    # A quarter of a pixel more: some readers cut off what is behind the point, others round.
    points = (ring + 0.25) / (width, height)
    return " ".join([str(number), *(f"{value:.7g}" for value in points.reshape(-1))]) + "\n"
