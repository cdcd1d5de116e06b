"""`Florence2`: polygons for a referring expression (arXiv 2311.06242), on transformers' own class and post-processing.

The vision tower runs once an image; its tokens are given to every query. It cannot say that nothing is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.masks.raster import raster
from vlseg.systems.base import EncodedImage
from vlseg.systems.foreign import (
    ForeignSystem,
    chunks,
    load_pretrained,
    load_processor,
    plain_words,
    rows_of,
    several,
)
from vlseg.systems.generating import write
from vlseg.types import Answer

TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"
ROWS_A_PASS = 8
TOKENS_AN_ANSWER = 1024


def open_system(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> Florence2:
    """The factory of the preset: places = [folder of the model]."""
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

    model = load_pretrained(Florence2ForConditionalGeneration, places[0], device, dtype)
    return Florence2(model, load_processor(Florence2Processor, places[0]), name)


class Florence2(ForeignSystem):
    """Florence-2 as a `System`. One segment an instance that it writes, nearly always one."""

    protocol = (
        "florence-2, greedy; score: geometric mean probability of the written tokens, which says nothing about "
        "presence; mask: its polygons, pixel centres"
    )
    default_threshold = 0.0

    def __init__(self, model: Any, processor: Any, name: str = "florence2"):
        super().__init__(name)
        self.model, self.processor = model, processor

    def _encode(self, images: list[Image.Image]) -> list[torch.Tensor]:
        """Per image its tokens ``(1, n, D)``."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        tokens = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype)).pooler_output
        return [tokens[b : b + 1] for b in range(len(images))]

    def _prompts(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """As the processor builds them, with the tokens of an image in front."""
        tokenizer = self.processor.tokenizer
        image = self.processor.image_token * self.processor.num_image_tokens
        asked = [self.processor.task_prompts_with_input[TASK].format(input=plain_words(t, tokenizer)) for t in texts]
        prompts = [f"{image}{tokenizer.bos_token}{text.strip()}{tokenizer.eos_token}" for text in asked]
        inputs = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        return {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        answers: list[list[Answer]] = [[] for _ in texts]
        for pairs in chunks(texts, ROWS_A_PASS):
            tokens = rows_of([image.features.to(self.model.device) for image in encoded], [b for b, _ in pairs])
            inputs: dict[str, Any] = dict(self._prompts([texts[b][k] for b, k in pairs]))
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=tokens)}
            for (b, k), written in zip(pairs, write(self.model, inputs, TOKENS_AN_ANSWER), strict=True):
                size = encoded[b].size
                parts = _masks(self._polygons(written.ids, size), size, written.confidence)
                answers[b].append(several(texts[b][k], written.confidence, threshold, size, lambda p=parts: p))  # type: ignore[misc]
        return answers

    def _polygons(self, ids: list[int], size: tuple[int, int]) -> list[list[list[float]]]:
        """Per instance its polygons, flat x, y in pixels: the library's own reading of what was written."""
        text = self.processor.batch_decode([ids], skip_special_tokens=False)[0]
        read = self.processor.post_process_generation(text=text, task=TASK, image_size=(size[1], size[0]))
        return read[TASK]["polygons"]


def _masks(
    instances: list[list[list[float]]], size: tuple[int, int], score: float
) -> Iterator[tuple[np.ndarray, float]]:
    """The union of an instance's polygons; each even-odd at pixel centres."""
    for polygons in instances:
        mask = np.zeros(size, dtype=bool)
        for polygon in polygons:
            if len(polygon) >= 6:
                mask |= raster([np.asarray(polygon, dtype=float).reshape(-1, 2)], size)
        yield mask, score
