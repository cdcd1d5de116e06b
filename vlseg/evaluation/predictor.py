"""`Predictor`: where the answers that are scored come from: a `System`, a baseline, or a file of predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from vlseg.systems.base import System
from vlseg.types import Answer, Sample, VLSegError

PROTOCOL_THRESHOLD = 0.5  # of a pixel's probability; logit > 0


class Predictor(Protocol):
    """Answers samples. name, protocol: for the report; reads_images: whether `answer` is given the pictures.

    mode: how answers come about: "free-running", "teacher-forced", "baseline", "stored predictions".
    deviations: what is done otherwise than the protocol says, one sentence each; printed in red.
    """

    name: str
    protocol: str
    mode: str
    reads_images: bool
    deviations: list[str]

    def answer(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[list[Answer]]:
        """One answer a query, in order. images: RGB, upright, one a sample; empty unless `reads_images`."""
        ...


class SystemPredictor:
    """A `System`, asked with all labelled queries of a batch of images at once.

    A system that generates tokens, and so can be handed the right answer's tokens, says so with the attribute
    ``teacher_forcing = True`` and takes the keyword ``teacher_forced``. paths: ask in path mode: a mask is the raster
    of the path that the system writes. Raises VLSegError where a system is to do what it cannot.
    """

    reads_images = True

    def __init__(
        self,
        system: System,
        presence_threshold: float | None = None,
        mask_threshold: float = PROTOCOL_THRESHOLD,
        teacher_forced: bool = False,
        paths: bool = False,
    ):
        if paths and "path" not in system.modes:
            raise VLSegError(f"--mode path: {system.name} has no path mode; use --mode {system.modes[0]}")
        if teacher_forced and not getattr(system, "teacher_forcing", False):
            raise VLSegError(
                f"--teacher-forced: {system.name} generates no tokens that could be forced (it reads the state that "
                "decides); leave the option out"
            )
        self.system, self.name = system, system.name
        presence = system.presence_threshold if presence_threshold is None else presence_threshold
        level = math.log(mask_threshold / (1 - mask_threshold))
        drawn = "the path as written" if paths else f"p > {mask_threshold:g} (logit > {level:.4g})"
        self.protocol = f"{system.protocol}; found: score >= {presence:g}; mask: {drawn}"
        self.options: dict[str, Any] = {"presence_threshold": presence_threshold, "mask_threshold": mask_threshold}
        if paths:
            self.options["mode"] = "path"
        self.mode = "teacher-forced" if teacher_forced else "free-running"
        self.deviations = []
        if mask_threshold != PROTOCOL_THRESHOLD:
            self.deviations.append(
                f"mask threshold {mask_threshold:g} instead of {PROTOCOL_THRESHOLD:g} (logit > 0): "
                "not comparable with scores by the protocol"
            )
        if teacher_forced:
            self.options["teacher_forced"] = True
            self.deviations.append(
                "teacher-forced: the model was handed the tokens of the right answer, so its rejections and missed "
                "answers do not count; not comparable with free-running scores"
            )

    def answer(self, samples: Sequence[Sample], images: Sequence[Image.Image]) -> list[list[Answer]]:
        """See `Predictor.answer`."""
        texts = [[query.text for query in sample.queries] for sample in samples]
        return self.system.segment_batch(images, texts, **self.options)
