"""A folder of pictures and masks: FOLDER/images/*.jpg and FOLDER/masks/*.png, with words from a table or file names.

With a table, `words.csv` (or .tsv): a header, then one query a row in the columns `image`, `words` and, if need be,
`mask`, `kind`. `image` is a file name in images/; `mask` one or several file names in masks/, joined by ";", and empty
where nothing in the picture matches; without the column the mask is masks/<name of the image>.png.

Without a table, the words are file names: masks/<name of the image>/<words>.png, or <name of the image>__<words>.png.
Underscores in words are spaces; "dog.2.png" is a second dog. A picture without masks has no query and is named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from vlseg.data.images import PICTURE_SUFFIXES
from vlseg.data.index import Builder, IndexedDataset
from vlseg.data.records import Record
from vlseg.data.request import Request
from vlseg.types import VLSegError

TABLES = ("words.csv", "words.tsv")
COLUMNS = ("image", "words", "mask", "kind")
MASKS = (".png", ".tif", ".tiff", ".bmp", ".webp")


def is_mask_folder(folder: Path) -> bool:
    """Whether a folder has images/ and masks/."""
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def open_folder(request: Request) -> IndexedDataset:
    """The folder as a data set. Raises VLSegError where images/ or masks/ is missing, or the table is none."""
    folder = request.path
    assert folder is not None
    pictures = [p.name for p in sorted((folder / "images").iterdir()) if p.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise VLSegError(f"{folder / 'images'}: no picture in this folder")
    builder = Builder()
    records: dict[str, Record] = {
        name: {"id": Path(name).stem, "image": f"images/{name}", "size": None, "meta": {},
               "masks": [], "names": [], "queries": []}
        for name in pictures
    }  # fmt: skip
    if len({record["id"] for record in records.values()}) < len(records):
        for name, record in records.items():
            record["id"] = name  # 1.jpg and 1.png are two pictures
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is not None:
        _from_table(table, records, builder)
    else:
        _from_names(folder / "masks", records, builder)
    for name, record in records.items():
        if record["queries"]:
            builder.add(record, f"images/{name}")
        else:
            builder.problem(f"images/{name}", f"has no words in {table.name}" if table else "has no masks in masks/")
    return IndexedDataset(request.name, request.split, builder.index(), folder, str(folder))


def _ask(record: Record, words: str, masks: list[str], kind: str | None) -> None:
    first = len(record["masks"])
    record["masks"] += [f"masks/{mask}" for mask in masks]
    record["names"] += [f"masks/{mask}" for mask in masks]
    id = f"{record['id']}:{len(record['queries']) + 1}"
    record["queries"].append([id, words, list(range(first, first + len(masks))), [], kind, None])


def _from_table(table: Path, records: dict[str, Record], builder: Builder) -> None:
    for line, row in _rows(table):
        where = f"{table.name}: line {line}"
        if row is None:
            builder.problem(where, "has fewer or more cells than the first line; put words with a comma into quotes")
            continue
        record, words = records.get(row["image"]), row["words"]
        if record is None:
            builder.problem(where, f"images/{row['image']} is not there")
        elif not words:
            builder.problem(where, "has no words")
        else:
            names = row.get("mask", f"{Path(row['image']).stem}.png")
            masks = [name.strip() for name in names.split(";") if name.strip()]
            gone = [name for name in masks if not (table.parent / "masks" / name).is_file()]
            if gone:
                builder.problem(where, f"masks/{gone[0]} is not there")
            else:
                _ask(record, words, masks, row.get("kind") or None)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str] | None]]:
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
            header = [name.strip().lower() for name in reader.fieldnames or []]
            if not {"image", "words"} <= set(header) <= set(COLUMNS):
                raise VLSegError(
                    f"{table}: the first line must name the columns image, words and, if there are any, mask and kind; "
                    f"got {', '.join(header) or 'nothing'}"
                )
            reader.fieldnames = header
            for row in reader:
                whole = None not in row and None not in row.values()
                yield reader.line_num, {key: value.strip() for key, value in row.items()} if whole else None
    except UnicodeDecodeError as error:
        raise VLSegError(f"{table}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise VLSegError(f"{table}: cannot be read ({error})") from error


def _from_names(folder: Path, records: dict[str, Record], builder: Builder) -> None:
    by_stem: dict[str, Record] = {}
    for name, record in records.items():
        by_stem.setdefault(Path(name).stem, record)
    queries: dict[tuple[str, str], list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in MASKS):
        relative = path.relative_to(folder)
        stem, words = _words(relative)
        if not stem or not words or stem not in by_stem:
            reason = f"no picture {stem} in images/" if stem and words else "its name tells no words; write words.csv"
            builder.problem(f"masks/{relative.as_posix()}", reason)
        else:
            queries.setdefault((stem, words), []).append(relative.as_posix())
    for (stem, words), masks in queries.items():
        _ask(by_stem[stem], words, masks, None)


def _words(mask: Path) -> tuple[str, str]:
    """(name of the picture, words) of a mask's path below masks/."""
    name = re.sub(r"\.\d+$", "", mask.stem)
    if len(mask.parts) > 1:
        stem = mask.parts[0]
    else:
        stem, _, name = name.rpartition("__")
    return stem, " ".join(name.replace("_", " ").split())
