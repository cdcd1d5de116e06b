"""`QwenVlSam2`: Qwen3-VL or Qwen2.5-VL names boxes or points by chat, SAM 2 makes them masks.

Both vision towers run once an image; the chat model's image tokens are given to every query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.systems.base import EncodedImage
from vlseg.systems.foreign import ForeignSystem, load_pretrained, load_processor, plain_words, several
from vlseg.systems.generating import Written, write
from vlseg.systems.registry import model_type
from vlseg.systems.sam2 import Sam2Masks
from vlseg.types import Answer, VLSegError

ROWS_A_PASS = 8
TOKENS_AN_ANSWER = 512
PROMPT = (
    'Locate every object that matches the description "{words}" in the image. '
    "Report bbox coordinates in JSON format. If nothing matches, answer []."
)
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(r'"bbox(?:_2d)?"\s*:\s*\[' + ",".join([_NUMBER] * 4) + r"\]")
_POINT = re.compile(r'"point(?:_2d)?"\s*:\s*\[' + ",".join([_NUMBER] * 2) + r"\]")


def open_system(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> QwenVlSam2:
    """The factory of the presets: places = [folder of the chat model, folder of SAM 2]."""
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
    )

    kinds: dict[str, Any] = {
        "qwen3_vl": (Qwen3VLForConditionalGeneration, Qwen3VLProcessor),
        "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
    }
    kind = model_type(str(places[0]))
    if kind not in kinds:
        raise VLSegError(f"--model {name}: {places[0]} is a checkpoint of {kind!r}, not of {' or '.join(kinds)}")
    model = load_pretrained(kinds[kind][0], places[0], device, dtype, quantised=True)
    processor = load_processor(kinds[kind][1], places[0])
    plain = None if dtype in ("int8", "nf4") else dtype
    return QwenVlSam2(model, processor, Sam2Masks.from_pretrained(places[1], device, plain), name)


class QwenVlSam2(ForeignSystem):
    """A chat model and SAM 2 as a `System`. One segment a box or point that the chat names."""

    protocol = (
        "qwen-vl chat + sam 2, greedy; absent: an answer without box or point, score 0; score otherwise: geometric "
        "mean probability of the written tokens, uncalibrated; segments: every box or point"
    )
    default_threshold = 0.05

    def __init__(self, model: Any, processor: Any, masks: Sam2Masks, name: str = "qwen3-vl+sam2"):
        super().__init__(name)
        self.model, self.processor, self.masks = model, processor, masks
        # Qwen3-VL speaks in thousandths of the image, Qwen2.5-VL in pixels of the image as it saw it.
        self._thousandths = model.config.model_type == "qwen3_vl"

    def _encode(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """Per image its tokens, grid of patches, the features added to the first layers, SAM 2's embeddings."""
        # The images stand behind one another in one sequence of patches, whatever their sizes.
        inputs = self.processor.image_processor(images=images, return_tensors="pt")
        grid = inputs["image_grid_thw"].to(self.model.device)
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        seen = self.model.get_image_features(pixels, grid, return_dict=True)
        deep = getattr(seen, "deepstack_features", None) or []
        return [
            {"tokens": seen.pooler_output[b], "grid": grid[b], "deep": [level[b] for level in deep], "masks": levels}
            for b, levels in enumerate(self.masks.encode(images))
        ]

    def _prompts(self, texts: list[str], tokens: int) -> dict[str, torch.Tensor]:
        """As chat template and processor build them, for an image of so many tokens."""
        tokenizer = self.processor.tokenizer
        prompts = []
        for text in texts:
            words = PROMPT.format(words=plain_words(text, tokenizer).replace('"', "'"))
            content = [{"type": "image"}, {"type": "text", "text": words}]
            prompt = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            prompts.append(prompt.replace(self.processor.image_token, self.processor.image_token * tokens))
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        kinds = self.processor.create_mm_token_type_ids(inputs["input_ids"].tolist())
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        given["mm_token_type_ids"] = torch.tensor(kinds)
        return {name: value.to(self.model.device) for name, value in given.items()}

    def _written(self, image: EncodedImage, texts: list[str]) -> Iterator[Written]:
        """The chat's answers about one image, in order."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        own, place = image.features, self.model.device
        tokens, grid = own["tokens"].to(place), own["grid"].to(place)
        for start in range(0, len(texts), ROWS_A_PASS):
            asked = texts[start : start + ROWS_A_PASS]
            inputs: dict[str, Any] = dict(self._prompts(asked, len(tokens)))
            inputs["image_grid_thw"] = grid.expand(len(asked), -1)
            rows: Any = [tokens] * len(asked)
            deep: Any = [[level.to(place)] * len(asked) for level in own["deep"]]
            inputs["mm_encoder_outputs"] = {
                "image": BaseModelOutputWithDeepstackFeatures(pooler_output=rows, deepstack_features=deep or None)
            }
            yield from write(self.model, inputs, TOKENS_AN_ANSWER)

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        answers: list[list[Answer]] = []
        for image, row in zip(encoded, texts, strict=True):
            answers.append([])
            for text, written in zip(row, self._written(image, row), strict=True):
                said = self.processor.tokenizer.decode(written.ids, skip_special_tokens=True)
                boxes, points = parse(said, self._unit(image), image.size)
                if len(boxes) + len(points) == 0:
                    answers[-1].append(Answer(text, "absent", 0.0, image.size))
                    continue
                parts = self._masks(image, boxes, points, written.confidence, mask_threshold)
                answers[-1].append(several(text, written.confidence, threshold, image.size, lambda p=parts: p))  # type: ignore[misc]
        return answers

    def _unit(self, image: EncodedImage) -> tuple[float, float]:
        """Pixels of the image per step of the chat's coordinates: (x, y)."""
        height, width = image.size
        if self._thousandths:
            return width / 1000, height / 1000
        patch = self.model.config.vision_config.patch_size
        _, rows, columns = image.features["grid"].tolist()
        return width / (columns * patch), height / (rows * patch)

    def _masks(
        self, image: EncodedImage, boxes: np.ndarray, points: np.ndarray, score: float, mask_threshold: float
    ) -> Iterator[tuple[np.ndarray, float]]:
        prompted = []
        if len(boxes):
            prompted.append(self.masks.from_boxes(image.features["masks"], image.size, boxes))
        if len(points):
            prompted.append(self.masks.from_points(image.features["masks"], image.size, points))
        for own in torch.cat(prompted):
            yield self.masks.mask(own, image.size, mask_threshold), score


def parse(said: str, unit: tuple[float, float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``(n, 4)`` (x0, y0, x1, y1) and points ``(m, 2)`` in pixels, within the image, of a chat's JSON.

    unit: pixels a step of the chat's coordinates. What is no box (no area within the image) is left out; a list that
    was cut short gives what it has.
    """
    steps, limit = np.array([*unit, *unit]), np.array([size[1], size[0]] * 2, dtype=float)
    boxes = np.array(_BOX.findall(said), dtype=float).reshape(-1, 4) * steps
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    boxes = boxes.clip(0, limit)
    boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    points = np.array(_POINT.findall(said), dtype=float).reshape(-1, 2) * steps[:2]
    return boxes, points[((points >= 0) & (points < limit[:2])).all(axis=1)]
