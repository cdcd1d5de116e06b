"""COCO instance files: the images, annotations and categories that readers of COCO and RefCOCO draw from."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vlseg.data.reading import JSON_ERRORS, decode_json, read_bytes, reason
from vlseg.data.records import FAR, usable

Tell = Callable[[str, str], None]
"""Takes a problem: (where, what)."""


class Annotation(msgspec.Struct, gc=False):
    """One instance. segmentation: the JSON text of polygons or an RLE, not parsed."""

    id: int
    image_id: int
    category_id: int
    iscrowd: int | bool | None = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw] = []


class _Numbered(msgspec.Struct):
    id: Any = None


@dataclass(slots=True)
class Picture:
    """An image of the file, with its annotations by id. size: (height, width)."""

    id: int
    file_name: str
    size: tuple[int, int]
    annotations: dict[int, Annotation]


@dataclass(slots=True)
class Instances:
    """Pictures by id, in the file's order, and category names by id."""

    pictures: dict[int, Picture]
    categories: dict[int, str]


def read_instances(path: Path, wanted: Container[int] | None, tell: Tell) -> Instances:
    """The file's pictures whose ids are `wanted` (None: all). Records that cannot be used are told.

    Segmentations are not looked at here (see `Masks`). Raises VLSegError for a file that is no COCO instance file.
    """
    file = decode_json(read_bytes(path), msgspec.json.Decoder(_File), f"{path}: no COCO instance file")
    pictures: dict[int, Picture] = {}
    decode_image = msgspec.json.Decoder(_Image).decode
    for number, raw in enumerate(file.images, 1):
        try:
            image = decode_image(raw)
        except JSON_ERRORS as error:
            tell(f"{path.name}: image {_name(raw, number)}", reason(error))
            continue
        if wanted is not None and image.id not in wanted:
            continue
        if image.id in pictures:
            tell(f"{path.name}: image {image.id}", "this id occurs before; the second is left out")
        elif not image.file_name or not (0 < image.height < 2**15 and 0 < image.width < 2**15):
            tell(f"{path.name}: image {image.id}", f"no file name, or no size: {image.height} x {image.width}")
        else:
            pictures[image.id] = Picture(image.id, image.file_name, (image.height, image.width), {})
    _deal(file.annotations, pictures, wanted is None, path.name, tell)
    return Instances(pictures, _categories(file.categories, path.name, tell))


def _deal(raws: list[msgspec.Raw], pictures: dict[int, Picture], complete: bool, file: str, tell: Tell) -> None:
    """Give annotations to their pictures. complete: `pictures` are all there are, so an unknown image is a problem."""
    decode = msgspec.json.Decoder(Annotation).decode
    for number, raw in enumerate(raws, 1):
        try:
            annotation = decode(raw)
        except JSON_ERRORS as error:
            tell(f"{file}: annotation {_name(raw, number)}", reason(error))
            continue
        picture = pictures.get(annotation.image_id)
        if picture is not None:
            if picture.annotations.setdefault(annotation.id, annotation) is not annotation:
                tell(f"{file}: annotation {annotation.id}", "this id occurs before; the second is left out")
        elif complete:
            tell(f"{file}: annotation {annotation.id}", f"image {annotation.image_id} is not in the file")


def _categories(raws: list[msgspec.Raw], file: str, tell: Tell) -> dict[int, str]:
    categories: dict[int, str] = {}
    decode = msgspec.json.Decoder(_Category).decode
    for number, raw in enumerate(raws, 1):
        try:
            category = decode(raw)
        except JSON_ERRORS as error:
            tell(f"{file}: category {_name(raw, number)}", reason(error))
            continue
        if category.id in categories or not category.name.strip():
            tell(f"{file}: category {category.id}", "this id occurs before, or it has no name; left out")
        else:
            categories[category.id] = category.name.strip()
    return categories


def _name(raw: msgspec.Raw, number: int) -> str:
    try:
        id = msgspec.json.decode(raw, type=_Numbered).id
    except JSON_ERRORS:
        id = None
    return str(id) if isinstance(id, int) else f"{number} of the list"


class Masks:
    """The masks of one picture, each checked once and given a position in its record when it is first used."""

    def __init__(self, picture: Picture, file: str, tell: Tell):
        self.picture, self.file, self.tell = picture, file, tell
        self.entries: list[Any] = []
        self.names: list[str] = []
        self._positions: dict[int, int | None] = {}

    def positions(self, ids: list[int]) -> list[int]:
        """The positions of those annotations that have a mask; what is wrong with the others is told once."""
        known = self._positions
        for id in ids:
            if id not in known:
                known[id] = self._enter(id)
        return [position for id in ids if (position := known[id]) is not None]

    def _enter(self, id: int) -> int | None:
        raw = self.picture.annotations[id].segmentation
        entry: Any = raw
        if not _sound(raw):
            try:
                entry, wrong = usable(msgspec.json.decode(raw), self.picture.size)
            except JSON_ERRORS as error:
                entry, wrong = None, [reason(error)]
            for what in wrong:
                self.tell(f"{self.file}: annotation {id}", what)
            if entry is None:
                return None
        self.entries.append(entry)
        self.names.append(f"annotation {id}")
        return len(self.entries) - 1


_polygons = msgspec.json.Decoder(list[list[float]]).decode


def _sound(segmentation: msgspec.Raw) -> bool:
    """Whether the text is a list of polygons with nothing wrong; it can then go into a record as it is."""
    try:
        polygons = _polygons(segmentation)
    except JSON_ERRORS:
        return False  # an RLE, or something that `usable` will name
    for polygon in polygons:
        # A sum beyond FAR is a coordinate far out of the picture, or a very long polygon: `usable` tells them apart.
        if len(polygon) < 6 or len(polygon) % 2 or not -FAR < sum(polygon) < FAR:
            return False
    return bool(polygons)
