"""Training images that occur in a validation or test split of the RefCOCO family, found by COCO id and taken out.

RefCOCO, +, g, gRefCOCO and RefCOCO-M divide the same COCO images differently: an image that RefCOCO evaluates on is
often one that RefCOCOg trains on. Google's partitions divide objects, not images, so they share images with their own
training split by design; they are looked at on request only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlseg.data.dataset import Dataset, Problem
from vlseg.data.index import IndexedDataset, count, fingerprint, outline
from vlseg.data.refer import FAMILY, find_refs, images_by_split
from vlseg.data.registry import KNOWN, data_root, open_dataset
from vlseg.data.request import MissingFilesError
from vlseg.types import Sample

UNC_UMD = ("refcoco", "refcoco+", "refcocog-umd", "grefcoco", "refcoco-m")
GOOGLE = ("refcocog-google", "refcoco-google")


@dataclass(frozen=True)
class HeldOut:
    """COCO image ids by "NAME SPLIT"; unchecked: those "NAME SPLIT" whose files are not there."""

    images: dict[str, set[int]]
    unchecked: list[str]


def held_out(root: Path | None = None, names: Sequence[str] = UNC_UMD) -> HeldOut:
    """The images of every split but train of the data sets below the root (as for `open_dataset`).

    Raises VLSegError for files that are there and broken.
    """
    images: dict[str, set[int]] = {}
    unchecked: list[str] = []
    for name in names:
        refs = find_refs(name, data_root(root)) if name in FAMILY else None
        if refs is not None:
            found = images_by_split(refs)
            images |= {f"{name} {split}": found[split] for split in sorted(found) if split != "train"}
            continue
        for split in KNOWN[name].splits:
            if split == "train":
                continue
            try:
                dataset = open_dataset(name, split, root, pictures=False)
            except MissingFilesError:
                unchecked.append(f"{name} {split}")
            else:
                images[f"{name} {split}"] = {id for id in _coco_ids(dataset) if id is not None}
    return HeldOut(images, unchecked)


class WithoutLeaks:
    """A `Dataset` without the images that are held out, and the numbers of what was taken out.

    removed: images and queries; by_source: removed images by "NAME SPLIT" (an image may be in several); unknown:
    images without a COCO id, which stay in; unchecked: as in `HeldOut`.
    """

    def __init__(self, dataset: Dataset, held: HeldOut):
        self.dataset, self.name, self.split = dataset, dataset.name, dataset.split
        self.unchecked = held.unchecked
        ids = _coco_ids(dataset)
        every = set().union(*held.images.values())
        self.positions = [i for i, id in enumerate(ids) if id not in every]
        gone = [i for i, id in enumerate(ids) if id in every]
        self.removed = {"images": len(gone), "queries": sum(len(_labels(dataset, i).queries) for i in gone)}
        self.by_source = {
            source: number for source, found in held.images.items() if (number := sum(ids[i] in found for i in gone))
        }
        self.unknown = ids.count(None)

    @property
    def problems(self) -> list[Problem]:
        """Those of the data set."""
        return self.dataset.problems

    @property
    def notes(self) -> list[str]:
        """Those of the data set, and what was taken out."""
        return [*getattr(self.dataset, "notes", []), *self.report()]

    def report(self) -> list[str]:
        """What was taken out, in lines."""
        kept = len(self.positions)
        images, queries = self.removed["images"], self.removed["queries"]
        lines = [f"leak filter: {images} images with {queries} queries taken out, {kept} images kept"]
        if self.by_source:
            sources = ", ".join(f"{source} {number}" for source, number in self.by_source.items())
            lines.append(f"leak filter: of those in {sources}")
        if self.unknown:
            lines.append(f"leak filter: {self.unknown} images have no COCO id and stay in")
        if self.unchecked:
            lines.append(f"leak filter: not checked, as the files are not there: {', '.join(self.unchecked)}")
        return lines

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.positions[index]]

    def labels(self, index: int) -> Sample:
        """The sample without pixels."""
        return _labels(self.dataset, self.positions[index])

    def load(self, index: int) -> tuple[tuple[int, int] | None, int]:
        """As `IndexedDataset.load`; of another data set from its labels."""
        load = getattr(self.dataset, "load", None)
        if load is not None:
            found: tuple[tuple[int, int] | None, int] = load(self.positions[index])
            return found
        sample = self.labels(index)
        return sample.size, sum(query.masks is not None for query in sample.queries)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what is left."""
        return fingerprint(self.labels(i) for i in range(len(self)))

    def counts(self) -> dict[str, int]:
        """As `IndexedDataset.counts`."""
        return count(outline(self.labels(i)) for i in range(len(self)))


def without_leaks(dataset: Dataset, root: Path | None = None, names: Sequence[str] = UNC_UMD) -> WithoutLeaks:
    """The data set without the images of any validation or test split of `names`. Raises VLSegError."""
    return WithoutLeaks(dataset, held_out(root, names))


def _coco_ids(dataset: Dataset) -> list[int | None]:
    if isinstance(dataset, IndexedDataset):
        return dataset.coco_ids()
    return [_labels(dataset, i).meta.get("coco_id") for i in range(len(dataset))]


def _labels(dataset: Dataset, index: int) -> Sample:
    labels = getattr(dataset, "labels", dataset.__getitem__)
    sample: Sample = labels(index)
    return sample
