"""What every system with a closed set of classes shares: one pass over the image, then any number of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.systems.base import EncodedImage, check_queries, check_thresholds, failed, segment_of
from vlseg.systems.class_names import ClassNames
from vlseg.systems.foreign import tensor_bytes
from vlseg.types import Answer, Segment, VLSegError

IMAGES_A_PASS = 8


@dataclass(slots=True)
class Region:
    """One object, or all pixels of a class. label: class number; score: in 0..1; mask: (H, W) bool."""

    label: int
    score: float
    mask: np.ndarray


@dataclass(slots=True)
class Findings:
    """What was found in an image at given thresholds. scores: by class number, in 0..1, found or not."""

    scores: np.ndarray
    regions: list[Region] = field(default_factory=list)


class ClosedVocabulary:
    """A `System` (and `Encoder`) whose queries are answered by classes. To be filled in: `look` and `find`.

    how: what it does, in the words of `protocol`. soft: whether `find` follows a mask threshold; where not, another
    than 0.5 is refused, for pixels are dealt to classes without one.
    """

    modes: tuple[str, ...] = ("mask",)
    presence_threshold = 0.5
    soft = False

    def __init__(self, name: str, names: ClassNames, how: str):
        self.name, self.names = name, names
        by = f"its head noun by name or synonym{', else by ' + names.near.name if names.near else ''}"
        self.protocol = (
            f"{how}; {len(names.labels)} classes, a query means the class of {by}; attributes and relations are not "
            "read; score as the model gives it, not calibrated"
        )

    # to be filled in -------------------------------------------------------------------------------------------------
    def look(self, images: Sequence[Image.Image]) -> list[Any]:
        """One pass over images (RGB, all of one size): for each what `find` needs, tensors not shared between them."""
        raise NotImplementedError

    def find(self, seen: Any, size: tuple[int, int], wanted: set[int], presence: float, mask: float) -> Findings:
        """What an image holds of the `wanted` classes at a size (height, width) and thresholds, best first."""
        raise NotImplementedError

    # what a System offers --------------------------------------------------------------------------------------------
    def segment(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[Answer]:
        """See `System.segment`. A query that means no class is "absent", with the classes as the reason."""
        return self.segment_batch(
            [image], [queries], presence_threshold=presence_threshold, mask_threshold=mask_threshold
        )[0]

    @torch.inference_mode()
    def segment_batch(
        self,
        images: Sequence[Image.Image | EncodedImage],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[list[Answer]]:
        """See `System.segment_batch`. Images of one size are looked at together, each once, whatever the queries."""
        check_thresholds(presence_threshold, mask_threshold)
        if mask_threshold != 0.5 and not self.soft:
            raise VLSegError(f"{self.name} deals pixels to classes without a threshold; leave --mask-threshold out")
        if len(images) != len(queries):
            raise VLSegError(f"{len(images)} images with {len(queries)} lists of queries: give one list an image")
        texts = [check_queries(row) for row in queries]
        presence = self.presence_threshold if presence_threshold is None else presence_threshold
        matched = [any(self.names.match(text).classes for text in row) for row in texts]
        answers: list[list[Answer]] = [[] for _ in texts]
        for i, size, seen in self._seen(images, matched):
            answers[i] = self._answers(seen, size, texts[i], presence, mask_threshold)
        return answers

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`."""
        encoded: dict[int, EncodedImage] = {}
        for i, size, seen in self._seen(images, [True] * len(images)):
            encoded[i] = EncodedImage(size, seen, tensor_bytes(seen))
        return [encoded[i] for i in range(len(images))]

    # ------------------------------------------------------------------------------------------------------------------
    def _seen(
        self, images: Sequence[Image.Image | EncodedImage], wanted: Sequence[bool]
    ) -> Iterator[tuple[int, tuple[int, int], Any]]:
        """(image, its size, what was seen in it); an image of which nothing is wanted is not looked at."""
        fresh: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            if isinstance(image, EncodedImage):
                yield i, image.size, image.features
            elif not wanted[i]:
                yield i, (image.height, image.width), None
            else:
                fresh.setdefault((image.height, image.width), []).append(i)
        for size, members in fresh.items():
            for start in range(0, len(members), IMAGES_A_PASS):
                group = members[start : start + IMAGES_A_PASS]
                pictures: Any = [images[i] for i in group]
                for i, own in zip(group, self.look(pictures), strict=True):
                    yield i, size, own

    def _answers(
        self, seen: Any, size: tuple[int, int], texts: Sequence[str], presence: float, mask: float
    ) -> list[Answer]:
        matches = [self.names.match(text) for text in texts]
        wanted = {label for match in matches for label in match.classes}
        found = self.find(seen, size, wanted, presence, mask) if wanted else Findings(np.zeros(0))
        segments = [(region.label, segment_of(region.mask, region.score)) for region in found.regions]
        answers = []
        for text, match in zip(texts, matches, strict=True):
            if match.reason is not None:
                answers.append(Answer(text, "absent", None, size, match.reason))
                continue
            own = [segment for label, segment in segments if label in match.classes and segment is not None]
            score = max(float(found.scores[label]) for label in match.classes)
            answers.append(_answer(text, score, own, size, presence))
        return answers


def _answer(text: str, score: float, segments: list[Segment], size: tuple[int, int], presence: float) -> Answer:
    if not np.isfinite(score):
        return failed(text, "the model gives no number for this query", size)
    if score < presence:
        return Answer(text, "absent", score, size)
    if not segments:
        return Answer(text, "failed", score, size, f"score {score:.2f} says present, but no pixel went to the class")
    return Answer(text, "found", score, size, segments=sorted(segments, key=lambda s: -s.score))


def from_class_map(winner: torch.Tensor, probability: torch.Tensor, wanted: set[int], classes: int) -> Findings:
    """Findings of a map of classes. winner: (H, W) int64, the class of each pixel; probability: (H, W), of that class.

    The score of a class is the mean probability of its pixels, 0 where it has none.
    """
    labels, shares = winner.flatten(), probability.flatten().double()
    counts = torch.bincount(labels, minlength=classes)
    scores = torch.bincount(labels, weights=shares, minlength=classes) / counts.clamp(min=1)
    found = Findings(scores.cpu().numpy())
    for label in sorted(wanted):
        if counts[label]:
            found.regions.append(Region(label, float(scores[label]), (winner == label).cpu().numpy()))
    return found
