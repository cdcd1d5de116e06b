"""Records of images whose objects and sentences come row by row, as in the Parquet mirrors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlseg.data.index import Builder
from vlseg.data.reading import brief
from vlseg.data.records import Record, distinct, usable
from vlseg.data.request import Request


class Gatherer:
    """Records of images that several rows add to, in the order in which the images come first."""

    def __init__(self, request: Request):
        self.request, self.builder = request, Builder()
        self.records: dict[str, Record] = {}
        self.categories: dict[str, list[Any]] = {}
        self.refs = 0

    def record(self, id: str, image: str, size: Any, coco_id: int | None) -> Record:
        """The record of an image, new or begun before."""
        meta = {} if coco_id is None else {"coco_id": coco_id}
        blank = {"id": id, "image": image, "size": size, "meta": meta, "masks": [], "names": [], "queries": []}
        self.categories.setdefault(id, [])
        return self.records.setdefault(id, blank)

    def mask(self, record: Record, segmentation: Any, name: str, category: Any, where: str) -> int | None:
        """The position of a mask in the record, entered once by its name; None, with the problem told, if none."""
        if name in record["names"]:
            return int(record["names"].index(name))
        size = record["size"] or (2**15, 2**15)
        sound, wrong = usable(segmentation, tuple(size))
        for what in wrong:
            self.builder.problem(where, what)
        if sound is None:
            return None
        record["masks"].append(sound)
        record["names"].append(name)
        self.categories[record["id"]].append(category)
        return len(record["masks"]) - 1

    def ask(self, record: Record, target: int, sentences: Iterable[tuple[Any, Any]], prefix: str, where: str) -> None:
        """Queries for one target. sentences: (id, words)."""
        self.refs += 1
        for id, words in sentences:
            if isinstance(words, str) and words.strip():
                record["queries"].append([f"{prefix}:{id}", words.strip(), [target], [], None, None])
            else:
                self.builder.problem(where, f"sentence {id} has no words, got {brief(words)}")

    def finish(self) -> Builder:
        """Derive the distractors and pack the records that have a query."""
        where = f"{self.request.name} {self.request.split}".strip()
        for record in distinct(self.records.values(), self.builder.problem, where):
            kinds = self.categories[record["id"]]
            for query in record["queries"]:
                kind = kinds[query[2][0]]
                query[3] = [] if kind is None else [p for p, k in enumerate(kinds) if k == kind and p not in query[2]]
            if record["queries"]:
                self.builder.add(record, f"{where}: image {record['id']}")
        return self.builder


def listed(value: Any) -> list[Any]:
    """A list of structs, however it was stored: older `datasets` keep it as a struct of lists. None is no element."""
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        return [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    return value if isinstance(value, list) else []
