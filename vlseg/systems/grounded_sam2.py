"""`GroundedSam2`: Grounding DINO (arXiv 2303.05499) or MM-Grounding DINO finds boxes for words, SAM 2 makes them masks.

The detector's vision backbone and SAM 2's image encoder run once an image; the detector's fusion of words and image
runs per query, because it reads both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlseg.systems.base import EncodedImage
from vlseg.systems.foreign import ForeignSystem, chunks, load_pretrained, load_processor, plain_words, rows_of, several
from vlseg.systems.registry import model_type
from vlseg.systems.sam2 import Sam2Masks
from vlseg.types import Answer, VLSegError

ROWS_A_PASS = 8
# A low presence threshold lets all 900 boxes of the detector pass; more than these are no answer.
BOXES_A_QUERY = 100


def open_system(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> GroundedSam2:
    """The factory of the presets: places = [folder of the detector, folder of SAM 2]."""
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, MMGroundingDinoForObjectDetection

    kinds = {"grounding-dino": GroundingDinoForObjectDetection, "mm-grounding-dino": MMGroundingDinoForObjectDetection}
    kind = model_type(str(places[0]))
    if kind not in kinds:
        raise VLSegError(f"--model {name}: {places[0]} is a checkpoint of {kind!r}, not of {' or '.join(kinds)}")
    detector = load_pretrained(kinds[kind], places[0], device, dtype)
    processor = load_processor(GroundingDinoProcessor, places[0])
    return GroundedSam2(detector, processor, Sam2Masks.from_pretrained(places[1], device, dtype), name)


class GroundedSam2(ForeignSystem):
    """A detector and SAM 2 as a `System`. One segment a box; a segment's score is that of its box."""

    protocol = (
        "grounding dino + sam 2; one caption a query; score: best box (highest token probability), uncalibrated; "
        "segments: every box at or above the threshold, at most 100"
    )
    default_threshold = 0.35

    def __init__(self, detector: Any, processor: Any, masks: Sam2Masks, name: str = "grounded-sam2"):
        super().__init__(name)
        self.detector, self.processor, self.masks = detector, processor, masks
        self._backbone = _Replay(detector.model.backbone)
        detector.model.backbone = self._backbone

    def _encode(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """Per image: shape of the detector's input, its backbone's maps and positions, SAM 2's embeddings."""
        # One by one, since images padded to a common size give other boxes; those of one size go together.
        pixels = [self.processor.image_processor(image, return_tensors="pt") for image in images]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, inputs in enumerate(pixels):
            shapes.setdefault(tuple(inputs["pixel_values"].shape[-2:]), []).append(i)
        place = self.detector.device
        encoded: list[dict[str, Any]] = [{} for _ in images]
        for shape, members in shapes.items():
            batch = torch.cat([pixels[i]["pixel_values"] for i in members]).to(place, self.detector.dtype)
            inside = torch.cat([pixels[i]["pixel_mask"] for i in members]).to(place)
            maps, positions = self._backbone.backbone(batch, inside)
            for b, i in enumerate(members):
                row = slice(b, b + 1)
                encoded[i] = {
                    "shape": shape,
                    "maps": [level[row] for level, _ in maps],
                    "inside": [mask[row] for _, mask in maps],
                    "positions": [position[row] for position in positions],
                }
        for features, levels in zip(encoded, self.masks.encode(images), strict=True):
            features["masks"] = levels
        return encoded

    def _boxes(
        self, encoded: list[EncodedImage], texts: list[list[str]]
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """(image, query, boxes (n, 4) x0 y0 x1 y1 in pixels, scores (n,)), best first."""
        place = self.detector.device
        for b, image in enumerate(encoded):
            own = image.features
            for pairs in chunks([texts[b]], ROWS_A_PASS):
                rows = [0] * len(pairs)
                words = self._words([texts[b][k] for _, k in pairs])
                self._backbone.given = (
                    [
                        (rows_of([level.to(place)], rows), rows_of([mask.to(place)], rows))
                        for level, mask in zip(own["maps"], own["inside"], strict=True)
                    ],
                    [rows_of([position.to(place)], rows) for position in own["positions"]],
                )
                blank = torch.zeros(1, device=place, dtype=self.detector.dtype)
                try:
                    output = self.detector(pixel_values=blank.expand(len(rows), 3, *own["shape"]), **words)
                finally:
                    self._backbone.given = None
                scores = output.logits.float().sigmoid().amax(-1)
                centres = output.pred_boxes.float()
                corners = torch.cat(
                    [centres[..., :2] - centres[..., 2:] / 2, centres[..., :2] + centres[..., 2:] / 2], -1
                )
                height, width = image.size
                corners = corners * torch.tensor([width, height, width, height], device=place)
                best = scores.topk(min(BOXES_A_QUERY, scores.shape[1]), dim=1)
                for (_, k), order, values, boxes in zip(pairs, best.indices, best.values, corners, strict=True):
                    yield b, k, boxes[order].cpu().numpy(), values.cpu().numpy()

    def _words(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Captions as the detector knows them: lower case, one dot at the end."""
        tokenizer = self.processor.tokenizer
        captions = [plain_words(text, tokenizer).strip().lower().rstrip(".") + "." for text in texts]
        most = min(self.detector.config.max_text_len, self.detector.config.text_config.max_position_embeddings)
        inputs = tokenizer(
            captions, padding=True, truncation=True, max_length=most, return_token_type_ids=True, return_tensors="pt"
        )
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: inputs[name].to(self.detector.device) for name in names}

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        kept: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in texts]
        for b, _, boxes, scores in self._boxes(encoded, texts):
            passed = scores >= threshold
            kept[b].append((boxes[passed], scores[passed], float(scores[0])))
        answers: list[list[Answer]] = []
        for image, row, found in zip(encoded, texts, kept, strict=True):
            answers.append(
                [
                    several(
                        text,
                        best,
                        threshold,
                        image.size,
                        lambda boxes=boxes, scores=scores, image=image: self._masks(  # type: ignore[misc]
                            image, boxes, scores, mask_threshold
                        ),
                    )
                    for text, (boxes, scores, best) in zip(row, found, strict=True)
                ]
            )
        return answers

    def _masks(
        self, image: EncodedImage, boxes: np.ndarray, scores: np.ndarray, mask_threshold: float
    ) -> Iterator[tuple[np.ndarray, float]]:
        logits = self.masks.from_boxes(image.features["masks"], image.size, boxes)
        for own, score in zip(logits, scores, strict=True):
            yield self.masks.mask(own, image.size, mask_threshold), float(score)


class _Replay(nn.Module):
    """Stands where the detector's backbone stood: with `given`, gives that instead of looking at pixels again."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.given: Any = None

    @property
    def position_embedding(self) -> Any:
        """Read by the detector for its coarsest level."""
        return self.backbone.position_embedding

    def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
        """Maps with their masks, and positions, a list of levels each."""
        return self.backbone(pixel_values, pixel_mask) if self.given is None else self.given
