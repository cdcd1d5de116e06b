"""Anybody's masks as a `Predictor`: Results, one a line (DESIGN.md, 4.3), or a COCO results JSON.

Images are matched by id, path or file name. Expressions are matched by `id` (or `query_id`, `sent_id`, `ref_id`) where
the file gives one, else by their words, letter case and spaces aside; in a COCO results file the words are `text`,
`caption`, `sentence` or `phrase`, and `category_id` will do where the data are COCO's own class queries. A query that
the file does not answer is failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlseg.data.dataset import Dataset
from vlseg.evaluation.batch import case_id, labels_of, size_of
from vlseg.masks import rle as codec
from vlseg.types import RLE, Answer, Query, Sample, Segment, Status, VLSegError

ID_KEYS = ("id", "query_id", "sent_id", "ref_id")
TEXT_KEYS = ("text", "caption", "sentence", "phrase")
THRESHOLD = 0.5  # score from which an entry of a COCO results file is part of an answer

Entry = dict[str, Any]


class StoredPredictions:
    """The answers in a file. extra: those that belong to no query of the data set, each named.

    threshold: score from which an answer is found; None: 0.5 for COCO results, what the file says for Results.
    Raises VLSegError for a file that is neither.
    """

    mode = "stored predictions"
    reads_images = False

    def __init__(self, path: Path, dataset: Dataset, threshold: float | None = None, limit: int | None = None):
        self.path, self.name, self.threshold = path, path.name, threshold
        self.deviations: list[str] = []
        self.extra: list[str] = []
        self.entries: dict[str, list[Entry]] = {}  # by id of the case
        self.index = _Index(dataset, limit)
        entries = read_predictions(path)
        self.coco = "answers" not in entries[0]
        if self.coco:
            level = THRESHOLD if threshold is None else threshold
            self.protocol = f"COCO results from {path.name}; a query's parts with score >= {level:g} are united"
            self._take_coco(entries)
        else:
            said = "status as the file says" if threshold is None else f"found: score >= {threshold:g}"
            self.protocol = f"Results from {path.name}; {said}"
            self._take_results(entries)

    def answer(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[list[Answer]]:
        """See `Predictor.answer`. Raises VLSegError for a query without a prediction, and for a broken one."""
        return [[self._answer(query, size_of(sample)) for query in sample.queries] for sample in samples]

    def _answer(self, query: Query, size: tuple[int, int]) -> Answer:
        if query.id not in self.entries:
            raise VLSegError(f"{self.name} has no prediction for it")
        entries = self.entries[query.id]
        return self._from_coco(query, entries, size) if self.coco else self._from_result(query, entries[0], size)

    def _from_coco(self, query: Query, entries: Sequence[Entry], size: tuple[int, int]) -> Answer:
        level = THRESHOLD if self.threshold is None else self.threshold
        scores = [_score(entry.get("score", 1.0)) for entry in entries]
        parts = [
            codec.from_coco(entry.get("segmentation"), *size)
            for entry, score in zip(entries, scores, strict=True)
            if score is not None and score >= level
        ]
        return _answer(query, size, "found" if parts else "absent", max(s or 0.0 for s in scores), parts)

    def _from_result(self, query: Query, entry: Entry, size: tuple[int, int]) -> Answer:
        segments, score = entry.get("segments") or [], _score(entry.get("score"))
        status: Status = entry.get("status", "found" if segments else "absent")
        if status not in ("found", "absent", "failed"):
            raise VLSegError(f"its status is {status!r}; there are found, absent and failed")
        if self.threshold is not None and score is not None and status != "failed":
            status = "found" if score >= self.threshold else "absent"
        if status == "failed":
            return Answer(query.text, status, score, size, str(entry.get("reason") or "failed, as the file says"))
        rles = [codec.validate(segment["rle"]) for segment in segments] if status == "found" else []
        return _answer(query, size, status, score, rles)

    def _take_results(self, results: Sequence[Entry]) -> None:
        same_words: dict[tuple[int, str], list[Entry]] = {}
        for number, result in enumerate(results, 1):
            where = f"{self.name}: result {number}"
            position = self.index.image(result.get("image"))
            for answer in result["answers"]:
                if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
                    raise VLSegError(f'{where}: an answer is an object with "text", "status" and "segments"')
                case = self.index.by_id(position, answer)
                if case is not None:
                    self.entries[case] = [answer]
                elif self.index.by_words(position, answer["text"]):
                    same_words.setdefault((position or 0, _words(answer["text"])), []).append(answer)
                else:
                    self.extra.append(f"{where}: {answer['text']!r} is no query of image {result.get('image')!r}")
        for (position, words), answers in same_words.items():
            # Several queries may have the same words: one answer is for all of them, else they go by their order.
            cases = [case for case in self.index.by_words(position, words) if case not in self.entries]
            given = answers * len(cases) if len(answers) == 1 else answers
            self.entries |= {case: [answer] for case, answer in zip(cases, given, strict=False)}
            self.extra += [f"{self.name}: {words!r} is answered once more than asked" for _ in given[len(cases) :]]

    def _take_coco(self, entries: Sequence[Entry]) -> None:
        for number, entry in enumerate(entries, 1):
            where = f"{self.name}: result {number}"
            position = self.index.image(entry.get("image_id"))
            words = next((entry[key] for key in TEXT_KEYS if isinstance(entry.get(key), str)), None)
            if words is None and not any(key in entry for key in (*ID_KEYS, "category_id")):
                raise VLSegError(
                    f"--predictions {where}: does not say what it answers; it needs category_id or one of "
                    f"{', '.join(ID_KEYS + TEXT_KEYS)}"
                )
            case = self.index.by_id(position, entry) or self.index.by_category(entry)
            cases = [case] if case is not None else self.index.by_words(position, words or "")
            for name in cases:
                self.entries.setdefault(name, []).append(entry)
            if not cases:
                said = {key: entry[key] for key in (*ID_KEYS, *TEXT_KEYS, "category_id") if key in entry}
                self.extra.append(f"{where}: {said} is no query of image {entry.get('image_id')!r}")


class _Index:
    """Where the images and queries of a data set are found by what a file of predictions calls them."""

    def __init__(self, dataset: Dataset, limit: int | None):
        self.images: dict[str, int | None] = {}  # None where a name stands for several images
        self.ids: dict[str, int] = {}  # of cases, to positions
        self.words: dict[tuple[int, str], list[str]] = {}
        count = len(dataset) if limit is None else min(limit, len(dataset))
        for position in range(count):
            sample = labels_of(dataset, position)
            for name in _names(sample):
                self.images[name] = position if self.images.get(name, position) == position else None
            for k, query in enumerate(sample.queries):
                if query.masks is not None:
                    id = case_id(sample, position, k)
                    self.ids[id] = position
                    self.words.setdefault((position, _words(query.text)), []).append(id)

    def image(self, name: Any) -> int | None:
        """The position of the sample of an image id, path or file name."""
        text = str(name)
        for key in (text, Path(text).name, Path(text).stem):
            position = self.images.get(key)
            if position is not None:
                return position
        return None

    def by_id(self, position: int | None, entry: Entry) -> str | None:
        """The id of the case that an entry names by id."""
        for key in ID_KEYS:
            id = str(entry.get(key))
            if key in entry and id in self.ids and position in (None, self.ids[id]):
                return id
        return None

    def by_category(self, entry: Entry) -> str | None:
        """The id of the class query (`vlseg/data/coco.py`) of an entry with image_id and category_id."""
        id = f"coco:{entry.get('image_id')}:{entry.get('category_id')}"
        return id if id in self.ids else None

    def by_words(self, position: int | None, words: str) -> list[str]:
        """The ids of the cases of an image that have these words."""
        return [] if position is None else self.words.get((position, _words(words)), [])


def _answer(query: Query, size: tuple[int, int], status: Status, score: float | None, rles: Sequence[RLE]) -> Answer:
    segments = [Segment(score or 0.0, codec.bbox(rle), codec.area(rle), rle, "") for rle in rles]
    return Answer(query.text, status, score, size, None, segments)


def _names(sample: Sample) -> Iterator[str]:
    """What an image may be called: id, path, name, stem, and COCO's number of it."""
    yield sample.id
    if "coco_id" in sample.meta:
        yield str(sample.meta["coco_id"])
    if isinstance(sample.image, str | Path):
        path = Path(sample.image)
        yield from (str(sample.image), path.name, path.stem)
        number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", path.stem)
        if number:
            yield number[1]


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise VLSegError(f"its score {value!r} is no number in 0..1")
    return float(value)


def read_predictions(path: Path) -> list[Entry]:
    """The entries of a file as they stand in it: Results or COCO results. Raises VLSegError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VLSegError(f"--predictions {path}: cannot be read ({reason})") from error
    try:
        data = json.loads(text)
        entries = data if isinstance(data, list) else [data]
    except ValueError:
        entries = _lines(path, text)
    if not entries:
        raise VLSegError(f"--predictions {path}: holds no prediction")
    key = "answers" if isinstance(entries[0], dict) and "answers" in entries[0] else "segmentation"
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or key not in entry:
            raise VLSegError(
                f"--predictions {path}: entry {number} has no {key!r}; expected Results, one a line, or a COCO results "
                "list with image_id and segmentation"
            )
        if key == "answers" and not isinstance(entry["answers"], list):
            raise VLSegError(f'--predictions {path}: "answers" of entry {number} is no list')
    return entries


def _lines(path: Path, text: str) -> list[Any]:
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                raise VLSegError(f"--predictions {path}:{number}: not JSON ({error})") from error
    return entries
