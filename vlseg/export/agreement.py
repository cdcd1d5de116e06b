"""How far an exported model still answers as the one it was made from, on the pictures and words of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlseg.data.dataset import Dataset
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.segmenter import Segmenter
from vlseg.types import RLE, Answer, Sample, VLSegError

LIMIT = 20  # pictures


class Agreement:
    """The queries of a data set's first pictures, answered by the source of an export and by the export.

    spec: as `open_dataset` takes it; truth is not looked at, so that unlabelled queries count as well. limit: pictures.
    Raises VLSegError for a spec that cannot be opened, and a limit that is no positive whole number.
    """

    def __init__(self, spec: str, limit: int = LIMIT):
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise VLSegError(f"limit {limit}: must be a number of pictures, 1 or more")
        self.spec = str(spec)
        self._data, self._limit = open_dataset(self.spec), limit
        self._source: list[list[Answer]] = []

    def ask_source(self, folder: Path) -> None:
        """Keep the answers of the plain checkpoint in `folder`.

        Raises VLSegError for a picture that cannot be read, and where there is no query among the pictures.
        """
        self._source = self._answers(folder)
        if not self._source:
            raise VLSegError(f"data={self.spec}: no query in its first {self._limit} pictures; name other data")

    def of(self, folder: Path) -> dict[str, Any]:
        """The answers of the export in `folder`, compared with those that `ask_source` kept; for `export.json`.

        same_status: share of the queries whose status is the same; masks: the queries for which at least one of the
        two found something; mean_iou: of the two masks, over those (0 where only one found something), None where there
        are none.
        """
        pairs = [pair for mine, theirs in zip(self._answers(folder), self._source, strict=True)
                 for pair in zip(mine, theirs, strict=True)]  # fmt: skip
        shown = [(mask_of(mine), mask_of(theirs)) for mine, theirs in pairs if mine.segments or theirs.segments]
        overlaps = [float(codec.iou([mine], [theirs])[0, 0]) for mine, theirs in shown]
        return {
            "data": self.spec,
            "images": len(self._source),
            "queries": len(pairs),
            "same_status": sum(mine.status == theirs.status for mine, theirs in pairs) / len(pairs),
            "masks": len(overlaps),
            "mean_iou": sum(overlaps) / len(overlaps) if overlaps else None,
        }

    def _answers(self, folder: Path) -> list[list[Answer]]:
        """Of every sample that has queries. In float32, as the source is: what differs is the export's own doing."""
        segmenter = Segmenter(folder, dtype="float32", keep_picture=False)
        return [
            segmenter(sample.image, [query.text for query in sample.queries]).answers
            for sample in first(self._data, self._limit)
            if sample.queries
        ]


def first(data: Dataset, count: int) -> Iterator[Sample]:
    """At most so many samples, one at a time."""
    return (data[position] for position in range(min(count, len(data))))


def mask_of(answer: Answer) -> RLE:
    """The union of an answer's segments."""
    return codec.union([segment.rle for segment in answer.segments], answer.size)


def in_words(facts: dict[str, Any]) -> str:
    """`Agreement.of` in one line: `mean IoU 0.987 with the source over 85 masks, same status for 99.2 % of 120 ...`."""
    iou = "no masks to compare"
    if facts["mean_iou"] is not None:
        iou = f"mean IoU {facts['mean_iou']:.4f} with the source over {facts['masks']} masks"
    return f"{iou}, same status for {facts['same_status']:.1%} of {facts['queries']} queries"
