"""`PaliGemma`: a box in <loc> tokens and a mask in <seg> tokens (arXiv 2407.07726), on transformers' own class.

The vision tower runs once an image; its tokens are given to every query. Masks need the user's `vae-oid.npz` (given as
`paligemma=FOLDER,vae-oid.npz`, or lying in FOLDER); without it the answer is the box, and the protocol says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.systems.base import EncodedImage
from vlseg.systems.foreign import (
    ForeignSystem,
    box_mask,
    chunks,
    load_pretrained,
    load_processor,
    plain_words,
    rows_of,
    several,
)
from vlseg.systems.generating import write
from vlseg.systems.paligemma_masks import MaskDecoder, place
from vlseg.types import Answer

DECODER_FILE = "vae-oid.npz"
ROWS_A_PASS = 8
# an object is 4 + 16 tokens, its name and a separator
TOKENS_AN_ANSWER = 256
_BINS = 1024
_OBJECT = re.compile(r"((?:<loc\d{4}>){4})\s*((?:<seg\d{3}>){16})?")


def open_system(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> PaliGemma:
    """The factory of the preset: places = [folder of the model, vae-oid.npz or None]."""
    from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

    beside = Path(str(places[0])) / DECODER_FILE
    file = places[1] if len(places) > 1 and places[1] else (beside if beside.is_file() else None)
    decoder = MaskDecoder.from_npz(file) if file else None
    model = load_pretrained(PaliGemmaForConditionalGeneration, places[0], device, dtype, quantised=True)
    return PaliGemma(model, load_processor(PaliGemmaProcessor, places[0]), decoder, name)


class PaliGemma(ForeignSystem):
    """PaliGemma as a `System`. One segment an object that it writes."""

    default_threshold = 0.5

    def __init__(self, model: Any, processor: Any, decoder: MaskDecoder | None, name: str = "paligemma"):
        super().__init__(name)
        self.model, self.processor, self.decoder = model, processor, decoder
        masks = "mask: <seg> tokens" if decoder else f"mask: the BOX, since no {DECODER_FILE} was given"
        self.protocol = f"paligemma, greedy; score: probability that the answer begins with a <loc> token; {masks}"
        vocabulary = processor.tokenizer.get_vocab()
        self._locs = torch.tensor([vocabulary[f"<loc{i:04d}>"] for i in range(_BINS)])

    def _encode(self, images: list[Image.Image]) -> list[torch.Tensor]:
        """Per image its tokens ``(1, n, D)``."""
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        tokens = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype)).pooler_output
        return [tokens[b : b + 1] for b in range(len(images))]

    def _prompts(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """As the processor builds them, with the tokens of an image in front; all of it is prefix."""
        tokenizer = self.processor.tokenizer
        image = self.processor.image_token * self.processor.image_seq_length
        words = [plain_words(text, tokenizer) for text in texts]
        prompts = [f"{image}{tokenizer.bos_token}segment {text}\n" for text in words]
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_token_type_ids=True, return_tensors="pt")
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: inputs[name].to(self.model.device) for name in names}

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
                score = float(written.first[self._locs.to(written.first.device)].sum().clamp(max=1))
                text = self.processor.tokenizer.decode(written.ids, skip_special_tokens=False)
                parts = self._masks(text, encoded[b].size, score, mask_threshold)
                answers[b].append(several(texts[b][k], score, threshold, encoded[b].size, lambda p=parts: p))  # type: ignore[misc]
        return answers

    def _masks(
        self, text: str, size: tuple[int, int], score: float, mask_threshold: float
    ) -> Iterator[tuple[np.ndarray, float]]:
        for box, codes in parse(text, size):
            if self.decoder is None or codes is None:
                yield box_mask(box, size), score
            else:
                yield place(self.decoder(torch.tensor([codes]))[0], box, size, mask_threshold), score


def parse(text: str, size: tuple[int, int]) -> list[tuple[list[float], list[int] | None]]:
    """(box x0 y0 x1 y1 in pixels, 16 codes or None) of each object: <loc> tokens are y0, x0, y1, x1 in 1024ths."""
    height, width = size
    found: list[tuple[list[float], list[int] | None]] = []
    for locs, segs in _OBJECT.findall(text):
        y0, x0, y1, x1 = (int(n) / _BINS for n in re.findall(r"\d{4}", locs))
        box = [min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height]
        codes = [int(n) for n in re.findall(r"\d{3}", segs)]
        found.append((box, codes if codes and max(codes) < 128 else None))
    return found
