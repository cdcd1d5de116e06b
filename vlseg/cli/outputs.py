"""What `vlseg segment` leaves behind: a table, JSON, and per image a set of files of which the JSON comes last."""

from __future__ import annotations

import io
import json
import math
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.data.files import writable_folder, write_whole
from vlseg.types import Answer, Result, VLSegError

if TYPE_CHECKING:
    from PIL import Image

SLUG, STEM, QUERY_WIDTH = 40, 120, 40
OVERLAY_PIXELS = 40_000_000  # an overlay is no larger


class OutputFolder:
    """The folder of `--out`. Per image `base`: base.json, base.overlay.png, base.svg, base.K[.words].mask.png.

    `.made-by` says which files of models the answers come from; those that are older than it come from others.
    """

    KEY = ".made-by"

    def __init__(self, folder: str):
        self.path = writable_folder(folder)
        self.since = 0.0

    def made_by(self, key: str, new: bool) -> None:
        """Tell what the answers of this run depend on beside images, words and protocol. new: keep it here from now
        on; else only where an earlier run's is here, which it replaces."""
        file = self.path / self.KEY
        there = file.read_text(encoding="utf-8") if file.is_file() else None
        if there != key and (new or there is not None):
            write_whole(file, key)
        self.since = file.stat().st_mtime if file.is_file() else 0.0

    def finished(self, base: str, source: str, name: str, texts: Sequence[str], model: str, how: str) -> Result | None:
        """The result of an earlier run for the same image, queries, model and protocol; None where there is none, the
        image is newer, or the result is older than what `made_by` told."""
        result = self._stored(base)
        if result is None or (result.image, result.model, result.protocol) != (name, model, how):
            return None
        if [answer.text for answer in result.answers] != list(texts):
            return None
        file = self.path / f"{base}.json"
        written = file.stat().st_mtime
        fresh = written >= self.since and (not os.path.exists(source) or os.path.getmtime(source) <= written)
        return result if fresh else None

    def write(self, base: str, result: Result) -> Path:
        """Write all files of a result, the JSON last, and take away masks that an earlier run left for other words."""
        from vlseg.masks.drawing import mask_png

        before = self._stored(base)
        (self.path / f"{base}.json").unlink(missing_ok=True)
        masks = mask_names(base, result.answers)
        for name in set(mask_names(base, before.answers).values() if before else ()) - set(masks.values()):
            (self.path / name).unlink(missing_ok=True)
        for index, name in masks.items():
            write_whole(self.path / name, png(mask_png(result.answers[index].mask)))
        write_whole(self.path / f"{base}.overlay.png", png(_overlay(result)))
        write_whole(self.path / f"{base}.svg", result.svg())
        file = self.path / f"{base}.json"
        write_whole(file, result.to_json(indent=1) + "\n")
        return file

    def _stored(self, base: str) -> Result | None:
        try:
            return Result.from_dict(json.loads((self.path / f"{base}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, VLSegError, AttributeError):
            return None  # not there, or another's file: the image is simply not done yet


def _overlay(result: Result) -> Image.Image:
    """The overlay; of a very large image a smaller one, which needs a sixth of the memory and can be looked at."""
    height, width = result.size
    if height * width <= OVERLAY_PIXELS or result.picture is None:
        return result.overlay()
    from vlseg.masks.resize import resize_rle
    from vlseg.masks.rle import area

    scale = math.sqrt(OVERLAY_PIXELS / (height * width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    answers = []
    for answer in result.answers:
        smaller = [replace(segment, rle=resize_rle(segment.rle, size, "nearest")) for segment in answer.segments]
        answers.append(replace(answer, size=size, segments=[segment for segment in smaller if area(segment.rle)]))
    picture = result.picture.resize((size[1], size[0]), reducing_gap=2.0)
    return replace(result, size=size, answers=answers, picture=picture).overlay()


def png(image: Image.Image) -> bytes:
    """A picture as PNG; quick rather than small."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def mask_names(base: str, answers: Sequence[Answer]) -> dict[int, str]:
    """File names of masks by index of the answer; a failed query has no mask, an absent one an empty mask."""
    return {
        index: ".".join(part for part in (base, str(index + 1), slug(answer.text), "mask.png") if part)
        for index, answer in enumerate(answers)
        if answer.status != "failed"
    }


def slug(text: str) -> str:
    """Words as part of a file name: letters and digits of any script joined by hyphens; may be empty."""
    return re.sub(r"[\W_]+", "-", text.lower()[: 4 * SLUG])[:SLUG].strip("-")


def base_names(sources: Sequence[str]) -> list[str]:
    """One name an image: its stem; where stems collide the whole file name, and a number where these collide too."""
    names = [_file_name(source) for source in sources]
    stems = [Path(name).stem or name for name in names]
    folded = [stem.casefold() for stem in stems]  # some file systems do not tell A from a
    taken: set[str] = set()
    out = []
    for name, stem in zip(names, stems, strict=True):
        base = _cut(stem if folded.count(stem.casefold()) == 1 else name)
        unique, number = base, 2
        while unique.casefold() in taken:
            unique, number = f"{base}-{number}", number + 1
        taken.add(unique.casefold())
        out.append(unique)
    return out


def table(result: Result) -> str:
    """Query, status, score, area in pixels and box (x, y, w, h) of every answer, in columns."""
    rows = [("query", "status", "score", "area", "box x,y,w,h")]
    for answer in result.answers:
        text = " ".join(answer.text.split())
        text = text if len(text) <= QUERY_WIDTH else text[: QUERY_WIDTH - 1] + "…"
        score = "" if answer.score is None else f"{answer.score:.2f}"
        area = str(sum(segment.area for segment in answer.segments)) if answer.segments else ""
        boxes = " ".join(",".join(f"{v:g}" for v in segment.bbox) for segment in answer.segments)
        rows.append((text, answer.status, score, area, boxes))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = (
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}"
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _file_name(source: str) -> str:
    if "://" in source:
        source = urllib.parse.unquote(urllib.parse.urlsplit(source).path)
    name = re.sub(r"[\x00-\x1f/\\:*?\"<>|]", "_", os.path.basename(source.rstrip("/")))
    return os.fsencode(name).decode("utf-8", "replace").lstrip(".") or "image"


def _cut(name: str) -> str:
    return name.encode("utf-8")[:STEM].decode("utf-8", "ignore")
