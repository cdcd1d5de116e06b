"""Switch a part of a native model off, to see whether it works for its living."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from vlseg.data.dataset import Dataset
from vlseg.models.modeling import ImageFeatures, VLSegModel
from vlseg.types import Sample, VLSegError

PARTS = ("pixel-encoder", "image-prefix")


@contextlib.contextmanager
def without(model: VLSegModel, part: str) -> Iterator[None]:
    """Within the block one part of the model gives zeros.

    "pixel-encoder": all maps of the pyramid; "image-prefix": the image tokens that the language model reads.
    """
    if part not in PARTS:
        raise VLSegError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    if part == "pixel-encoder":

        def zeros(module: Any, inputs: Any, maps: list[torch.Tensor]) -> list[torch.Tensor]:
            return [torch.zeros_like(m) for m in maps]

        handle = model.pixel_encoder.register_forward_hook(zeros)
        try:
            yield
        finally:
            handle.remove()
        return
    plain = model.encode_image

    def encode(pixel_values: torch.Tensor) -> ImageFeatures:
        image = plain(pixel_values)
        image.tokens.pooler_output = torch.zeros_like(image.tokens.pooler_output)
        image.tokens.deepstack = tuple(torch.zeros_like(level) for level in image.tokens.deepstack)
        return replace(image)

    model.encode_image = encode  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.encode_image


class OtherImages:
    """A `Dataset` whose images are asked the queries of their neighbours; truth stays that of the queries' own image.

    Where the sizes are equal, the score says how much can be had without looking at the picture.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.name, self.split = f"{dataset.name}, pictures swapped", dataset.split
        self.problems, self.fingerprint = dataset.problems, dataset.fingerprint

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.dataset[index], image=self.dataset[(index + 1) % len(self)].image)
