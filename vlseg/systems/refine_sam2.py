"""`RefinedBySam2`: the answers of any system, made sharper by SAM 2. A coarse mask prompts it, or a box that is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.systems.base import EncodedImage, Encoder, System, segment_of
from vlseg.systems.foreign import tensor_bytes
from vlseg.systems.sam2 import Sam2Masks
from vlseg.types import Answer, Segment


class RefinedBySam2:
    """A `System` around another. Only found answers change, and of them only the masks: status and scores stay.

    Each segment prompts SAM 2 with its box and its mask; a segment that fills its box is taken for a box alone. Where
    SAM 2 gives no pixel, the segment stays as it was.
    """

    modes: tuple[str, ...] = ("mask",)

    def __init__(self, system: System, masks: Sam2Masks):
        self.system, self.masks = system, masks
        self.name = system.name
        self.protocol = f"{system.protocol}; each segment refined by sam 2"

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
    ) -> list[Answer]:
        """See `System.segment`."""
        batch = self.segment_batch(
            [image], [queries], presence_threshold=presence_threshold, mask_threshold=mask_threshold
        )
        return batch[0]

    @torch.inference_mode()
    def segment_batch(
        self,
        images: Sequence[Image.Image | EncodedImage],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[list[Answer]]:
        """See `System.segment_batch`; an image may also be what `encode_batch` gave for it."""
        inner = [image.features["image"] if isinstance(image, EncodedImage) else image for image in images]
        answers = self.system.segment_batch(
            inner, queries, presence_threshold=presence_threshold, mask_threshold=mask_threshold
        )
        for image, row in zip(images, answers, strict=True):
            found = [answer for answer in row if answer.status == "found"]
            if not found:
                continue  # SAM 2 does not look at an image in which nothing was found
            levels = image.features["sam2"] if isinstance(image, EncodedImage) else self.masks.encode([image])[0]
            for answer in found:
                answer.segments = self._refined(levels, answer, mask_threshold)
        return answers

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`. A system that encodes nothing is given the image itself again."""
        inner = self.system.encode_batch(images) if isinstance(self.system, Encoder) else list(images)
        encoded = []
        for image, own in zip(images, inner, strict=True):
            levels = self.masks.encode([image])[0]
            size = own.bytes if isinstance(own, EncodedImage) else 3 * image.width * image.height
            features = {"image": own, "sam2": levels}
            encoded.append(EncodedImage((image.height, image.width), features, size + tensor_bytes(levels)))
        return encoded

    def _refined(self, levels: list[torch.Tensor], answer: Answer, mask_threshold: float) -> list[Segment]:
        refined = []
        for segment in answer.segments:
            x, y, width, height = segment.bbox
            box = np.array([[x, y, x + width, y + height]])
            if segment.area == width * height:
                logits = self.masks.from_boxes(levels, answer.size, box)[0]
            else:
                logits = next(self.masks.from_masks(levels, answer.size, [codec.decode(segment.rle)], box))
            better = segment_of(self.masks.mask(logits, answer.size, mask_threshold), segment.score)
            refined.append(better or segment)
        return refined


def refine_with_sam2(
    system: System, folder: str = "", device: str | None = None, dtype: str | None = None
) -> RefinedBySam2:
    """The system with SAM 2 behind it. folder: of its checkpoint; "": the one on the Hub. Raises VLSegError."""
    from vlseg.models.precision import QUANTISED
    from vlseg.systems.hub import download
    from vlseg.systems.presets import SAM2
    from vlseg.systems.quiet import quiet_loading

    place = folder or download(SAM2.id, SAM2.revision, "sam2", option="--refine")
    with quiet_loading():
        # SAM 2 is small: where the model is asked for in 8 or 4 bits, it stays in the device's own number type
        return RefinedBySam2(system, Sam2Masks.from_pretrained(place, device, None if dtype in QUANTISED else dtype))
