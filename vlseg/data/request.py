"""What `open_dataset` asks a reader for, and the questions that readers share: options, files, folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from vlseg.data.records import Record, to_sample
from vlseg.types import Sample, VLSegError

# Where the COCO pictures lie in the layouts that people have; %s is the subset, such as train2014.
COCO_PICTURES = (
    "%s",
    "images/%s",
    "images/mscoco/images/%s",
    "coco/%s",
    "coco/images/%s",
    "mscoco/%s",
    "mscoco/images/%s",
    "coco2014/%s",
    "coco2017/%s",
)


class MissingFilesError(VLSegError):
    """The files of a data set are not where they are looked for."""


@dataclass(frozen=True)
class Request:
    """A data set that is asked for. options: those of the spec; pictures: whether a missing picture folder is an error.

    path: the file or folder, where the spec names one; root: the folder to look for named data sets in.
    """

    name: str
    split: str
    root: Path
    path: Path | None = None
    options: dict[str, str] = field(default_factory=dict)
    pictures: bool = True

    def number(self, key: str, default: int, least: int) -> int:
        """A whole number among the options. Raises VLSegError."""
        text = self.options.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            raise VLSegError(f"{self.name}: {key}={text} must be a whole number, at least {least}")
        return int(text)

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """One of several words among the options; case, "_" and "-" do not matter. Raises VLSegError."""
        text = self.options.get(key, default)
        for one in choices:
            if re.sub(r"[_-]", "", text).lower() == re.sub(r"[_-]", "", one).lower():
                return one
        raise VLSegError(f"{self.name}: {key}={text} is not one of {', '.join(choices)}")

    def missing(self, paths: Sequence[Path], what: str) -> NoReturn:
        """Raises MissingFilesError: which files are not there, and what belongs where."""
        names = " and ".join(str(path) for path in paths)
        verb = "is" if len(paths) == 1 else "are"
        raise MissingFilesError(
            f"{self.name}: {names} {verb} not there; {what}, or name another root than {self.root} with ?root=DIR or "
            "VLSEG_DATA (docs/data.md tells the rest)"
        )

    def picture_folder(self, places: Sequence[Path], examples: Sequence[str], what: str) -> Path:
        """The folder of the pictures: ?images=DIR, or the first place that holds one of the examples.

        Where none does: VLSegError if pictures are needed, else the first place.
        """
        places = self._given() or places
        for place in places:
            if _holds(place, examples):
                return place
        if not self.pictures:
            return places[0]
        example = examples[0] if examples else "*.jpg"
        raise VLSegError(
            f"{self.name}: the pictures are not there; put {what} ({example}, ...) into {places[0]}, "
            "or name their folder with ?images=DIR"
        )

    def coco_pictures(
        self, bases: Sequence[Path], examples: Sequence[str]
    ) -> tuple[Path, Callable[[Record, Path, str], Sample]]:
        """The folder of COCO pictures, and how records are decoded there: in the edition of 2017 names are shorter."""
        first = examples[0] if examples else ""
        subset = first.split("_")[1] if first.startswith("COCO_") else "train2014"
        places = [base / (layout % subset) for layout in COCO_PICTURES for base in bases]
        places += [base / "images" for base in bases]
        later = [base / (layout % subset.replace("2014", "2017")) for layout in COCO_PICTURES for base in bases]
        if not any(_holds(place, examples) for place in self._given() or places):
            for place in self._given() or later:
                if _holds(place, [_name_2017(name) for name in examples]):
                    return place, to_sample_2017
        return self.picture_folder(places, examples, f"the COCO {subset} pictures"), to_sample

    def _given(self) -> list[Path]:
        return [Path(self.options["images"]).expanduser()] if "images" in self.options else []


def examples_of(records: Sequence[Record], number: int = 8) -> list[str]:
    """The file names of some pictures, spread over the records: not every picture need be there."""
    return [records[i]["image"] for i in range(0, len(records), max(1, len(records) // number))]


def _holds(place: Path, examples: Sequence[str]) -> bool:
    return any((place / example).is_file() for example in examples)


def _name_2017(name: str) -> str:
    return name.rsplit("_", 1)[-1]


def to_sample_2017(record: Record, folder: Path, source: str) -> Sample:
    """As `to_sample`, for pictures named as in COCO 2017: without "COCO_train2014_"."""
    return to_sample({**record, "image": _name_2017(record["image"])}, folder, source)
