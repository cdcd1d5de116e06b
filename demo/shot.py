"""One model's work on one picture, kept so that thresholds act without a new run."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from vlseg.data.images import open_image
from vlseg.masks import rle as codec
from vlseg.segmenter import Segmenter, protocol_line
from vlseg.systems.base import SoftAnswer, SoftSystem
from vlseg.types import Answer, Mode, Result, VLSegError

VIEW_PIXELS = 1_200_000  # of what the browser draws: more only makes the outlines longer
# Pillow knows some forty more, of which some start other programs (EPS) or are rarely looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True, slots=True)
class Picture:
    """An upload. data: the file as it came; size: of the upright image that `reopen` makes of it."""

    name: str
    data: bytes
    size: Size

    @classmethod
    def read(cls, path: str | None, max_pixels: int) -> tuple[Picture, Image.Image]:
        """The upload in a file, and its pixels. Raises VLSegError for none, a broken one, one that is too large."""
        if not path:
            raise VLSegError("Add a picture first: drop one, paste one, use the camera, or pick an example.")
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise VLSegError("The picture is no longer here; please add it again.") from error
        _check_header(data, Path(path).name, max_pixels)
        image, _ = open_image(path, max_pixels)
        return cls(Path(path).name, data, (image.height, image.width)), image

    def reopen(self) -> Image.Image:
        """The upright RGB image again."""
        return open_image(Image.open(io.BytesIO(self.data)), self.size[0] * self.size[1])[0]


class Shot:
    """What a model made of a picture and queries. Thread-safe.

    A system that gives answers before thresholds (`SoftSystem`, mask mode) is thresholded anew each time; of any other
    the presence threshold sorts finished answers by their scores, and the mask threshold of the run stays.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        picture: Picture,
        image: Image.Image,
        queries: Sequence[str],
        mode: Mode = "mask",
        mask_threshold: float = 0.5,
    ) -> None:
        segmenter.check(None, mask_threshold, mode)
        self.model, self.picture = segmenter.name, picture
        self.own_threshold = segmenter.system.presence_threshold
        # not the segmenter itself: sessions would keep models alive that the page has let go
        self._how, self._ran_at = segmenter.system.protocol, mask_threshold
        self._soft: list[SoftAnswer] | None = None
        self._hard: list[Answer] = []
        self._lock = threading.Lock()
        # of the last mask threshold and size: what the slider of the other threshold need not work out again
        self._key: tuple[float, Size] | None = None
        self._drawn: dict[int, Answer] = {}
        start = time.perf_counter()
        if mode == "mask" and isinstance(segmenter.system, SoftSystem):
            self._soft = segmenter.system.soft_answers(image, queries)
        else:
            self._hard = segmenter(image, list(queries), 0.0, mask_threshold, mode).answers
        self.seconds = time.perf_counter() - start

    @property
    def soft(self) -> bool:
        """Whether the mask threshold acts without a new run."""
        return self._soft is not None

    @property
    def view_size(self) -> Size:
        """The size at which the browser draws: that of the picture, or smaller where the picture is large."""
        height, width = self.picture.size
        if not self.soft:
            return self.picture.size
        scale = min(1.0, math.sqrt(VIEW_PIXELS / (height * width)))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def answers(self, presence: float | None, mask_threshold: float, size: Size | None = None) -> list[Answer]:
        """The answers at these thresholds. presence: None for the model's own; size: default that of the picture.

        At the size of the picture they are those of a call of the model with these thresholds.
        """
        threshold = self.own_threshold if presence is None else presence
        if self._soft is None:
            return [_sorted_by(threshold, answer) for answer in self._hard]
        with self._lock:
            key = (mask_threshold, size or self.picture.size)
            if key != self._key:
                self._key, self._drawn = key, {}
            out = []
            for index, soft in enumerate(self._soft):
                if soft.score is not None and soft.score < threshold:
                    out.append(soft.at(key[1], threshold))
                    continue
                if index not in self._drawn:
                    self._drawn[index] = soft.at(key[1], 0.0, mask_threshold)
                out.append(self._drawn[index])
            return out

    def result(self, presence: float | None, mask_threshold: float) -> Result:
        """The answers at these thresholds and the size of the picture, as the command line and the server give them."""
        level = mask_threshold if self.soft else self._ran_at
        threshold = self.own_threshold if presence is None else presence
        how = protocol_line(self._how, threshold, level)
        answers = self.answers(threshold, level)
        return Result(self.picture.name, self.picture.size, self.model, answers, how, self.seconds)


def _check_header(data: bytes, name: str, max_pixels: int) -> None:
    """Raises VLSegError for a file that is no picture, and for too many pixels; none of them is decoded for it."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise VLSegError(f"{name} has far more pixels than the {max_pixels / 1e6:.3g} million taken here") from error
    except Exception as error:  # Pillow's readers meet broken files with errors of a dozen kinds
        what = "is empty" if not data else f"is no picture of a kind that is read here ({', '.join(FORMATS)})"
        raise VLSegError(f"{name} {what}") from error
    if height * width > max_pixels:
        raise VLSegError(
            f"{name} is {width} × {height}, {height * width / 1e6:.1f} million pixels; "
            f"this page takes up to {max_pixels / 1e6:.3g} million. Make it smaller and try again."
        )


def _sorted_by(threshold: float, answer: Answer) -> Answer:
    """An answer that was asked for at presence threshold 0, at another one."""
    if answer.score is None or answer.score >= threshold:
        return answer
    return replace(answer, status="absent", reason=None, segments=[])


def agreement(first: Sequence[Answer], second: Sequence[Answer]) -> list[float | None]:
    """IoU of two models' masks, query by query, at one size; None where one of them found nothing, or sizes differ."""
    out: list[float | None] = []
    for a, b in zip(first, second, strict=True):
        if not a.segments or not b.segments or a.size != b.size:
            out.append(None)
            continue
        masks = [codec.union([segment.rle for segment in answer.segments], answer.size) for answer in (a, b)]
        out.append(float(codec.iou(masks[:1], masks[1:])[0, 0]))
    return out
