"""`--refine`: sharper masks behind any system. What all refiners share, and one line of `refined` for each of them; no
torch before one is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.outline_rle import outline_rle
from vlseg.masks.svg import path_data
from vlseg.systems.base import EncodedImage, Encoder, System
from vlseg.types import RLE, Answer, Coarse, Mode, Segment, VLSegError

KNOWN = "none, vlseg, vlseg=FOLDER, sam2, sam2=FOLDER"
CHECKPOINTS = {"vlseg": "refiner of vlseg", "sam2": "SAM 2 checkpoint"}
MOST_ITERATIONS = 8


class RefinedSystem:
    """A `System` around another. Only found answers change, and of them only the masks: status and scores stay.

    A refined segment says so (`stage`) and holds what it was (`coarse`); one of which the refiner leaves no pixel stays
    as it was. In path mode the path is refined, and the mask threshold is that of the refined mask.
    how: completes the protocol. A refiner says what it looks at (`look`), and what it makes of masks (`sharper`).
    """

    def __init__(self, system: System, how: str):
        self.system, self.name, self.modes = system, system.name, system.modes
        self.protocol = f"{system.protocol}; each segment refined by {how}"

    @property
    def presence_threshold(self) -> float:
        """That of the system within."""
        return self.system.presence_threshold

    def look(self, image: Image.Image) -> tuple[Any, int]:
        """What the refiner needs of an image (RGB, upright), and the bytes that takes."""
        raise NotImplementedError

    def sharper(self, seen: Any, size: tuple[int, int], masks: list[RLE], threshold: float) -> list[RLE | None]:
        """Masks of an image (height, width) of which `look` gave `seen`, refined; None, or no pixel: none came of it.

        threshold: probability above which a pixel is foreground.
        """
        raise NotImplementedError

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
        """See `System.segment_batch`; an image may also be what `encode_batch` gave for it."""
        extra: dict[str, Any] = {} if mode == "mask" else {"mode": mode}  # systems without paths know no mode
        inner = [image.features["inner"] if isinstance(image, EncodedImage) else image for image in images]
        answers = self.system.segment_batch(
            inner, queries, presence_threshold=presence_threshold, mask_threshold=mask_threshold, **extra
        )
        for image, row in zip(images, answers, strict=True):
            found = [answer for answer in row if answer.status == "found"]
            if not found:
                continue  # nobody looks at an image in which nothing was found
            seen = image.features["seen"] if isinstance(image, EncodedImage) else self.look(image)[0]
            masks = [segment.rle for answer in found for segment in answer.segments]
            better = iter(self.sharper(seen, found[0].size, masks, mask_threshold))
            for answer in found:
                answer.segments = [refined_segment(segment, next(better)) for segment in answer.segments]
        return answers

    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`. A system that encodes nothing is given the image itself again."""
        inner = self.system.encode_batch(images) if isinstance(self.system, Encoder) else list(images)
        encoded = []
        for image, own in zip(images, inner, strict=True):
            seen, size = self.look(image)
            if isinstance(own, EncodedImage):
                size += own.bytes
            elif own is not seen:
                size += picture_bytes(image)
            encoded.append(EncodedImage((image.height, image.width), {"inner": own, "seen": seen}, size))
        return encoded


def refined_segment(segment: Segment, better: RLE | None) -> Segment:
    """A segment with the mask that a refiner made of it, and what it was beside it; itself where none came of it."""
    area = 0 if better is None else codec.area(better)
    if better is None or not area:
        return segment
    coarse = Coarse(segment.stage, segment.rle, segment.path)
    path = path_data(outline_rle(better))
    return Segment(segment.score, codec.bbox(better), area, better, path, "refined", coarse)


def picture_bytes(image: Image.Image) -> int:
    """What the pixels of an image take in memory."""
    return 3 * image.width * image.height


def check_refine(refine: str, iterations: int | None = None) -> tuple[str, str]:
    """(refiner, folder) that `--refine` means; folder "": none is named. Raises VLSegError, in one line."""
    kind, equals, place = refine.partition("=")
    if kind not in ("none", *CHECKPOINTS) or (equals and (kind == "none" or not place)):
        raise VLSegError(f"--refine {refine}: unknown; known: {KNOWN}")
    if iterations is not None and kind == "sam2":
        raise VLSegError(f"--refine-iterations: --refine {refine} has no iterations; leave it out, or use vlseg")
    if iterations is not None and not 0 <= iterations <= MOST_ITERATIONS:
        raise VLSegError(f"--refine-iterations {iterations}: must lie in 0..{MOST_ITERATIONS}")
    folder = Path(place).expanduser()
    if place and not (folder / "config.json").is_file():
        raise VLSegError(f"--refine {refine}: no config.json in {place}; name the folder of a {CHECKPOINTS[kind]}")
    return kind, place and str(folder)


def refined(
    system: System, refine: str, device: str | None = None, dtype: str | None = None, iterations: int | None = None
) -> System:
    """The system with its refiner behind it. device, dtype: of the refiner, as for the system. iterations: of vlseg's
    own, 0..8; None: as many as its checkpoint says.

    Raises VLSegError for an unknown refiner, and where its checkpoint cannot be had or loaded.
    """
    kind, folder = check_refine(refine, iterations)
    if kind == "sam2":
        from vlseg.systems.refine_sam2 import refine_with_sam2

        return refine_with_sam2(system, folder, device, dtype)
    if kind == "vlseg":
        from vlseg.systems.refine_vlseg import refine_with_vlseg

        return refine_with_vlseg(system, folder, device, iterations)
    return system
