"""`RefinedByVlseg`: the answers of any system, made sharper by the refiner, with what they were before beside them."""

from __future__ import annotations

from PIL import Image

from vlseg.models.refiner import Refiner
from vlseg.models.refiner_crop import refine
from vlseg.systems.base import System
from vlseg.systems.devices import pick_device
from vlseg.systems.refining import RefinedSystem, picture_bytes
from vlseg.systems.registry import EMBEDDED_REFINER, WEIGHTS
from vlseg.types import RLE


class RefinedByVlseg(RefinedSystem):
    """Each segment is refined on its own, from its mask alone; a box is a mask that fills it.

    iterations: default: the refiner's own; 0 leaves everything as it is.
    """

    def __init__(self, system: System, model: Refiner, iterations: int | None = None):
        self.model = model.eval()
        self.iterations = model.config.iterations if iterations is None else iterations
        super().__init__(system, f"vlseg-refiner, {self.iterations} iterations")

    def look(self, image: Image.Image) -> tuple[Image.Image, int]:
        """The image itself: the refiner looks at crops around masks."""
        return image, picture_bytes(image)

    def sharper(self, seen: Image.Image, size: tuple[int, int], masks: list[RLE], threshold: float) -> list[RLE | None]:
        """See `RefinedSystem.sharper`."""
        if not self.iterations:
            return [None] * len(masks)
        found = refine(self.model, seen, masks, self.iterations, threshold)
        return [None if one is None else one.rle for one in found]


def refine_with_vlseg(
    system: System, folder: str = "", device: str | None = None, iterations: int | None = None
) -> RefinedByVlseg:
    """The system with a refiner behind it. folder: of a refiner; "": the embedded one. iterations: as for the class.
    Raises VLSegError."""
    place = folder or str(WEIGHTS / EMBEDDED_REFINER)
    return RefinedByVlseg(system, Refiner.from_pretrained(place, pick_device(device)), iterations)
