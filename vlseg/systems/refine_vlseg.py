"""`RefinedByVlseg`: the answers of any system, made sharper by the refiner, with what they were before beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.outline_rle import outline_rle
from vlseg.masks.svg import path_data
from vlseg.models.refiner import Refiner
from vlseg.models.refiner_crop import refine
from vlseg.systems.base import EncodedImage, Encoder, System
from vlseg.systems.devices import pick_device
from vlseg.systems.registry import WEIGHTS
from vlseg.types import Answer, Coarse, Mode, Segment

EMBEDDED_REFINER = "vlseg-refiner"


class RefinedByVlseg:
    """A `System` around another. Only found answers change, and of them only the masks: status and scores stay.

    Each segment is refined on its own, from its mask alone; a box is a mask that fills it. A refined segment says so
    (`stage`) and holds what it was (`coarse`). Where the refiner leaves no pixel, the segment stays as it was.
    iterations: default: the refiner's own; 0 leaves everything as it is.
    """

    def __init__(self, system: System, model: Refiner, iterations: int | None = None):
        self.system, self.model = system, model.eval()
        self.iterations = model.config.iterations if iterations is None else iterations
        self.name, self.modes = system.name, system.modes
        self.protocol = f"{system.protocol}; each segment refined by vlseg-refiner, {self.iterations} iterations"

    @property
    def presence_threshold(self) -> float:
        """That of the system within."""
        return self.system.presence_threshold

    def segment(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
    ) -> list[Answer]:
        """See `System.segment`."""
        batch = self.segment_batch(
            [image], [queries], presence_threshold=presence_threshold, mask_threshold=mask_threshold, mode=mode
        )
        return batch[0]

    def segment_batch(
        self,
        images: Sequence[Image.Image | EncodedImage],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
    ) -> list[list[Answer]]:
        """See `System.segment_batch`; an image may also be what `encode_batch` gave for it. In path mode the path is
        refined, and the mask threshold is that of the refined mask."""
        extra: dict[str, Any] = {} if mode == "mask" else {"mode": mode}  # systems without paths know no mode
        inner = [image.features["inner"] if isinstance(image, EncodedImage) else image for image in images]
        answers = self.system.segment_batch(
            inner, queries, presence_threshold=presence_threshold, mask_threshold=mask_threshold, **extra
        )
        for image, row in zip(images, answers, strict=True):
            picture = image.features["picture"] if isinstance(image, EncodedImage) else image
            found = [segment for answer in row if answer.status == "found" for segment in answer.segments]
            better = iter(self._refined(picture, found, mask_threshold))
            for answer in row:
                if answer.status == "found":
                    answer.segments = [next(better) for _ in answer.segments]
        return answers

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`. The refiner looks at crops around masks, so it keeps the image itself."""
        inner = self.system.encode_batch(images) if isinstance(self.system, Encoder) else list(images)
        encoded = []
        for image, own in zip(images, inner, strict=True):
            size = 3 * image.width * image.height + (own.bytes if isinstance(own, EncodedImage) else 0)
            encoded.append(EncodedImage((image.height, image.width), {"inner": own, "picture": image}, size))
        return encoded

    def _refined(self, picture: Image.Image, segments: list[Segment], threshold: float) -> list[Segment]:
        if not self.iterations:
            return segments
        found = refine(self.model, picture, [segment.rle for segment in segments], self.iterations, threshold)
        out = []
        for segment, refined in zip(segments, found, strict=True):
            area = 0 if refined is None else codec.area(refined.rle)
            if refined is None or not area:
                out.append(segment)
                continue
            rle, coarse = refined.rle, Coarse(segment.stage, segment.rle, segment.path)
            path = path_data(outline_rle(rle))
            out.append(Segment(segment.score, codec.bbox(rle), area, rle, path, "refined", coarse))
        return out


def refine_with_vlseg(
    system: System, folder: str = "", device: str | None = None, iterations: int | None = None
) -> RefinedByVlseg:
    """The system with a refiner behind it. folder: of a refiner; "": the embedded one. Raises VLSegError."""
    place = folder or str(WEIGHTS / EMBEDDED_REFINER)
    return RefinedByVlseg(system, Refiner.from_pretrained(place, pick_device(device)), iterations)
