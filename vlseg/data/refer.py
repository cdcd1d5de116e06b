"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO from their original files: `refs(*).p` or `.json`, and `instances.json`.

A refs file is a list of {ref_id, ann_id, category_id, image_id, split, sentences: [{sent_id, sent, raw, tokens}]}
(github.com/lichengunc/refer). In gRefCOCO (arXiv 2306.00968) ann_id is a list, [-1] where nothing matches, and crowds
among the targets are skipped (ReLA, `grefcoco.py`). A query's text is `sent`, the cleaned sentence that published
numbers use; `raw` is what was typed. Its distractors are the other instances of its targets' categories in the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlseg.data.index import Builder, Index, IndexedDataset, load_index
from vlseg.data.instances import Instances, Masks, Picture, read_instances
from vlseg.data.mirrors import find_mirror, open_mirror
from vlseg.data.official import check_refs
from vlseg.data.reading import brief, read_json, read_plain_pickle, whole
from vlseg.data.records import distinct
from vlseg.data.request import Request, examples_of
from vlseg.types import VLSegError


@dataclass(frozen=True)
class Family:
    """A data set of the family: its folder, its refs file without suffix, its splits."""

    folder: str
    refs: str
    splits: tuple[str, ...]


FAMILY: dict[str, Family] = {
    "refcoco": Family("refcoco", "refs(unc)", ("train", "val", "testA", "testB")),
    "refcoco+": Family("refcoco+", "refs(unc)", ("train", "val", "testA", "testB")),
    "refcocog-umd": Family("refcocog", "refs(umd)", ("train", "val", "test")),
    "refcocog-google": Family("refcocog", "refs(google)", ("train", "val")),
    "refcoco-google": Family("refcoco", "refs(google)", ("train", "val", "test")),
    "grefcoco": Family("grefcoco", "grefs(unc)", ("train", "val", "testA", "testB")),
}
NO_TARGET = -1


def open_refer(request: Request) -> IndexedDataset:
    """One split of a data set of the family, from its original files or a Hub mirror in the same place.

    Raises VLSegError for files that are missing or none of their kind.
    """
    family = FAMILY[request.name]
    text = request.choice("text", "sent", ("sent", "raw"))
    root = request.root
    refs = find_refs(request.name, root)
    if refs is None:
        mirror = find_mirror([root / family.folder, root])
        if mirror is not None:
            return open_mirror(request, mirror)
        base = root / family.folder
        wanted = [base / f"{family.refs}{'.json' if request.name == 'grefcoco' else '.p'}", base / "instances.json"]
        request.missing(wanted, f"put both there and the COCO train2014 pictures into {root / 'train2014'}")
    instances = refs.with_name("instances.json")
    if not instances.is_file():
        request.missing([instances], f"it belongs beside {refs.name}")
    index = load_index(
        request.name,
        request.split,
        (refs, instances),
        text,
        lambda: build(request.name, request.split, refs, instances, text),
    )
    folder, decode = request.coco_pictures([root, root.parent, root / "refer_seg"], examples_of(index.records))
    return IndexedDataset(request.name, request.split, index, folder, str(instances), decode)


def find_refs(name: str, root: Path) -> Path | None:
    """The refs file of a data set of the family below a root, or in it; None where there is none.

    A root that is the folder of another member is not taken: RefCOCO+ has a refs(unc).p too.
    """
    family = FAMILY[name]
    bases = [root / family.folder, root / "refer_seg" / family.folder]
    if root.resolve().name not in {other.folder for other in FAMILY.values()} - {family.folder}:
        bases.append(root)
    candidates = [base / f"{family.refs}{suffix}" for base in bases for suffix in (".p", ".json")]
    return next((path for path in candidates if path.is_file()), None)


def read_refs(path: Path) -> list[Any]:
    """The list of a refs file, a pickle (".p") or JSON. Raises VLSegError."""
    refs = read_json(path) if path.suffix == ".json" else read_plain_pickle(path)
    if not isinstance(refs, list):
        raise VLSegError(f"{path}: no refs file; it holds {brief(refs)} where a list of refs should be")
    return refs


def images_by_split(path: Path) -> dict[str, set[int]]:
    """The image ids of every split of a refs file; quick, as it does not read instances. Raises VLSegError."""
    out: dict[str, set[int]] = {}
    for ref in read_refs(path):
        if isinstance(ref, dict) and isinstance(ref.get("split"), str) and whole(ref.get("image_id")):
            out.setdefault(ref["split"], set()).add(ref["image_id"])
    return out


def build(name: str, split: str, refs_path: Path, instances_path: Path, text: str = "sent") -> Index:
    """The index of one split. text: "sent" or "raw". Raises VLSegError for files that are none of their kind."""
    builder = Builder()
    by_image: dict[int, list[dict[str, Any]]] = {}
    refs, sentences = Counter[str](), Counter[str]()
    for number, ref in enumerate(read_refs(refs_path), 1):
        what = _ref_problem(ref)
        if what is not None:
            builder.problem(f"{refs_path.name}: ref {_name_of(ref, number)}", what)
            refs[str(ref.get("split")) if isinstance(ref, dict) else "?"] += 1
            continue
        refs[ref["split"]] += 1
        sentences[ref["split"]] += len(ref["sentences"])
        if ref["split"] == split:
            by_image.setdefault(ref["image_id"], []).append(ref)
    builder.notes += check_refs(name, refs, sentences)
    if not by_image:
        raise VLSegError(f"{refs_path}: no ref of split {split}; it has {', '.join(sorted(refs)) or 'none'}")
    instances = read_instances(instances_path, by_image.keys(), builder.problem)
    maker = _Maker(name, refs_path.name, instances_path.name, text, builder.problem)
    records = (maker.record(image_id, group, instances) for image_id, group in by_image.items())
    for record in distinct(filter(None, records), builder.problem, refs_path.name):
        if record["queries"]:
            builder.add(record, f"{refs_path.name}: image {record['id']}")
    return builder.index()


def _ref_problem(ref: Any) -> str | None:
    if type(ref) is not dict:
        return f"must be a dict, got {brief(ref)}"
    try:
        ids = ref["ann_id"]
        if not (whole(ref["ref_id"]) and whole(ref["image_id"])):
            return "ref_id and image_id must be integers"
        if not whole(ids) and not (type(ids) is list and ids and all(map(whole, ids))):
            return f"ann_id must be an integer or a list of integers, got {brief(ids)}"
        if type(ref["split"]) is not str or type(ref["sentences"]) is not list:
            return "split must be text and sentences a list"
    except KeyError as error:
        return f"{error.args[0]!r} is missing"
    return None


def _name_of(ref: Any, number: int) -> str:
    id = ref.get("ref_id") if isinstance(ref, dict) else None
    return str(id) if whole(id) else f"{number} of the list"


class _Maker:
    """Records of images from their refs."""

    def __init__(self, name: str, refs: str, instances: str, text: str, problem: Callable[[str, str], None]):
        self.name, self.refs, self.instances, self.text, self.problem = name, refs, instances, text, problem

    def record(self, image_id: int, refs: list[dict[str, Any]], instances: Instances) -> dict[str, Any] | None:
        picture = instances.pictures.get(image_id)
        if picture is None:
            for ref in refs:
                self._tell(ref, f"image {image_id} is not in {self.instances}, or cannot be used")
            return None
        masks = Masks(picture, self.instances, self.problem)
        groups: dict[int, list[int]] = {}
        for id, annotation in picture.annotations.items():
            if not annotation.iscrowd:
                groups.setdefault(annotation.category_id, []).append(id)
        queries = [query for ref in refs for query in self._queries(ref, picture, masks, groups)]
        return {
            "id": str(image_id),
            "image": picture.file_name,
            "size": picture.size,
            "meta": {"coco_id": image_id},
            "masks": masks.entries,
            "names": masks.names,
            "queries": queries,
        }

    def _queries(
        self, ref: dict[str, Any], picture: Picture, masks: Masks, groups: dict[int, list[int]]
    ) -> list[list[Any]]:
        generalised = self.name == "grefcoco"
        ids: list[int] = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        if generalised and ids == [NO_TARGET]:
            ids = []
        elif unknown := [id for id in ids if id not in picture.annotations]:
            self._tell(ref, f"annotation {unknown[0]} of image {picture.id} is not in {self.instances}, or is broken")
            return []
        elif generalised:
            ids = [id for id in ids if not picture.annotations[id].iscrowd]
            if not ids:
                self._tell(ref, "all its targets are crowds")
                return []
        targets = masks.positions(ids)
        if len(targets) < len(ids):
            self._tell(ref, "a target has no usable mask")
            return []
        categories = dict.fromkeys(picture.annotations[id].category_id for id in ids)
        distractors = masks.positions([other for c in categories for other in groups.get(c, ()) if other not in ids])
        return [[id, text, targets, distractors, None, None] for id, text in self._sentences(ref)]

    def _sentences(self, ref: dict[str, Any]) -> list[tuple[str, str]]:
        prefix, out = f"{self.name}:{ref['ref_id']}:", []
        for number, sentence in enumerate(ref["sentences"], 1):
            try:
                text, id = sentence[self.text], sentence["sent_id"]
                words = text.strip() if type(text) is str and whole(id) else ""
            except (TypeError, KeyError):
                words = ""
            if words:
                out.append((f"{prefix}{id}", words))
            else:
                what = f"needs an integer sent_id and words in {self.text!r}, got {brief(sentence)}"
                self.problem(f"{self.refs}: ref {ref['ref_id']}, sentence {number}", what)
        return out

    def _tell(self, ref: dict[str, Any], what: str) -> None:
        self.problem(f"{self.refs}: ref {ref['ref_id']}", what)
