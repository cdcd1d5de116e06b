"""Pseudo-labels: what a system answers as data to train on, with what is doubtful left out, ignored and ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vlseg.bulk.label_doubt import bits, disagreement, mask_entropy, mean_disagreement
from vlseg.bulk.label_words import mirrored, variants
from vlseg.masks import rle as codec
from vlseg.systems.base import SoftSystem, System
from vlseg.types import RLE, Answer, Query

SIGNALS = ("presence_entropy", "mask_entropy", "paraphrases", "flips", "against")


@dataclass(frozen=True, slots=True)
class Rules:
    """When an answer becomes a label.

    min_confidence: an answer counts where its score (for "absent" 1 - score) is at least this. agree: two systems mean
    the same region where the IoU of their masks is at least this. flips: also ask of the mirrored picture.
    """

    min_confidence: float = 0.0
    agree: float = 0.5
    flips: bool = True
    presence_threshold: float | None = None


@dataclass(slots=True)
class Doubt:
    """What is known of how sure an answer is: signals in 0..1, None where one was not measured; reason: why the query
    was left unlabelled, "" where it was not."""

    text: str
    status: str
    score: float | None
    reason: str = ""
    presence_entropy: float | None = None
    mask_entropy: float | None = None
    paraphrases: float | None = None
    flips: float | None = None
    against: float | None = None
    uncertainty: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, numbers with six digits."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(slots=True)
class Labelled:
    """A picture's queries with labels, where they could be given, and one `Doubt` each; in the order of the queries."""

    size: tuple[int, int]
    queries: list[Query] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)


class Labeller:
    """Labels pictures with `system`; `against`, where given, is a second opinion that only takes labels away.

    The queries of a picture, their paraphrases included, are asked at once.
    """

    def __init__(self, system: System, against: System | None = None, rules: Rules | None = None):
        self.system, self.against, self.rules = system, against, rules or Rules()

    def __call__(self, picture: Image.Image, texts: Sequence[str]) -> Labelled:
        """picture: RGB, upright; texts: queries, each maybe with paraphrases behind " | ". Raises VLSegError as
        `System.segment`."""
        wordings = [variants(text) for text in texts]
        names = [words[0] for words in wordings]
        size = (picture.height, picture.width)
        every, entropies = self._ask(picture, [word for words in wordings for word in words])
        flipped = self._flipped(picture, names)
        seconds: list[Answer | None] = [None] * len(names)
        if self.against is not None:
            seconds = list(self.against.segment(picture, names))
        out, at = Labelled(size), 0
        for words, flip, second in zip(wordings, flipped, seconds, strict=True):
            answer, others = every[at], every[at : at + len(words)]
            doubt = Doubt(words[0], answer.status, answer.score, paraphrases=mean_disagreement(others))
            doubt.presence_entropy = None if answer.score is None else bits(answer.score)
            doubt.mask_entropy = entropies[at] if answer.status == "found" else None
            doubt.flips = None if flip is None else disagreement(answer, flip)
            doubt.against = None if second is None else disagreement(answer, second)
            at += len(words)
            query = Query(words[0])
            doubt.reason = self._label(query, answer, second)
            doubt.uncertainty = _mean(doubt)
            out.queries.append(query)
            out.doubts.append(doubt)
        return out

    def _ask(self, picture: Image.Image, texts: list[str]) -> tuple[list[Answer], list[float | None]]:
        """Answers, and mask entropies where the system gives scores and masks before thresholds."""
        presence = self.rules.presence_threshold
        if not isinstance(self.system, SoftSystem):
            return self.system.segment(picture, texts, presence_threshold=presence), [None] * len(texts)
        size = (picture.height, picture.width)
        threshold = self.system.presence_threshold if presence is None else presence
        soft = self.system.soft_answers(picture, texts)
        answers = [one.at(size, threshold) for one in soft]
        found = zip(soft, answers, strict=True)
        return answers, [mask_entropy(one, size) if answer.status == "found" else None for one, answer in found]

    def _flipped(self, picture: Image.Image, texts: list[str]) -> list[Answer | None]:
        """What the system says of the mirrored picture, mirrored back; None where it was not asked, or failed."""
        out: list[Answer | None] = [None] * len(texts)
        asked = [(k, words) for k, text in enumerate(texts) if (words := mirrored(text)) is not None]
        if not self.rules.flips or not asked:
            return out
        presence = self.rules.presence_threshold
        answers = self.system.segment(
            ImageOps.mirror(picture), [words for _, words in asked], presence_threshold=presence
        )
        for (k, _), answer in zip(asked, answers, strict=True):
            if answer.status == "failed" and answer.score is None:
                continue
            for segment in answer.segments:
                segment.rle = codec.encode(np.ascontiguousarray(codec.decode(segment.rle)[:, ::-1]))
            out[k] = answer
        return out

    def _label(self, query: Query, answer: Answer, second: Answer | None) -> str:
        """Give the query its label; returns why it gets none, or ""."""
        if answer.status == "failed":
            return f"failed: {answer.reason}"
        confidence = answer.score if answer.score is not None else 1.0
        confidence = confidence if answer.status == "found" else 1 - confidence
        if confidence < self.rules.min_confidence:
            return f"confidence {confidence:.2f} is below {self.rules.min_confidence:g}"
        masks, ignore = [segment.rle for segment in answer.segments], None
        if second is not None:
            if second.status != answer.status:
                return f"{self.system.name} says {answer.status}, the other {second.status}"
            if answer.status == "found":
                iou = 1 - disagreement(answer, second)
                if iou < self.rules.agree:
                    return f"the two mark different regions (IoU {iou:.2f})"
                masks, ignore = agreed(masks, answer.mask, second.mask)
        query.masks, query.ignore = masks, ignore
        return ""


def agreed(masks: list[RLE], one: np.ndarray, other: np.ndarray) -> tuple[list[RLE], RLE | None]:
    """What of `masks`, whose union is `one`, is left as targets, and the pixels on which `one` and `other` differ.

    A target all of whose pixels are in doubt is none; those of others that are stay in it, and no loss looks at them.
    """
    apart = one ^ other
    if not apart.any():
        return masks, None
    ignore = codec.encode(apart)
    return [rle for rle in masks if codec.intersection_area(rle, ignore) < codec.area(rle)], ignore


def _mean(doubt: Doubt) -> float:
    """The mean of the signals that were measured; 1 for an answer that failed, or where none was."""
    known = [value for name in SIGNALS if (value := getattr(doubt, name)) is not None]
    return sum(known) / len(known) if known and doubt.status != "failed" else 1.0
