"""`TiledSystem`: any `System` on images much larger than it can see at once, in bounded memory.

The whole image is seen once, made small (the overview); then the image at each power of two up to its full size is seen
in tiles that overlap. `vlseg/systems/tile_merge.py` says what a tile may change. The mask at full size is never held:
it comes strip by strip, and only its run lengths stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.outline_rle import outline_rle
from vlseg.masks.svg import path_data
from vlseg.systems.base import SoftAnswer, SoftSystem, System, check_queries, check_thresholds, failed
from vlseg.systems.tile_merge import INSIDE, Place, RunLengths, Word, believed, blend, columns, part
from vlseg.types import RLE, Answer, Segment, VLSegError

TILE = 1024
LEAST = 64
SCOPES = ("whole", "any")
BUDGET = 640 * 2**20  # bytes that the evidence of all queries of a pass may take at full size
# Levels of a pixel's logit around the threshold that are asked of a soft answer; the middle one decides.
_STEPS = (-3.0, -1.5, -0.75, 0.0, 0.75, 1.5, 3.0)


@dataclass(slots=True)
class _Seen:
    """What a system made of one view for one query. evidence: ``(h, w) uint8`` where it was found, else None."""

    score: float | None
    evidence: np.ndarray | None = None
    reason: str | None = None


class TiledSystem:
    """A `System` around another one, for images larger than `tile`; on others it is that system.

    tile: side of a tile in pixels; the overview is no larger. scope: "whole": where the overview finds a query it says
    which objects are meant and tiles only sharpen them, so that "the leftmost dog" stays one dog; where it finds none,
    tiles may. "any": tiles may always add what they see whole, for small things all over a large image.

    The score is the overview's where that finds the query, else the best of the tiles that added something. An answer
    has one segment. Raises VLSegError for a tile below 64 pixels and an unknown scope.
    """

    modes: tuple[str, ...] = ("mask",)

    def __init__(self, system: System, tile: int = TILE, scope: str = "whole"):
        if tile < LEAST:
            raise VLSegError(f"tiles of {tile} pixels are too small; give at least {LEAST}")
        if scope not in SCOPES:
            raise VLSegError(f"tile scope {scope!r}: unknown; known: {', '.join(SCOPES)}")
        self.system, self.tile, self.scope = system, tile, scope
        self.name = system.name
        self.protocol = f"{system.protocol}; larger images in tiles of {tile} px (scope {scope})"

    @property
    def presence_threshold(self) -> float:
        """The inner system's."""
        return self.system.presence_threshold

    def segment(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[Answer]:
        """See `System.segment`."""
        texts = check_queries(queries)
        check_thresholds(presence_threshold, mask_threshold)
        if max(image.size) <= self.tile:
            return self.system.segment(
                image, texts, presence_threshold=presence_threshold, mask_threshold=mask_threshold
            )
        presence = self.presence_threshold if presence_threshold is None else presence_threshold
        # Per query: the evidence of the level above, and what the tiles of two columns have said.
        each = image.width * image.height / 3 + 5 * image.height * min(self.tile, image.width)
        many = max(1, int(BUDGET / each))
        answers: list[Answer] = []
        for start in range(0, len(texts), many):
            answers += _Pass(self, image, texts[start : start + many], presence, mask_threshold).answers()
        return answers

    def segment_batch(
        self,
        images: Sequence[Image.Image],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[list[Answer]]:
        """See `System.segment_batch`. Images that need no tiles go through the inner system together."""
        if len(images) != len(queries):
            raise VLSegError(f"{len(images)} images with {len(queries)} lists of queries: give one list an image")
        options: dict[str, Any] = {"presence_threshold": presence_threshold, "mask_threshold": mask_threshold}
        small = [i for i, image in enumerate(images) if max(image.size) <= self.tile]
        rows = self.system.segment_batch([images[i] for i in small], [queries[i] for i in small], **options)
        answers = dict(zip(small, rows, strict=True))
        for i, image in enumerate(images):
            if i not in answers:
                answers[i] = self.segment(image, queries[i], **options)
        return [answers[i] for i in range(len(images))]


class _Pass:
    """One image and as many queries as fit into memory."""

    def __init__(
        self, tiled: TiledSystem, image: Image.Image, texts: list[str], presence: float, mask_threshold: float
    ):
        self.system, self.tile, self.scope = tiled.system, tiled.tile, tiled.scope
        self.image, self.texts = image, texts
        self.presence, self.mask_threshold = presence, mask_threshold
        self.overlap = tiled.tile // 4
        self.size = (image.height, image.width)
        self.scores: list[float | None] = []
        self.reasons: dict[int, str] = {}
        self.evidence: list[Image.Image] = []
        self.drawn: list[bool] = []  # the overview has found it and gives a mask
        self.masks: dict[int, RLE] = {}

    def answers(self) -> list[Answer]:
        """One a query."""
        depth = math.ceil(math.log2(max(self.size) / self.tile))
        self._overview(2**depth)
        for level in range(depth - 1, -1, -1):
            self._level(2**level)
        return [self._answer(k) for k in range(len(self.texts))]

    def _overview(self, scale: int) -> None:
        size = self._scaled(scale)
        everything = Place(0, 0, size[1], size[0], (False,) * 4)
        for k, seen in enumerate(self._look(everything, size, self.texts)):
            if seen.reason is not None:
                self.reasons[k] = seen.reason
            evidence = seen.evidence if seen.evidence is not None and (seen.evidence >= INSIDE).any() else None
            self.scores.append(seen.score)
            self.drawn.append(evidence is not None)
            self.evidence.append(Image.new("L", (1, 1), 0) if evidence is None else Image.fromarray(evidence))

    def _level(self, scale: int) -> None:
        """The tiles of one level; at full size the masks, else the evidence for the next level."""
        size, last = self._scaled(scale), scale == 1
        height, width = size
        asked = [k for k in range(len(self.texts)) if k not in self.reasons]
        words: dict[int, list[Word]] = {k: [] for k in asked}
        finer: dict[int, Image.Image] = {}
        runs = {k: RunLengths() for k in asked} if last else {}
        grid = list(columns(size, self.tile, self.overlap))
        for number, column in enumerate(grid):
            for place in column:
                self._tile(place, size, asked, words)
            left = column[0].x
            right = grid[number + 1][0].x if number + 1 < len(grid) else width
            for k in asked:
                if not last and not words[k]:
                    continue
                strip = part(self.evidence[k], size, (left, 0, right, height))
                if words[k]:
                    strip = blend(strip, words[k], left)
                    words[k] = [word for word in words[k] if word.x + word.evidence.shape[1] > right]
                if last:
                    runs[k].add(strip >= INSIDE)
                else:
                    if k not in finer:
                        finer[k] = self.evidence[k].resize((width, height), Image.Resampling.BILINEAR)
                    finer[k].paste(Image.fromarray(strip), (left, 0))
        for k, evidence in finer.items():
            self.evidence[k] = evidence
        self.masks = {k: own.rle(size) for k, own in runs.items()}

    def _tile(self, place: Place, size: tuple[int, int], asked: list[int], words: dict[int, list[Word]]) -> None:
        for k, seen in zip(asked, self._look(place, size, [self.texts[k] for k in asked]), strict=True):
            if seen.evidence is None:
                continue
            box = (place.x, place.y, place.x + place.w, place.y + place.h)
            coarse = part(self.evidence[k], size, box)
            adds = self.scope == "any" or not self.drawn[k]
            word = believed(seen.evidence, coarse, place, self.overlap, adds)
            if word is None:
                continue
            words[k].append(word)
            if not self.drawn[k] and seen.score is not None:
                self.scores[k] = max(seen.score, self.scores[k] or 0.0)

    def _look(self, place: Place, size: tuple[int, int], texts: list[str]) -> Iterator[_Seen]:
        """Ask the system about a tile. size: (height, width) of its level."""
        if not texts:
            return
        down, across = self.size[0] / size[0], self.size[1] / size[1]
        box = (place.x * across, place.y * down, (place.x + place.w) * across, (place.y + place.h) * down)
        box = (box[0], box[1], min(box[2], self.size[1]), min(box[3], self.size[0]))
        if size == self.size:
            view = self.image.crop((place.x, place.y, place.x + place.w, place.y + place.h))
        else:
            view = self.image.resize((place.w, place.h), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        if isinstance(self.system, SoftSystem):
            for soft in self.system.soft_answers(view, texts):
                yield self._soft(soft, (place.h, place.w))
            return
        given = self.system.segment(view, texts, presence_threshold=self.presence, mask_threshold=self.mask_threshold)
        for answer in given:
            evidence = answer.mask.astype(np.uint8) * 255 if answer.status == "found" else None
            # A mask without a pixel is the model's own failure on this view; without a score it could not be asked.
            reason = answer.reason if answer.status == "failed" and answer.score is None else None
            yield _Seen(answer.score, evidence, reason)

    def _soft(self, soft: SoftAnswer, size: tuple[int, int]) -> _Seen:
        if soft.score is None or soft.mask is None:
            return _Seen(None, None, soft.reason or "no answer")
        if not math.isfinite(soft.score):
            return _Seen(None, None, "the model gives no number for this query")
        if soft.score < self.presence:
            return _Seen(soft.score)
        middle = math.log(self.mask_threshold / (1 - self.mask_threshold))
        votes = np.zeros(size, dtype=np.uint8)
        for step in _STEPS:
            threshold = 1 / (1 + math.exp(-(middle + step)))
            votes += soft.mask(size, min(max(threshold, 1e-9), 1 - 1e-9))
        evidence = (votes.astype(np.uint16) * 255 // len(_STEPS)).astype(np.uint8)
        return _Seen(soft.score, evidence)

    def _answer(self, k: int) -> Answer:
        text, score = self.texts[k], self.scores[k]
        if k in self.reasons:
            return failed(text, self.reasons[k], self.size)
        rle = self.masks[k]
        area = codec.area(rle)
        if area:
            path = path_data(outline_rle(rle))
            segment = Segment(1.0 if score is None else score, codec.bbox(rle), area, rle, path)
            return Answer(text, "found", score, self.size, segments=[segment])
        if score is not None and score >= self.presence:
            return Answer(
                text, "failed", score, self.size, f"score {score:.2f} says present, but the mask holds no pixel"
            )
        return Answer(text, "absent", score, self.size)

    def _scaled(self, scale: int) -> tuple[int, int]:
        return -(-self.size[0] // scale), -(-self.size[1] // scale)
