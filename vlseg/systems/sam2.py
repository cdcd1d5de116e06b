"""SAM 2 (arXiv 2408.00714) behind other systems: boxes, points or coarse masks to masks, one image encoding for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.systems.foreign import load_pretrained, load_processor, logit

PROMPTS_A_PASS = 64
# SAM takes a mask prompt as logits; a coarse mask is given with the certainty of about 1e-4 that it is wrong.
_MASK_PROMPT = 10.0


class Sam2Masks:
    """A `Sam2Model` with its processor. Masks at rest are its low-resolution logits ``(h, w)``."""

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, folder: str | None, device: str | None, dtype: str | None) -> Sam2Masks:
        """Of a local folder. Raises VLSegError as `load_pretrained`."""
        from transformers import Sam2Model, Sam2Processor

        return cls(load_pretrained(Sam2Model, folder, device, dtype), load_processor(Sam2Processor, folder))

    def encode(self, images: Sequence[Image.Image]) -> list[list[torch.Tensor]]:
        """Per image its embeddings at three scales, each ``(1, C, h, w)``."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        levels = self.model.get_image_embeddings(pixels.to(self.model.device, self.model.dtype))
        return [[level[b : b + 1] for level in levels] for b in range(len(images))]

    def from_boxes(self, features: list[torch.Tensor], size: tuple[int, int], boxes: np.ndarray) -> torch.Tensor:
        """``(N, h, w)`` float32 logits of boxes ``(N, 4)`` (x0, y0, x1, y1) in pixels of an image (height, width)."""
        return self._prompted(features, size, [{"input_boxes": [part]} for part in _parts(boxes)])

    def from_points(self, features: list[torch.Tensor], size: tuple[int, int], points: np.ndarray) -> torch.Tensor:
        """``(N, h, w)`` float32 logits of N foreground points ``(N, 2)`` (x, y) in pixels, a mask each."""
        prompts = [
            {"input_points": [[[point] for point in part]], "input_labels": [[[1] for _ in part]]}
            for part in _parts(points)
        ]
        return self._prompted(features, size, prompts)

    def from_masks(
        self, features: list[torch.Tensor], size: tuple[int, int], masks: Sequence[np.ndarray], boxes: np.ndarray
    ) -> Iterator[torch.Tensor]:
        """``(h, w)`` float32 logits a coarse mask ``(H, W)`` bool with its box (x0, y0, x1, y1)."""
        side = self.model.prompt_encoder.mask_input_size
        for mask, box in zip(masks, boxes, strict=True):
            coarse = torch.from_numpy(mask).to(self.model.device, torch.float32)[None, None]
            small = torch.nn.functional.interpolate(coarse, side, mode="bilinear", antialias=True)
            prompt = ((2 * small - 1) * _MASK_PROMPT).to(self.model.dtype)
            yield self._prompted(features, size, [{"input_boxes": [[box.tolist()]]}], input_masks=prompt)[0]

    def mask(self, logits: torch.Tensor, size: tuple[int, int], mask_threshold: float) -> np.ndarray:
        """``(H, W)`` bool of ``(h, w)`` logits, as the processor makes it."""
        given = self.processor.post_process_masks([logits[None, None]], [size], mask_threshold=logit(mask_threshold))
        return given[0][0, 0].cpu().numpy()

    def _prompted(
        self, features: list[torch.Tensor], size: tuple[int, int], prompts: list[dict[str, Any]], **more: Any
    ) -> torch.Tensor:
        levels = [level.to(self.model.device) for level in features]
        made = []
        for prompt in prompts:
            inputs = self.processor(original_sizes=[list(size)], return_tensors="pt", **prompt)
            inputs.pop("original_sizes")
            inputs = {
                key: value.to(self.model.device, self.model.dtype if value.is_floating_point() else value.dtype)
                for key, value in inputs.items()
            }
            given = self.model(image_embeddings=list(levels), multimask_output=False, **inputs, **more)
            made.append(given.pred_masks[0, :, 0].float())
        return torch.cat(made)


def _parts(prompts: np.ndarray) -> Iterator[list[list[float]]]:
    for start in range(0, len(prompts), PROMPTS_A_PASS):
        yield np.asarray(prompts[start : start + PROMPTS_A_PASS], dtype=float).tolist()
