"""What the page draws: plain data for static/stage.js."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.palette import color, hexadecimal, text_color
from vlseg.types import Answer, Segment

from .shot import Shot, agreement


def picture_url(image: Image.Image, size: tuple[int, int]) -> str:
    """The picture as a data URL, JPEG, no larger than `size` (height, width).

    No file of it is left anywhere, and no address under which another session could ask for it.
    """
    if size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def stage(
    shots: Sequence[Shot],
    presence: float | None,
    mask_threshold: float,
    turn: int,
    picture: str | None = None,
    loaded: float = 0.0,
) -> dict[str, Any]:
    """The answers of one model, or of two side by side, at these thresholds.

    turn: the number of the run; as long as it stays, hidden answers stay hidden. picture: data URL, None for the one
    that the page has already. loaded: seconds that loading a model took.
    """
    drawn = [shot.answers(presence, mask_threshold, shot.view_size) for shot in shots]
    overlaps: list[list[float | None]] = [[None] * len(answers) for answers in drawn]
    if len(drawn) == 2:
        overlaps[1] = agreement(*drawn)
    return {
        "turn": turn,
        "picture": picture,
        "summary": " ".join(
            _summary(answers, f"{shot.model}: " if len(drawn) > 1 else "")
            for shot, answers in zip(shots, drawn, strict=True)
        ),
        "runs": [
            {
                "model": shot.model,
                "timing": _timing(shot, len(answers), loaded),
                "size": list(shot.view_size),
                "name": shot.picture.name,
                "threshold": shot.own_threshold if presence is None else presence,
                "note": "" if shot.soft else "finished masks: the mask threshold acts with the next run",
                "answers": [_answer(k, *pair) for k, pair in enumerate(zip(answers, overlap, strict=True))],
            }
            for shot, answers, overlap in zip(shots, drawn, overlaps, strict=True)
        ],
    }


def alert(text: str) -> dict[str, Any]:
    """A message in place of an answer; what the page shows already stays."""
    return message(alert=text)


def message(**content: Any) -> dict[str, Any]:
    """Something to tell the page once more, even where it was told the same before: equal values go unnoticed."""
    return {**content, "ticket": next(_tickets)}


_tickets = itertools.count(1)


def _answer(index: int, answer: Answer, overlap: float | None) -> dict[str, Any]:
    paint = color(index)
    area = sum(segment.area for segment in answer.segments) / (answer.size[0] * answer.size[1])
    return {
        "text": answer.text,
        "status": answer.status,
        "score": answer.score,
        "color": hexadecimal(paint),
        "ink": hexadecimal(text_color(paint)),
        "paths": [segment.path for segment in answer.segments],
        "spot": _spot(answer.segments),
        "says": _says(answer, area),
        "overlap": None if overlap is None else f"{overlap:.0%} overlap with the first",
    }


def _says(answer: Answer, area: float) -> str:
    if answer.status == "found":
        return f"{area:.1%} of the picture" if area >= 0.001 else "less than 0.1% of the picture"
    if answer.status == "absent":
        return "not in the picture"
    return f"failed: {answer.reason}"


def _spot(segments: Sequence[Segment]) -> list[float] | None:
    """A point well inside the largest segment, (x, y): the middle of the longest run in its middle row."""
    if not segments:
        return None
    mask = codec.decode(max(segments, key=lambda segment: segment.area).rle)
    upto = np.cumsum(mask.sum(axis=1))
    row = int(np.searchsorted(upto, upto[-1] / 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask[row].view(np.int8), [0]])))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return [float(starts[longest] + stops[longest]) / 2, row + 0.5]


def _summary(answers: Sequence[Answer], whose: str) -> str:
    found = sum(answer.status == "found" for answer in answers)
    parts = [f"{whose}{found} of {len(answers)} found."]
    for status, title in (("absent", "Not in the picture"), ("failed", "Failed")):
        texts = [answer.text for answer in answers if answer.status == status]
        parts += [f"{title}: {', '.join(texts)}."] if texts else []
    return " ".join(parts)


def _timing(shot: Shot, queries: int, loaded: float) -> str:
    time = f"{shot.seconds * 1000:.0f} ms" if shot.seconds < 1 else f"{shot.seconds:.1f} s"
    words = f"{queries} {'query' if queries == 1 else 'queries'} in {time}"
    return words + (f", after loading for {loaded:.1f} s" if loaded else "")
