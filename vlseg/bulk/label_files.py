"""The files that a run of `vlseg label` ends with."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlseg.bulk.label import SIGNALS
from vlseg.data.files import writable_folder, write_whole
from vlseg.masks import rle as codec

COLUMNS = ("rank", "image", "query", "text", "status", "score", "uncertainty", *SIGNALS, "labelled", "reason")
PALETTE = [0, 0, 0, 230, 92, 0] + [0, 0, 0] * 253 + [224, 224, 192]  # 0, 1 and 255


def write_files(out: Path, records: dict[int, dict[str, Any]], maps: bool) -> None:
    """Write labels.jsonl, ranking.csv, ranking.jsonl, errors.jsonl and, with `maps`, maps/. records: by image, as
    `vlseg.bulk.label_run` keeps them."""
    ordered = [record for _, record in sorted(records.items())]
    good = [record for record in ordered if "error" not in record]
    write_whole(out / "labels.jsonl", "".join(_json(_line(record, out)) for record in good))
    errors = [{"image": r["image"], "error": r["error"]} for r in ordered if "error" in r]
    write_whole(out / "errors.jsonl", "".join(map(_json, errors)))
    rows = ranking(good)
    write_whole(out / "ranking.jsonl", "".join(map(_json, rows)))
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(out / "ranking.csv", text.getvalue())
    if maps:
        _write_maps(out, good)


def ranking(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a query, the most uncertain first, equals in the order of the pictures. query: its number from 1."""
    rows = []
    for record in records:
        for k, (query, doubt) in enumerate(zip(record["queries"], record["doubts"], strict=True), 1):
            rows.append({"image": record["image"], "query": k, **doubt, "labelled": "masks" in query})
    rows.sort(key=lambda row: -row["uncertainty"])
    return [{column: {**row, "rank": n}[column] for column in COLUMNS} for n, row in enumerate(rows, 1)]


def _line(record: dict[str, Any], out: Path) -> dict[str, Any]:
    path = Path(os.path.relpath(record["file"], out)).as_posix()
    return {"image": path, "size": record["size"], "queries": record["queries"]}


def _write_maps(out: Path, records: list[dict[str, Any]]) -> None:
    folder = out / "maps"
    if folder.exists():
        shutil.rmtree(folder)
    writable_folder(folder)
    for number, record in enumerate(records):
        for k, query in enumerate(record["queries"], 1):
            if "masks" not in query:
                continue
            values = codec.decode_union(query["masks"], tuple(record["size"])).astype(np.uint8)
            if "ignore" in query:
                values[codec.decode(query["ignore"])] = 255
            picture = Image.fromarray(values)
            picture.putpalette(PALETTE)
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            write_whole(folder / f"{number:06d}.{Path(record['image']).stem[:60]}.{k}.png", buffer.getvalue())


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"
