"""The layouts in which Hub mirrors keep the RefCOCO family and ReasonSeg: Parquet, told apart by their columns.

| layout | mirrors | what a row is |
|---|---|---|
| refs | jxu124/refcoco, refcocoplus, refcocog | a ref; its annotation and image as JSON text; no pixels |
| benchmark | jxu124/refcoco-benchmark | an image with its refs and pixels |
| answers | lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg | a ref with pixels; one flat polygon; no category |
| rows | Ricky06662/ReasonSeg_val, ReasonSeg_test, refcoco_val, ... | a sentence with pixels and a mask of booleans |
| refined | moondream/refcoco-m | an image with its objects, RLEs and sentences |

None of them holds the objects that nobody referred to, so distractors are the *referred* objects of the same category.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlseg.data.gather import Gatherer, listed
from vlseg.data.index import IndexedDataset
from vlseg.data.official import REFS, check_size
from vlseg.data.parquet import OWN, ParquetDataset, columns_of, files_of, open_own, parquet_files, rows
from vlseg.data.reading import parse_json, whole
from vlseg.data.refcoco_m import from_files
from vlseg.data.request import Request, examples_of
from vlseg.types import VLSegError

LAYOUTS: dict[str, set[str]] = {
    "own": OWN,
    "refs": {"sentences", "ann_id", "ref_id", "image_id", "raw_anns", "raw_image_info"},
    "benchmark": {"ref_list", "image_info", "image"},
    "answers": {"question_id", "image", "answer", "segmentation", "file_name"},
    "rows": {"image", "text", "mask", "image_id"},
    "refined": {"image", "image_id", "samples"},
}
"""What each layout needs; a file may have more columns."""
FEWER = "a mirror without the objects that nobody referred to: fewer distractors than with instances.json"


def find_mirror(folders: Iterable[Path]) -> Path | None:
    """The first folder with Parquet files."""
    return next((folder for folder in folders if folder.is_dir() and parquet_files(folder)), None)


def open_refcoco_m(request: Request) -> IndexedDataset:
    """RefCOCO-M below the root. Raises VLSegError."""
    folders = [request.root / name for name in ("refcoco-m", "RefCOCO-M", "refcoco_m")]
    folder = find_mirror([*folders, request.root])
    if folder is None:
        request.missing([folders[0]], "put the Parquet files of moondream/refcoco-m there")
    return open_mirror(request, folder)


def open_folder(request: Request) -> IndexedDataset:
    """The folder of Parquet files that the spec names. Raises VLSegError."""
    assert request.path is not None
    return open_mirror(request, request.path)


def open_mirror(request: Request, folder: Path) -> IndexedDataset:
    """One split of a folder of Parquet files in a layout that is known. Raises VLSegError."""
    # RefCOCO's testA is called "test" where the Hub allowed three names only.
    # Ricky06662/ReasonSeg_val and the like have one split, called "test" whatever it is.
    only = bool(request.split) and folder.name.lower().endswith(f"_{request.split}".lower())
    aliases = ["test"] if request.split == "testA" or only else []
    if request.name in REFS:
        stem = request.name.replace("+", "_plus").replace("-", "_")
        stem += "_unc" if request.name in ("refcoco", "refcoco+") else ""
        aliases.append(f"{stem}_{request.split}")
    split, files = files_of(request.name, folder, request.split, aliases)
    columns = columns_of(files[0])
    layout = next((name for name, needed in LAYOUTS.items() if needed <= columns), None)
    if layout is None:
        raise VLSegError(
            f"{files[0]}: columns {', '.join(sorted(columns))} are no layout that is known: those of vlseg data "
            "convert, jxu124/refcoco, jxu124/refcoco-benchmark, lmms-lab/RefCOCO, Ricky06662/*, moondream/refcoco-m"
        )
    if layout == "own":
        return open_own(request, folder, files, split)
    dataset = {
        "refs": _open_refs,
        "benchmark": _open_benchmark,
        "answers": _open_answers,
        "rows": _open_rows,
        "refined": from_files,
    }[layout](request, files)
    if not len(dataset) and not dataset.problems:
        raise VLSegError(f"{folder}: split {split} holds no row")
    return dataset


def _text_field(request: Request) -> str:
    return request.choice("text", "sent", ("sent", "raw"))


def _open_refs(request: Request, files: list[Path]) -> IndexedDataset:
    images, text = Gatherer(request), _text_field(request)
    columns = ["sentences", "ann_id", "ref_id", "image_id", "raw_anns", "raw_image_info"]
    for file in files:
        for number, row in rows(file, columns):
            where = f"{file.name}: row {number}"
            try:
                annotation = parse_json(row["raw_anns"].encode(), f"{where}: raw_anns")
                info = parse_json(row["raw_image_info"].encode(), f"{where}: raw_image_info")
                _add_ref(images, row, annotation, info, info["file_name"], text, where)
            except VLSegError as error:
                images.builder.problem(where, str(error).removeprefix(f"{where}: "))
            except (TypeError, KeyError, AttributeError) as error:
                images.builder.problem(where, f"is not as in jxu124/refcoco ({type(error).__name__}: {error})")
    index = images.finish().index()
    index.notes += check_size("refs", images.refs, REFS.get(request.name, {}).get(request.split))
    index.notes.append(FEWER)
    folder, decode = request.coco_pictures([request.root, request.root.parent], examples_of(index.records))
    return IndexedDataset(request.name, request.split, index, folder, str(files[0].parent), decode)


def _add_ref(images: Gatherer, ref: Any, annotation: Any, info: Any, image: str, text: str, where: str) -> None:
    height, width = info["height"], info["width"]
    if not all(map(whole, (height, width, ref["image_id"], ref["ref_id"]))) or min(height, width) < 1:
        raise VLSegError(f"{where}: ids and sizes must be integers")
    record = images.record(str(ref["image_id"]), image, [height, width], ref["image_id"])
    name = f"annotation {ref['ann_id']}"
    target = images.mask(record, annotation["segmentation"], name, annotation.get("category_id"), where)
    if target is not None:
        sentences = [(s["sent_id"], s[text]) for s in listed(ref["sentences"])]
        images.ask(record, target, sentences, f"{images.request.name}:{ref['ref_id']}", where)


def _open_benchmark(request: Request, files: list[Path]) -> IndexedDataset:
    images, text = Gatherer(request), _text_field(request)
    for position, file in enumerate(files):
        for number, row in rows(file, ["ref_list", "image_info"]):
            where = f"{file.name}: row {number}"
            for entry in listed(row["ref_list"]):
                try:
                    ref, info = entry["ref_info"], row["image_info"]
                    _add_ref(images, ref, entry["ann_info"], info, f"{position}#{number}", text, where)
                except VLSegError as error:
                    images.builder.problem(where, str(error).removeprefix(f"{where}: "))
                except (TypeError, KeyError, AttributeError) as error:
                    problem = f"is not as in jxu124/refcoco-benchmark ({type(error).__name__}: {error})"
                    images.builder.problem(where, problem)
    index = images.finish().index()
    index.notes += check_size("refs", images.refs, REFS.get(request.name, {}).get(request.split))
    index.notes.append(FEWER)
    return ParquetDataset(request.name, request.split, index, files, str(files[0].parent))


def _open_answers(request: Request, files: list[Path]) -> IndexedDataset:
    images = Gatherer(request)
    for position, file in enumerate(files):
        for number, row in rows(file, ["question_id", "answer", "segmentation", "file_name"]):
            where = f"{file.name}: row {number}"
            match = re.search(r"_(\d{12})(?:_\d+)?\.jpg$", str(row["file_name"]))
            coco_id = int(match[1]) if match else None
            id = str(coco_id) if match else str(row["file_name"])
            record = images.record(id, f"{position}#{number}", None, coco_id)
            target = images.mask(record, row["segmentation"], f"row {number} of {file.name}", None, where)
            if target is not None:
                answers = row["answer"]
                sentences = list(enumerate(answers if isinstance(answers, list) else [answers]))
                images.ask(record, target, sentences, f"{request.name}:{row['question_id']}", where)
    index = images.finish().index()
    index.notes.append(
        "lmms-lab's edition: val mixes the unc and google partitions, a mask is one polygon, and there are no "
        "categories, hence no distractors; its numbers are not RefCOCO's"
    )
    return ParquetDataset(request.name, request.split, index, files, str(files[0].parent))


def _open_rows(request: Request, files: list[Path]) -> IndexedDataset:
    images = Gatherer(request)
    sizes = {"img_height", "img_width"} <= columns_of(files[0])
    named = "ann_id" in columns_of(files[0])
    columns = ["text", "image_id", *(["img_height", "img_width"] if sizes else []), *(["ann_id"] if named else [])]
    total = 0
    for position, file in enumerate(files):
        for number, row in rows(file, columns):
            where = f"{file.name}: row {number}"
            size = [row["img_height"], row["img_width"]] if sizes else None
            if size is not None and not all(whole(side) and 0 < side < 2**15 for side in size):
                images.builder.problem(where, f"its size is {size[0]} x {size[1]}")
                continue
            id = str(row["image_id"])
            coco_id = int(id) if request.name in REFS and id.isdigit() else None
            record = images.record(id, f"{position}#{number}", size, coco_id)
            record["masks"].append({"cell": [position, number]})
            record["names"].append(f"row {number} of {file.name}")
            images.categories[record["id"]].append(None)
            # An annotation may come in several rows, one a sentence, so the row belongs into the id.
            prefix = f"{request.name}:{row.get('ann_id', id)}"
            images.ask(record, len(record["masks"]) - 1, [(total, row["text"])], prefix, where)
            total += 1
    index = images.finish().index()
    index.notes.append("a mirror of single sentences; ignored pixels, if there were any, are lost")
    return ParquetDataset(request.name, request.split, index, files, str(files[0].parent))
