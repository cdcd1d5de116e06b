"""`RefinedBySam2`: the answers of any system, made sharper by SAM 2. A coarse mask prompts it, or a box that is one."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.systems.base import System
from vlseg.systems.foreign import tensor_bytes
from vlseg.systems.refining import RefinedSystem
from vlseg.systems.sam2 import Sam2Masks
from vlseg.types import RLE


class RefinedBySam2(RefinedSystem):
    """Each segment prompts SAM 2 with its box and its mask; a segment that fills its box is taken for a box alone."""

    def __init__(self, system: System, masks: Sam2Masks):
        self.masks = masks
        super().__init__(system, "sam 2")

    @torch.inference_mode()
    def look(self, image: Image.Image) -> tuple[list[torch.Tensor], int]:
        """SAM 2's embeddings of the image."""
        levels = self.masks.encode([image])[0]
        return levels, tensor_bytes(levels)

    @torch.inference_mode()
    def sharper(
        self, seen: list[torch.Tensor], size: tuple[int, int], masks: list[RLE], threshold: float
    ) -> list[RLE | None]:
        """See `RefinedSystem.sharper`."""
        return [codec.encode(self.masks.mask(self._logits(seen, size, rle), size, threshold)) for rle in masks]

    def _logits(self, seen: list[torch.Tensor], size: tuple[int, int], rle: RLE) -> torch.Tensor:
        x, y, width, height = codec.bbox(rle)
        box = np.array([[x, y, x + width, y + height]])
        if codec.area(rle) == width * height:
            return self.masks.from_boxes(seen, size, box)[0]
        return next(self.masks.from_masks(seen, size, [codec.decode(rle)], box))


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
