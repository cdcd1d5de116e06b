"""`Sam3`: every instance of a concept (arXiv 2511.16719), on transformers' own class.

The vision encoder runs once an image, the text encoder once a text; detector and mask decoder run per query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.systems.base import EncodedImage
from vlseg.systems.foreign import (
    ForeignSystem,
    TextCache,
    chunks,
    load_pretrained,
    load_processor,
    plain_words,
    rows_of,
    several,
)
from vlseg.types import Answer

# A query holds 200 masks of 288 x 288 until the threshold is applied: 66 MB in float32.
ROWS_A_PASS = 8


def open_system(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> Sam3:
    """The factory of the preset: places = [folder of the model]."""
    from transformers import Sam3Model, Sam3Processor

    model = load_pretrained(Sam3Model, places[0], device, dtype)
    return Sam3(model, load_processor(Sam3Processor, places[0]), name)


class Sam3(ForeignSystem):
    """SAM 3 as a `System`. One segment an instance."""

    protocol = (
        "sam 3; score: presence x best instance; segments: every instance whose presence x own score is at or above "
        "the threshold; concepts, not relations"
    )
    default_threshold = 0.5

    def __init__(self, model: Any, processor: Any, name: str = "sam3"):
        super().__init__(name)
        self.model, self.processor = model, processor
        self.texts = TextCache(self._text_features)
        self._positions: list[torch.Tensor] | None = None

    def _encode(self, images: list[Image.Image]) -> list[list[torch.Tensor]]:
        """Per image the levels that detector and mask decoder read, each ``(1, C, h, w)``."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return self._vision(pixels)

    def _vision(self, pixels: torch.Tensor) -> list[list[torch.Tensor]]:
        seen = self.model.get_vision_features(pixels.to(self.model.device, self.model.dtype))
        # Positions depend on the input size alone, which is one for all images.
        self._positions = [position[:1] for position in seen.fpn_position_encoding]
        # The last level is dropped by the model; it is not kept.
        levels = seen.fpn_hidden_states[:-1]
        return [[level[b : b + 1] for level in levels] for b in range(len(pixels))]

    def _text_features(self, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per text its tokens' features ``(1, L, D)`` and mask ``(1, L)``. A longer text is cut at its end."""
        tokenizer = self.processor.tokenizer
        words = [plain_words(text, tokenizer) for text in texts]
        # 32 tokens, as the processor pads them; the model was trained on no more
        inputs = tokenizer(words, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
        ids, mask = (inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        features = self.model.get_text_features(ids, attention_mask=mask).pooler_output
        return [(features[i : i + 1], mask[i : i + 1]) for i in range(len(texts))]

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        answers: list[list[Answer]] = [[] for _ in texts]
        words = iter(self.texts([text for row in texts for text in row]))
        for pairs in chunks(texts, ROWS_A_PASS):
            owners = [b for b, _ in pairs]
            asked = [next(words) for _ in pairs]
            states = [
                rows_of([image.features[level].to(self.model.device) for image in encoded], owners)
                for level in range(len(encoded[0].features))
            ]
            positions = [rows_of([position], [0] * len(pairs)) for position in self._placed()]
            output = self.model(
                vision_embeds=Sam3VisionEncoderOutput(
                    fpn_hidden_states=(*states, states[-1]), fpn_position_encoding=tuple(positions)
                ),
                text_embeds=BaseModelOutputWithPooling(pooler_output=torch.cat([one for one, _ in asked])),
                attention_mask=torch.cat([mask for _, mask in asked]),
            )
            # the score of `post_process_instance_segmentation`
            scores = output.pred_logits.float().sigmoid() * output.presence_logits.float().sigmoid()
            for (b, k), own, masks in zip(pairs, scores, output.pred_masks.float(), strict=True):
                kept = own >= threshold
                parts = _masks(masks[kept], own[kept].tolist(), encoded[b].size, mask_threshold)
                answers[b].append(several(texts[b][k], float(own.max()), threshold, encoded[b].size, lambda p=parts: p))  # type: ignore[misc]
        return answers

    def _placed(self) -> list[torch.Tensor]:
        """The position encodings; made with a blank image where every image so far came encoded."""
        if self._positions is None:
            blank = Image.new("RGB", (64, 64))
            self._encode([blank])
        assert self._positions is not None
        return self._positions


def _masks(
    logits: torch.Tensor, scores: list[float], size: tuple[int, int], mask_threshold: float
) -> Iterator[tuple[np.ndarray, float]]:
    """The best first; probabilities are interpolated, as the library does it."""
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        large = torch.nn.functional.interpolate(logits[i].sigmoid()[None, None], size, mode="bilinear")[0, 0]
        yield (large > mask_threshold).cpu().numpy(), scores[i]
