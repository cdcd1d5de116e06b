"""The published sizes of data sets, and what to say where files have other ones."""

from __future__ import annotations

from collections.abc import Mapping

from vlseg.types import VLSegError

# Referred objects a split. RefCOCO, +, g: TALENT's utils/dataset.py and the cards of the Hub mirrors; RefCOCO by
# Google: the catalogue of TensorFlow Datasets.
REFS: dict[str, dict[str, int]] = {
    "refcoco": {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810},
    "refcoco+": {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798},
    "refcocog-umd": {"train": 42226, "val": 2573, "test": 5023},
    "refcocog-google": {"train": 44822, "val": 5000},
    "refcoco-google": {"train": 40000, "val": 5000, "test": 5000},
}
SENTENCES: dict[str, dict[str, int]] = {"refcoco": {"train": 120624, "val": 10834, "testA": 5657, "testB": 5095}}
# Images a split.
REASONSEG = {"train": 239, "val": 200, "test": 779}
REFCOCO_M = {"images": 1190, "masks": 2080, "sentences": 5598}
# Phrases and images a split, of the release that the paper describes; miniv is the 100 images kept out of val.
PHRASECUT = {"train": (310816, 71746), "val": (20316, 2971), "test": (14354, 2545), "miniv": (821, 100)}


def check_refs(name: str, refs: Mapping[str, int], sentences: Mapping[str, int]) -> list[str]:
    """Compare a refs file with the published sizes; returns what to note.

    A file with the published number of refs is the real one: its splits must have their sizes too, else VLSegError. Any
    other number is a subset or another edition, which is let through and said. refs, sentences: numbers by split.
    """
    official = REFS.get(name)
    if official is None:
        return ["the official sizes of its splits are not known here and were not checked"]
    total, expected = sum(refs.values()), sum(official.values())
    if total != expected:
        return [f"{total} of the official {expected} refs: a subset or another edition; sizes were not checked"]
    for split, size in official.items():
        if refs.get(split, 0) != size:
            raise VLSegError(
                f"{name}: split {split} has {refs.get(split, 0)} refs, officially {size}: the file has all {total} "
                "but divides them differently; get the original file"
            )
        said = SENTENCES.get(name, {}).get(split)
        if said is not None and sentences.get(split, 0) != said:
            found = sentences.get(split, 0)
            raise VLSegError(f"{name}: split {split} has {found} sentences, officially {said}; get the original file")
    return []


def check_size(what: str, found: int, official: int | None) -> list[str]:
    """What to note where one number differs from the published one."""
    if official is None or found == official:
        return []
    return [f"{found} {what}, officially {official}: a subset or another edition"]
