"""Class names by meaning: the text tower of a CLIP likens the words of a query to the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from vlseg.systems.foreign import load_pretrained, load_processor

TEMPLATE = "a photo of a {}."
LEAST = 0.85  # cosine; texts of a CLIP are all alike, so unrelated nouns come to 0.7 and more


class ClipText:
    """A `TextMatch` on transformers' CLIP. Class names are embedded once, in one batch.

    folder: of a CLIP checkpoint (`CLIPModel` or its text tower alone, and its tokenizer).
    least: cosine below which nothing is near enough. Raises VLSegError where the checkpoint cannot be loaded.
    """

    def __init__(self, folder: str | Path, labels: Sequence[str], least: float = LEAST, device: str | None = None):
        self.name, self.least = f"clip {Path(str(folder)).name}", least
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        self.tokenizer: Any = load_processor(AutoTokenizer, str(folder))
        self.model: Any = load_pretrained(CLIPTextModelWithProjection, str(folder), device, None)
        self.limit = self.model.config.max_position_embeddings
        self.table = self.embed([TEMPLATE.format(label) for label in labels])

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (N, D) float32 of N texts; what is too long is cut."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.model.device)
        output = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(output.text_embeds.float(), dim=-1)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """See `TextMatch.nearest`."""
        cosine, number = (self.table @ self.embed([TEMPLATE.format(text)])[0]).max(0)
        return (int(number), float(cosine)) if float(cosine) >= self.least else None


def clip_text(folder: str | None, labels: Sequence[str], device: torch.device) -> ClipText | None:
    """A `ClipText` where a folder is given."""
    return ClipText(folder, labels, device=str(device)) if folder else None
