"""PhraseCut (arXiv 2008.01187): phrases about Visual Genome images and the regions they mean, as polygons.

refer_SPLIT.json is a list of tasks {task_id, image_id, phrase, phrase_structure: {type, name, ...}, Polygons: instances
of polygons of [x, y]}; image_data_split.json tells the sizes of the images. A query's kind is its structure's type
(name, attribute, relation, verbose). Instances of other phrases may be the same objects, so there are no distractors.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from vlseg.data.index import Builder, Index, IndexedDataset, load_index
from vlseg.data.official import PHRASECUT
from vlseg.data.reading import JSON_ERRORS, decode_json, read_bytes, reason
from vlseg.data.records import Record, distinct, usable
from vlseg.data.request import Request, examples_of
from vlseg.types import VLSegError


def open_phrasecut(request: Request) -> IndexedDataset:
    """One split. Raises VLSegError."""
    root, split = request.root, request.split
    bases = [root / "phrasecut", root / "VGPhraseCut_v0", root / "PhraseCutDataset/data/VGPhraseCut_v0", root]
    base = next((base for base in bases if (base / f"refer_{split}.json").is_file()), bases[0])
    tasks = base / f"refer_{split}.json"
    sizes = next(
        (base / name for name in ("image_data_split.json", "image_data_split3000.json") if (base / name).is_file()),
        base / "image_data_split.json",
    )
    gone = [path for path in (tasks, sizes) if not path.is_file()]
    if gone:
        request.missing(gone, f"put the files of PhraseCut there and the pictures ID.jpg into {base / 'images'}")
    index = load_index(request.name, split, [tasks, sizes], "", lambda: build(tasks, sizes, split))
    genome = [root / "VG_100K", root / "visual_genome" / "VG_100K", root / "vg" / "VG_100K"]
    folder = request.picture_folder(
        [base / "images", *genome], examples_of(index.records), "the Visual Genome pictures"
    )
    return IndexedDataset(request.name, split, index, folder, str(tasks))


class _Image(msgspec.Struct):
    image_id: int
    height: int
    width: int
    coco_id: int | None = None


class _Structure(msgspec.Struct):
    type: str | None = None


class _Task(msgspec.Struct):
    task_id: str | int
    image_id: int
    phrase: str
    Polygons: list[list[list[tuple[float, float]]]]
    phrase_structure: _Structure | None = None


class _Name(msgspec.Struct):
    task_id: str | int | None = None


def build(tasks_path: Path, sizes_path: Path, split: str) -> Index:
    """The index of a split. Raises VLSegError for files that are none of their kind."""
    builder = Builder()
    listed = msgspec.json.Decoder(list[msgspec.Raw])
    tasks = decode_json(read_bytes(tasks_path), listed, f"{tasks_path}: no list of tasks")
    images = _images(decode_json(read_bytes(sizes_path), listed, f"{sizes_path}: no list of images"))
    records: dict[int, Record] = {}
    seen: set[int] = set()
    decode = msgspec.json.Decoder(_Task).decode
    for number, raw in enumerate(tasks, 1):
        where = f"{tasks_path.name}: task {number} of the list"
        try:
            task = decode(raw)
            where = f"{tasks_path.name}: task {task.task_id}"
            seen.add(task.image_id)
            _add(task, images.get(task.image_id), records, where, builder)
        except JSON_ERRORS as error:
            builder.problem(_where(raw, where), reason(error))
        except VLSegError as error:
            builder.problem(where, str(error))
    for record in distinct(records.values(), builder.problem, tasks_path.name):
        if record["queries"]:
            builder.add(record, f"{tasks_path.name}: image {record['id']}")
    _note_size(builder, split, len(tasks), len(seen), tasks_path)
    return builder.index()


def _images(raws: list[msgspec.Raw]) -> dict[int, _Image]:
    images = {}
    decode = msgspec.json.Decoder(_Image).decode
    for raw in raws:
        # A broken entry is told by the tasks that need it.
        with contextlib.suppress(*JSON_ERRORS):
            image = decode(raw)
            if 0 < image.height < 2**15 and 0 < image.width < 2**15:
                images[image.image_id] = image
    return images


def _where(raw: msgspec.Raw, where: str) -> str:
    with contextlib.suppress(*JSON_ERRORS):
        id = msgspec.json.decode(raw, type=_Name).task_id
        return where if id is None else where.partition(": ")[0] + f": task {id}"
    return where


def _add(task: _Task, image: _Image | None, records: dict[int, Record], where: str, builder: Builder) -> None:
    if image is None:
        raise VLSegError(f"image {task.image_id} is not in the list of images, or has no size there")
    if not task.phrase.strip():
        raise VLSegError("the phrase is empty")
    targets = []
    for number, instance in enumerate(task.Polygons, 1):
        flat = [[value for point in polygon for value in point] for polygon in instance]
        sound, wrong = usable(flat, (image.height, image.width))
        for what in wrong:
            builder.problem(f"{where}, instance {number}", what)
        if sound is not None:
            targets.append(msgspec.Raw(msgspec.json.encode(sound)))
    if not targets:
        raise VLSegError("no instance has a usable mask")
    record = records.setdefault(
        task.image_id,
        {
            "id": str(task.image_id),
            "image": f"{task.image_id}.jpg",
            "size": [image.height, image.width],
            "meta": {} if image.coco_id is None else {"coco_id": image.coco_id},
            "masks": [],
            "names": [],
            "queries": [],
        },
    )
    positions = list(range(len(record["masks"]), len(record["masks"]) + len(targets)))
    record["masks"] += targets
    record["names"] += [f"task {task.task_id}"] * len(targets)
    kind = task.phrase_structure.type if task.phrase_structure else None
    record["queries"].append([f"phrasecut:{task.task_id}", task.phrase.strip(), positions, [], kind or None, None])


def _note_size(builder: Builder, split: str, phrases: int, images: int, path: Path) -> None:
    official = PHRASECUT.get(split)
    if official is None:
        return
    if phrases != official[0]:
        builder.notes.append(f"{phrases} phrases, officially {official[0]}: a subset or another edition")
    elif images != official[1]:
        raise VLSegError(f"{path}: {phrases} phrases as published, but {images} images instead of {official[1]}")
