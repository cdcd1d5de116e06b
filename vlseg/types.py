"""What every room speaks of: queries, samples, segments, answers, results. No torch here.

A mask at rest is a COCO RLE: ``{"size": [height, width], "counts": str}`` (compressed, counts as str), so that every
object on this page is plain data and goes to JSON as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class RLE(TypedDict):
    """A COCO run-length encoded mask; ``size`` is [height, width], ``counts`` the compressed string."""

    size: list[int]
    counts: str


Status = Literal["found", "absent", "failed"]
Mode = Literal["mask", "path"]
Stage = Literal["mask", "path", "refined"]


class VLSegError(Exception):
    """The call or its input is wrong. The message is one line: what, where, how to mend. The CLI exits with 2."""


@dataclass(slots=True)
class Query:
    """One referring expression about an image, with its truth where it is known.

    masks: one RLE per target; ``[]`` says that nothing in the image matches; ``None`` that the query is unlabelled.
    distractors: one RLE per object that the words could be mistaken for.
    kind: the kind of expression ("name", "relation", ...), where the source knows it; for slices of a report.
    ignore: pixels that no score and no loss looks at. id: unique within its data set; "" where the source gives none.
    """

    text: str
    masks: list[RLE] | None = None
    distractors: list[RLE] = field(default_factory=list)
    kind: str | None = None
    ignore: RLE | None = None
    id: str = ""


@dataclass(slots=True)
class Sample:
    """One image with K queries: the unit of work everywhere.

    image: path, PIL image or ``(H, W, 3) uint8`` array; opened by whoever needs the pixels, not before.
    size: (height, width) of the upright image, where it is known without opening it.
    """

    image: str | Path | Image.Image | np.ndarray
    queries: list[Query]
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None


@dataclass(slots=True)
class Coarse:
    """What a refined segment was before. stage: "mask" or "path"; rle, path: as in `Segment`."""

    stage: Stage
    rle: RLE
    path: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order of the result JSON."""
        return {"stage": self.stage, "rle": _plain(self.rle), "path": self.path}


@dataclass(slots=True)
class Segment:
    """One connected answer region or instance. bbox: COCO [x, y, w, h] in pixels; area in pixels.

    path: SVG path data in pixels of the image, even-odd; in mask mode the exact pixel outline of ``rle``.
    stage: what made ``rle``: a mask, a path that the model wrote, or a refiner; coarse: what the refiner was given.
    """

    score: float
    bbox: list[float]
    area: int
    rle: RLE
    path: str
    stage: Stage = "mask"
    coarse: Coarse | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order of the result JSON; ``coarse`` only where the segment was refined."""
        data = {
            "score": round(float(self.score), 6),
            "bbox": list(self.bbox),
            "area": int(self.area),
            "rle": _plain(self.rle),
            "path": self.path,
            "stage": self.stage,
        }
        return data if self.coarse is None else {**data, "coarse": self.coarse.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Segment:
        """The inverse of ``to_dict``. Raises TypeError for keys that are missing or unknown."""
        coarse = data.get("coarse")
        return cls(**{**data, "coarse": None if coarse is None else Coarse(**coarse)})


def _plain(rle: RLE) -> dict[str, Any]:
    return {"size": list(rle["size"]), "counts": rle["counts"]}


@dataclass(slots=True)
class Answer:
    """What one query came to.

    status: "found" (score passes the presence threshold and at least one pixel), "absent", or "failed" with a reason.
    score: calibrated probability that the words have a referent in the image, whatever the status; None if unknown.
    """

    text: str
    status: Status
    score: float | None
    size: tuple[int, int]
    reason: str | None = None
    segments: list[Segment] = field(default_factory=list)

    @property
    def mask(self) -> np.ndarray:
        """The union of all segments, ``(H, W) bool``; all False where nothing was found."""
        from vlseg.masks.rle import decode_union

        return decode_union([s.rle for s in self.segments], self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order of the result JSON."""
        return {
            "text": self.text,
            "status": self.status,
            "score": None if self.score is None else round(float(self.score), 6),
            "reason": self.reason,
            "segments": [s.to_dict() for s in self.segments],
        }


@dataclass(slots=True)
class Result:
    """All answers about one image. size: (height, width) of the upright image. picture: its pixels, where kept."""

    image: str
    size: tuple[int, int]
    model: str
    answers: list[Answer]
    protocol: str = ""
    seconds: float = 0.0
    picture: Image.Image | None = None

    def __getitem__(self, index: int) -> Answer:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self):
        return iter(self.answers)

    def to_dict(self) -> dict[str, Any]:
        """The result JSON of the command line and the server."""
        return {
            "image": self.image,
            "size": [int(self.size[0]), int(self.size[1])],
            "model": self.model,
            "protocol": self.protocol,
            "seconds": round(float(self.seconds), 4),
            "answers": [a.to_dict() for a in self.answers],
        }

    def to_json(self, indent: int | None = None) -> str:
        """``to_dict`` as a JSON string."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """The inverse of ``to_dict``. Raises VLSegError where a key is missing."""
        try:
            size = (int(data["size"][0]), int(data["size"][1]))
            answers = [
                Answer(
                    a["text"],
                    a["status"],
                    a["score"],
                    size,
                    a.get("reason"),
                    [Segment.from_dict(s) for s in a["segments"]],
                )
                for a in data["answers"]
            ]
            return cls(data["image"], size, data["model"], answers, data.get("protocol", ""), data.get("seconds", 0.0))
        except (KeyError, TypeError, IndexError) as error:
            raise VLSegError(f"not a vlseg Result: {type(error).__name__} {error}") from error

    def overlay(self, **options: Any) -> Image.Image:
        """The picture with every found answer drawn on it. Options: see ``vlseg.masks.drawing.overlay``."""
        from vlseg.masks.drawing import overlay

        if self.picture is None:
            raise VLSegError("this Result holds no picture: pass keep_picture=True, or draw with vlseg.masks.drawing")
        return overlay(self.picture, self, **options)

    def svg(self) -> str:
        """All found answers as one SVG document in pixels of the image."""
        from vlseg.masks.svg import document

        return document(self)
