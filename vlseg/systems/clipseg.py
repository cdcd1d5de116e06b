"""`CLIPSeg`: a phrase and an image to one soft map (arXiv 2112.10003), on transformers' own classes.

The vision tower runs once an image and no further than the deepest layer that the decoder reads; the decoder's
projections of it run once too and are all that is kept of an image. The decoder itself is transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlseg.systems.base import EncodedImage, SoftAnswer, check_queries
from vlseg.systems.foreign import (
    ForeignSystem,
    TextCache,
    chunks,
    load_pretrained,
    load_processor,
    logit,
    plain_words,
    rows_of,
)
from vlseg.types import Answer

ROWS_A_PASS = 64


def open_system(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> ClipSeg:
    """The factory of the preset: places = [folder of the model]."""
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    model = load_pretrained(CLIPSegForImageSegmentation, places[0], device, dtype)
    return ClipSeg(model, load_processor(CLIPSegProcessor, places[0]), name)


class ClipSeg(ForeignSystem):
    """CLIPSeg as a `System`. One mask a query, one segment."""

    protocol = "clipseg; score: highest pixel probability of the map, uncalibrated; mask: bilinear logits"

    def __init__(self, model: Any, processor: Any, name: str = "clipseg"):
        super().__init__(name)
        self.model, self.processor = model, processor
        tower, decoder = model.clip.vision_model, model.decoder
        self._deepest = max(model.extract_layers) + 1
        tower.encoder.layers = tower.encoder.layers[: self._deepest]
        # `_encode` applies the projections, once; in the decoder, which would apply them per query, nothing is left.
        self._projections = list(decoder.reduces)
        decoder.reduces = nn.ModuleList(nn.Identity() for _ in decoder.reduces)
        self.texts = TextCache(self._text_features)

    def _encode(self, images: list[Image.Image]) -> list[list[torch.Tensor]]:
        """Per image the activations that the decoder reads, shallow to deep, each ``(1, tokens, reduced)``."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        tower = self.model.clip.vision_model
        states = tower(pixels.to(self.model.device, self.model.dtype), output_hidden_states=True).hidden_states
        # the decoder goes from the deepest layer to the shallowest, and so do its projections
        layers = zip(self.model.extract_layers, reversed(self._projections), strict=True)
        reduced = [projection(states[layer + 1]) for layer, projection in layers]
        return [[level[b : b + 1] for level in reduced] for b in range(len(images))]

    def _text_features(self, texts: list[str]) -> Sequence[torch.Tensor]:
        """One ``(projection,)`` a text. A text longer than the model reads is cut at its end."""
        tokenizer = self.processor.tokenizer
        words = [plain_words(text, tokenizer) for text in texts]
        most = self.model.config.text_config.max_position_embeddings
        inputs = tokenizer(words, padding=True, truncation=True, max_length=most, return_tensors="pt")
        features = self.model.clip.get_text_features(
            inputs["input_ids"].to(self.model.device), attention_mask=inputs["attention_mask"].to(self.model.device)
        )
        return features.pooler_output.unbind()

    def _soft(self, encoded: list[EncodedImage], texts: list[list[str]]) -> list[list[SoftAnswer]]:
        answers: list[list[SoftAnswer]] = [[] for _ in texts]
        words = iter(self.texts([text for row in texts for text in row]))
        for pairs in chunks(texts, ROWS_A_PASS):
            owners = [b for b, _ in pairs]
            levels = [
                rows_of([image.features[level].to(self.model.device) for image in encoded], owners)
                for level in range(len(self._projections))
            ]
            condition = torch.stack([next(words) for _ in pairs])
            logits = self.model.decoder(levels, condition).logits.float()
            logits = logits.reshape(len(pairs), *logits.shape[-2:])
            scores = logits.flatten(1).amax(1).sigmoid().tolist()
            for (b, k), own, score in zip(pairs, logits, scores, strict=True):
                answers[b].append(SoftAnswer(texts[b][k], score, partial(_mask, own)))
        return answers

    @torch.inference_mode()
    def soft_answers(self, image: Image.Image | EncodedImage, queries: Sequence[str]) -> list[SoftAnswer]:
        """See `SoftSystem.soft_answers`."""
        return self._soft(self._encoded([image]), [check_queries(queries)])[0]

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        soft = self._soft(encoded, texts)
        return [
            [answer.at(image.size, threshold, mask_threshold) for answer in row]
            for image, row in zip(encoded, soft, strict=True)
        ]


def _mask(logits: torch.Tensor, size: tuple[int, int], mask_threshold: float) -> np.ndarray:
    """``(H, W)`` bool of ``(h, w)`` logits, interpolated before the threshold."""
    large = nn.functional.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return (large > logit(mask_threshold)).cpu().numpy()
