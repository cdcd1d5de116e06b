"""A run of `vlseg label`: pictures in shards, each written when it is whole, so that a killed run goes on.

labels.jsonl       data of one's own (DESIGN.md, 4.4): `masks`, and where two systems were asked `ignore`
ranking.csv        every query with its signals, the most uncertain first; ranking.jsonl: the same for programs
maps/*.png         per labelled query of a second opinion: 0 outside, 1 inside, 255 ignored
errors.jsonl       pictures that could not be labelled, {"image", "error"}
shards/            what is done so far; may be deleted at the end
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlseg.bulk.label import Labelled, Labeller
from vlseg.bulk.label_files import write_files
from vlseg.bulk.output import Output, clean
from vlseg.bulk.pictures import Pictures, open_picture
from vlseg.bulk.questions import Questions
from vlseg.data.files import write_whole
from vlseg.data.images import MAX_PIXELS
from vlseg.data.jsonl import query_to_dict
from vlseg.data.reading import read_json
from vlseg.evaluation.shards import KEY, as_text, goes_on
from vlseg.types import VLSegError
from vlseg.version import __version__


@dataclass(slots=True)
class Summary:
    """What a run came to. labelled: queries that got a label, of `queries`; errors: {"image", "error"}; failed: queries
    that the system could not answer, {"image", "text", "reason"}; before: images that an earlier run had done."""

    images: int = 0
    before: int = 0
    queries: int = 0
    labelled: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def line(self) -> str:
        """In words."""
        before = f" ({self.before} of them before)" if self.before else ""
        wrong = f"; {len(self.errors)} images failed" if self.errors else ""
        wrong += f"; {len(self.failed)} queries failed" if self.failed else ""
        return f"{self.images} images{before}, {self.labelled} of {self.queries} queries labelled{wrong}"


def run_labels(
    labeller: Labeller,
    pictures: Pictures,
    questions: Questions,
    out: Path,
    key: dict[str, Any] | None = None,
    shard: int = 20,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Summary:
    """Label pictures into the folder `out`. pictures: files; key: what must be the same to go on with an earlier run
    there, on top of images, queries and rules: say there what the models are. progress: wraps the numbers of images.

    Pictures that failed are tried again when the same run is started anew. Raises VLSegError for a folder that holds
    another run, or where one is going on.
    """
    shards = -(-len(questions) // shard)
    inner, done = out / "shards", Output(out, "jsonl", shards)
    with done.alone():
        clean(out)
        file = inner / KEY
        whole = {**_key(labeller, pictures, questions, shard, max_pixels), **(key or {})}
        if not goes_on(file, whole, f"{out}: holds labels", "name another --out, or delete what it holds"):
            inner.mkdir(parents=True, exist_ok=True)
            write_whole(file, as_text(whole))
        records: dict[int, dict[str, Any]] = {}
        before, steps = 0, iter(progress(range(len(questions))))
        for number in range(shards):
            place = inner / f"{number:06d}.json"
            numbers = range(number * shard, min((number + 1) * shard, len(questions)))
            stored = read_json(place) if place.exists() else {}
            fresh = {}
            for i in numbers:
                next(steps)
                kept = stored.get(str(i))
                before += kept is not None and "error" not in kept
                if kept is None or "error" in kept:
                    kept = _one(labeller, pictures, questions, i, max_pixels)
                    stored = {**stored, str(i): kept}
                    fresh[i] = kept
            if fresh or not place.exists():
                write_whole(place, json.dumps(stored, ensure_ascii=False))
        next(steps, None)  # ends a progress bar
        for number in range(shards):
            records |= {int(i): record for i, record in read_json(inner / f"{number:06d}.json").items()}
        write_files(out, records, labeller.against is not None)
        return _summary(records, before)


def _one(labeller: Labeller, pictures: Pictures, questions: Questions, number: int, max_pixels: int) -> dict[str, Any]:
    """What is kept of one picture."""
    position = questions.positions[number]
    name = pictures.names[position]
    try:
        picture = open_picture(pictures, position, max_pixels)
        made = labeller(picture, questions.of(number))
    except VLSegError as error:
        text = str(error)
        return {"image": name, "error": text}
    except Exception as error:  # a model can fail in any way; the run goes on, and the reason is told
        return {"image": name, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return {"image": name, "file": str(pictures.source(position)), **_plain(made)}


def _plain(made: Labelled) -> dict[str, Any]:
    return {
        "size": list(made.size),
        "queries": [query_to_dict(query) for query in made.queries],
        "doubts": [doubt.to_dict() for doubt in made.doubts],
    }


def _summary(records: dict[int, dict[str, Any]], before: int) -> Summary:
    out = Summary(len(records), before)
    for _, record in sorted(records.items()):
        if "error" in record:
            out.errors.append({"image": record["image"], "error": record["error"]})
            continue
        out.queries += len(record["queries"])
        out.labelled += sum("masks" in query for query in record["queries"])
        out.failed += [
            {"image": record["image"], "text": doubt["text"], "reason": doubt["reason"]}
            for doubt in record["doubts"]
            if doubt["status"] == "failed"
        ]
    return out


def _key(labeller: Labeller, pictures: Pictures, questions: Questions, shard: int, max_pixels: int) -> dict[str, Any]:
    asked = hashlib.sha256()
    for number, position in enumerate(questions.positions):
        asked.update(json.dumps([pictures.names[position], questions.of(number)]).encode() + b"\0")
    return {
        "model": labeller.system.name,
        "second opinion": labeller.against and labeller.against.name,
        "images or queries": [len(questions), asked.hexdigest()],
        "rules": asdict(labeller.rules),
        "images a shard": shard,
        "limit of pixels": max_pixels,
        "version": __version__,
    }
