"""COCO instances as class queries: "person" asks for every person in the image.

One query a category that is present: its instances are the targets, the instances of other categories the distractors,
its crowds the ignored pixels. A category of which only a crowd is there is not asked for. On request (`absent=K`) K
categories that are not in the image are asked for too; which ones depends on the image's id and the seed alone.
"""

from __future__ import annotations

import random
from pathlib import Path

from vlseg.data.index import Builder, Index, IndexedDataset, load_index
from vlseg.data.instances import Instances, Masks, Picture, read_instances
from vlseg.data.records import Record
from vlseg.data.request import COCO_PICTURES, Request, examples_of
from vlseg.types import VLSegError


def open_coco(request: Request) -> IndexedDataset:
    """A COCO instance file (`request.path`), or that of the split under the root. Raises VLSegError."""
    absent, seed = request.number("absent", 0, 0), request.number("seed", 0, 0)
    path, split = (request.path, request.split) if request.path else _find(request)
    key = f"absent={absent} seed={seed}"
    index = load_index("coco", split, [path], key, lambda: build(path, absent, seed))
    base = path.parent
    subset = split or path.stem.removeprefix("instances_")
    places = [base / "images", base / subset, base]
    if base.name == "annotations":
        places = [base.parent / subset, base.parent / "images", *places]
    places += [root / (layout % subset) for root in (base.parent, request.root) for layout in COCO_PICTURES]
    folder = request.picture_folder(places, examples_of(index.records), "the pictures that the file names")
    return IndexedDataset(request.name, split, index, folder, str(path))


def _find(request: Request) -> tuple[Path, str]:
    """(annotation file, split): instances.json, or instances_SPLIT.json in the root or its folder annotations."""
    root = request.root
    single = root / "instances.json"
    if not request.split and single.is_file():
        return single, ""
    folders = [root / "annotations", root / "coco" / "annotations", root, root / "coco"]
    files = [file for folder in folders for file in sorted(folder.glob("instances_*.json"))]
    found = {file.stem.removeprefix("instances_"): file for file in files}
    near = [split for split in found if split.startswith(request.split)]
    if request.split in found:
        return found[request.split], request.split
    if len(near) == 1:
        return found[near[0]], near[0]
    if found:
        asked = f"no split {request.split}" if request.split else "say which split"
        raise VLSegError(f"{request.name}: {asked}; {root} has {', '.join(sorted(found))}")
    split = request.split or "val2017"
    wanted = root / "annotations" / f"instances_{split}.json"
    request.missing([wanted], f"put it there and the pictures into {root / split}, or instances.json beside images/")


def build(path: Path, absent: int = 0, seed: int = 0) -> Index:
    """The index of a file. absent: how many categories that are not in the image are asked for. Raises VLSegError."""
    builder = Builder()
    instances = read_instances(path, None, builder.problem)
    if not instances.categories:
        raise VLSegError(f'{path}: holds no category; "categories" needs entries like {{"id": 1, "name": "person"}}')
    for picture in instances.pictures.values():
        record = _record(picture, instances, path.name, builder, absent, seed)
        if record["queries"]:
            builder.add(record, f"{path.name}: image {picture.id}")
    return builder.index()


def _record(picture: Picture, instances: Instances, file: str, builder: Builder, absent: int, seed: int) -> Record:
    masks = Masks(picture, file, builder.problem)
    single: dict[int, list[int]] = {}
    crowds: dict[int, list[int]] = {}
    for number, annotation in picture.annotations.items():
        category = annotation.category_id
        if category not in instances.categories:
            builder.problem(f"{file}: annotation {number}", f"category {category} is not in the file")
            continue
        positions = masks.positions([number])
        if positions:
            (crowds if annotation.iscrowd else single).setdefault(category, []).extend(positions)
    # Broken annotations count as present: nobody knows that the image is free of their category.
    present = {annotation.category_id for annotation in picture.annotations.values()}
    queries = []
    for category in sorted(single):
        others = [position for other, positions in single.items() if other != category for position in positions]
        id, ignore = f"coco:{picture.id}:{category}", crowds.get(category)
        queries.append([id, instances.categories[category], single[category], others, "name", ignore])
    missing = sorted(set(instances.categories) - present)
    everything = [position for positions in single.values() for position in positions]
    for category in random.Random(f"{seed}:{picture.id}").sample(missing, min(absent, len(missing))):
        id = f"coco:{picture.id}:{category}"
        queries.append([id, instances.categories[category], [], everything, "absent", None])
    return {
        "id": str(picture.id),
        "image": picture.file_name,
        "size": picture.size,
        "meta": {"coco_id": picture.id},
        "masks": masks.entries,
        "names": masks.names,
        "queries": queries,
    }
