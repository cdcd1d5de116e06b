"""`ClosedMaps`: a network that gives each pixel a class, as a `System`; the factory of unet, segnet and their like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from vlseg.models.processing import VLSegProcessor
from vlseg.systems.class_names import ClassNames, TextMatch
from vlseg.systems.clip_text import clip_text
from vlseg.systems.closed_net import ClosedNet
from vlseg.systems.closed_vocabulary import ClosedVocabulary, Findings, from_class_map
from vlseg.systems.devices import pick_device, pick_dtype
from vlseg.types import VLSegError

CLASSES_AT_ONCE = 8  # enlarged together: 150 classes of a large photograph do not fit into memory


class ClosedImages(VLSegProcessor):
    """The pictures' half of `VLSegProcessor`, and the classes in the place of words: the "token" of a query is the
    number of its class. image: as `ClosedNet.image`."""

    def __init__(self, names: ClassNames, image: dict[str, Any]):
        self.names, self.image, self.pad_id = names, dict(image), 0

    def query_ids(self, text: str) -> list[int]:
        """The number of the class. Raises VLSegError for words that mean none, or several."""
        match = self.names.match(text)
        if len(match.classes) != 1:
            raise VLSegError(match.reason or f"means {len(match.classes)} classes")
        return [match.classes[0]]


class ClosedMaps(ClosedVocabulary):
    """A `ClosedNet` as a `System`: the class of a pixel is the one with the highest logit, enlarged bilinearly."""

    def __init__(self, net: ClosedNet, name: str, near: TextMatch | None = None):
        super().__init__(name, ClassNames(net.labels, near), f"{net.architecture}, highest of bilinear logits")
        self.net, self.presence_threshold = net.eval(), net.threshold
        self.images = ClosedImages(self.names, net.image)

    def look(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """See `ClosedVocabulary.look`: logits (C, h, w) float32."""
        size = self.images.input_size(images[0].height, images[0].width)
        weight = next(self.net.parameters())
        pixels = torch.cat([self.images.pixel_values(image, size) for image in images])
        logits = self.net(pixels.to(weight.device, weight.dtype)).float()
        return [own.clone() for own in logits]

    def find(self, seen: Any, size: tuple[int, int], wanted: set[int], presence: float, mask: float) -> Findings:
        """See `ClosedVocabulary.find`."""
        del presence, mask
        winner, probability = most_likely(seen, size)
        return from_class_map(winner, probability, wanted, len(self.names.labels))


def most_likely(logits: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, h, w) logits to the class of each pixel, (H, W) int64 at `size`, and its softmax probability, (H, W)."""
    best: torch.Tensor | None = None
    for start in range(0, len(logits), CLASSES_AT_ONCE):
        part = logits[start : start + CLASSES_AT_ONCE]
        if part.shape[-2:] != torch.Size(size):
            part = F.interpolate(part[None], size=size, mode="bilinear", align_corners=False)[0]
        value, number = part.max(0)
        total = part.logsumexp(0)
        if best is None:
            best, winner, sums = value, number, total
        else:
            winner = torch.where(value > best, number + start, winner)
            best, sums = torch.maximum(best, value), torch.logaddexp(sums, total)
    if best is None:
        raise VLSegError("a network without classes")
    return winner, (best - sums).exp()


def open_system(
    places: Sequence[str | None], device: str | None = None, dtype: str | None = None, name: str | None = None
) -> ClosedMaps:
    """The factory of the presets of such networks. places: the folder, and that of a CLIP for the class names, or None.

    Raises VLSegError, in one line, for a folder that is none, and a dtype that does not go.
    """
    folder = places[0]
    if not folder or not Path(folder).is_dir():
        what = name or "this system"
        raise VLSegError(
            f"--model {what}: there are no weights of its own to fetch; train some (vlseg train closed "
            f"closed={what} data.train=my.jsonl), or name a folder: {what}=FOLDER"
        )
    place = pick_device(device)
    net = ClosedNet.from_pretrained(folder).to(place, pick_dtype(dtype, place))
    return ClosedMaps(net, name or str(folder), clip_text(places[1] if len(places) > 1 else None, net.labels, place))
