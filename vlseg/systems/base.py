"""`System`: what command line, server, evaluator and labeller know of a model, ours or another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.svg import path_data
from vlseg.types import Answer, Mode, Segment, VLSegError


@runtime_checkable
class System(Protocol):
    """Anything that answers words about an image with masks.

    name: as users name the model. protocol: one line on how it answers, printed into every result.
    modes: of "mask" and "path", what it can do. presence_threshold: its own calibrated one, used where none is given.
    """

    name: str
    protocol: str
    modes: tuple[str, ...]

    @property
    def presence_threshold(self) -> float:
        """In 0..1."""
        ...

    def segment(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[Answer]:
        """One answer a query, in order, at the size of the image (RGB, upright).

        Raises VLSegError where the call is wrong (no query, an empty one, a threshold outside 0..1); what goes wrong
        with one query alone makes its answer "failed", with the reason, and leaves the others be.
        """
        ...

    def segment_batch(
        self,
        images: Sequence[Image.Image],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[list[Answer]]:
        """As `segment`, for B images with a list of queries each."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """What a system made of one image, to be asked again later. size: (height, width) in pixels; bytes: its memory."""

    size: tuple[int, int]
    features: Any
    bytes: int


@runtime_checkable
class Encoder(Protocol):
    """What a `System` has on top where an image can be encoded once and asked later.

    Its `segment_batch` takes an `EncodedImage` wherever an image may stand, and gives the answers that the image gives;
    so do `soft_answers` and `stream` where it has them.
    """

    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """The part of the work that all queries of an image share; RGB, upright, as for `segment`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SoftAnswer:
    """What a model makes of one query before any threshold, so that thresholds can change without a new run.

    score: as in `Answer`; None where the query could not be asked, with the `reason`.
    mask: gives ``(H, W)`` bool for a size (height, width) and a mask threshold; holds no more than that needs.
    parts: for a model whose answers have several segments: that mask's parts, disjoint, with a score in 0..1 each.
    """

    text: str
    score: float | None
    mask: Callable[[tuple[int, int], float], np.ndarray] | None = None
    reason: str | None = None
    parts: Callable[[tuple[int, int], float], list[tuple[np.ndarray, float]]] | None = None

    def at(self, size: tuple[int, int], presence_threshold: float, mask_threshold: float = 0.5) -> Answer:
        """The answer at these thresholds: at the size of the image, the one that `System.segment` gives."""
        if self.score is None or self.mask is None:
            return failed(self.text, self.reason or "no answer", size)
        answer = decide(self.text, self.score, presence_threshold, size, partial(self.mask, size, mask_threshold))
        if answer.status == "found" and self.parts is not None:
            parts = [segment_of(mask, self.score * score) for mask, score in self.parts(size, mask_threshold)]
            answer.segments = [segment for segment in parts if segment is not None]
        return answer


@runtime_checkable
class SoftSystem(Protocol):
    """What a `System` has on top where its scores and masks can be had before thresholds; in mask mode."""

    def soft_answers(self, image: Image.Image, queries: Sequence[str]) -> list[SoftAnswer]:
        """One a query, in order; RGB, upright. Raises VLSegError as `System.segment`."""
        ...


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """What has come so far of the answer to query number `index` of the call. done: whether nothing follows.

    In path mode `answer` holds the rings that are whole, as a path and a mask by themselves. An answer that is not done
    may be "failed" while what has come encloses no pixel.
    """

    index: int
    answer: Answer
    done: bool


@runtime_checkable
class PathSystem(Protocol):
    """What a `System` has on top whose `modes` name "path"."""

    def segment_batch(
        self,
        images: Sequence[Image.Image],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
    ) -> list[list[Answer]]:
        """As in `System`; in path mode `segments[0].path` is the model's own path and `rle` its exact raster."""
        ...

    def stream(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int | None = None,
    ) -> Iterator[PartialAnswer]:
        """Answers in path mode as they come, ring by ring; options as in `vlseg.models.path_decoding`."""
        ...


def check_queries(queries: Sequence[str]) -> list[str]:
    """The queries as a list. Raises VLSegError where there is none, or one is empty, no text, or not Unicode."""
    texts = [queries] if isinstance(queries, str) else list(queries)
    if not texts:
        raise VLSegError("no query: say in words what to segment")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise VLSegError(f"query {number} is {type(text).__name__}, not text")
        if not text.strip():
            raise VLSegError(f"query {number} is empty: say in words what to segment")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise VLSegError(f"query {number} holds bytes that are not UTF-8") from error
    return texts


def check_thresholds(presence_threshold: float | None, mask_threshold: float) -> None:
    """Raises VLSegError for a presence threshold outside 0..1 or a mask threshold that is not between 0 and 1."""
    if presence_threshold is not None and not 0 <= presence_threshold <= 1:
        raise VLSegError(f"presence threshold {presence_threshold}: must lie in 0..1")
    if not 0 < mask_threshold < 1:
        raise VLSegError(f"mask threshold {mask_threshold}: must lie between 0 and 1")


def decide(text: str, score: float, threshold: float, size: tuple[int, int], mask: Callable[[], np.ndarray]) -> Answer:
    """The answer of a score and a mask. mask: gives ``(H, W)`` bool at `size`; asked only where the score passes.

    found: score >= threshold and at least one pixel; absent: score below; failed: passed, but no pixel, or no number.
    """
    if not np.isfinite(score):
        return failed(text, "the model gives no number for this query", size)
    if score < threshold:
        return Answer(text, "absent", score, size)
    segment = segment_of(mask(), score)
    if segment is None:
        return Answer(text, "failed", score, size, f"score {score:.2f} says present, but the mask holds no pixel")
    return Answer(text, "found", score, size, segments=[segment])


def failed(text: str, reason: str, size: tuple[int, int]) -> Answer:
    """The answer to a query that could not be asked."""
    return Answer(text, "failed", None, size, reason)


def segment_of(mask: np.ndarray, score: float) -> Segment | None:
    """A ``(H, W)`` bool mask as one segment with its exact outline; None for a mask without a pixel."""
    rle = codec.encode(mask)
    area = codec.area(rle)
    if not area:
        return None
    return Segment(score, codec.bbox(rle), area, rle, path_data(mask))
