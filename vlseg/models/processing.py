"""`VLSegProcessor`: pictures and words to tensors, model output to masks. No torchvision, no AutoProcessor."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vlseg.models.configuration import VLSegConfig
from vlseg.models.modeling import VLSegOutput
from vlseg.models.packing import Packed, pack_queries
from vlseg.types import VLSegError


def presence_scores(evidence: torch.Tensor, presence: dict[str, float]) -> torch.Tensor:
    """Calibrated probability that the words have a referent, float32 of the shape of `evidence`.

    evidence: logit[SEG] - logit[REJ]; presence: the dictionary of that name in `VLSegConfig`.
    """
    return torch.sigmoid(presence["scale"] * evidence.float() + presence["bias"])


class VLSegProcessor:
    """Makes the inputs of `VLSegModel` and reads its outputs.

    image, query: the dictionaries of the same names in `VLSegConfig`.
    """

    FILE = "vlseg_processor.json"

    def __init__(self, tokenizer: Any, image: dict[str, Any], query: dict[str, Any]):
        self.tokenizer, self.image, self.query = tokenizer, dict(image), dict(query)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.suffix_ids: list[int] = tokenizer(self.query["suffix"], add_special_tokens=False)["input_ids"]
        if not self.suffix_ids:
            raise VLSegError("query.suffix gives no token: the last token of a query is the state that answers")

    @classmethod
    def from_config(cls, tokenizer: Any, config: VLSegConfig) -> VLSegProcessor:
        """A processor for a model's configuration."""
        return cls(tokenizer, config.image, config.query)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and settings beside a model's weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        (folder / self.FILE).write_text(json.dumps({"image": self.image, "query": self.query}, indent=1))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VLSegProcessor:
        """Load what `save_pretrained` wrote; from a folder, without a network."""
        folder = Path(folder)
        try:
            settings = json.loads((folder / cls.FILE).read_text())
        except FileNotFoundError as error:
            raise VLSegError(f"{folder}: no {cls.FILE}; is this a vlseg checkpoint?") from error
        return cls(PreTrainedTokenizerFast.from_pretrained(folder), settings["image"], settings["query"])

    # words -----------------------------------------------------------------------------------------------------------
    def query_ids(self, text: str) -> list[int]:
        """Token ids of one query and the suffix. Typed text is never a control token.

        Raises VLSegError for a query without a token and for one of more than `query.max_tokens`.
        """
        limit = self.query["max_tokens"]
        # Tokenising a megabyte to find that it is too long helps nobody; no token has more than 100 characters.
        words = text[: 100 * limit]
        ids = self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if not ids:
            raise VLSegError("the query is empty")
        if len(ids) > limit or len(words) < len(text):
            raise VLSegError(f"the query is too long: the model reads {limit} tokens, this has {len(ids)} or more")
        return [*ids, *self.suffix_ids]

    def pack(self, texts: Sequence[Sequence[str]]) -> Packed:
        """Tokenise and pack the queries of B images."""
        return pack_queries([[self.query_ids(t) for t in row] for row in texts], self.pad_id)

    # pictures --------------------------------------------------------------------------------------------------------
    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model sees: the picture's shape, about `image.area` pixels, multiples of `multiple`.

        Very long panoramas are squeezed, so that no side exceeds `max_side`.
        """
        multiple, limit = self.image["multiple"], self.image["max_side"]
        scale = math.sqrt(self.image["area"] / (height * width))
        sides = (round(side * scale / multiple) * multiple for side in (height, width))
        new_height, new_width = (min(max(side, multiple), limit) for side in sides)
        return new_height, new_width

    def pixel_values(self, image: Image.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
        """An RGB picture to (1, 3, H, W) float32, resized and normalised. size: (H, W), else `input_size`."""
        height, width = size or self.input_size(image.height, image.width)
        resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return self.normalise(torch.from_numpy(np.array(resized))[None])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in channels-last memory, mean and std taken out."""
        mean = torch.tensor(self.image["mean"], dtype=torch.float32)
        std = torch.tensor(self.image["std"], dtype=torch.float32)
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """Pictures (all of one input size) with their queries to keyword arguments of the model."""
        size = self.input_size(images[0].height, images[0].width)
        pixels = torch.cat([self.pixel_values(image, size) for image in images])
        return {"pixel_values": pixels, **self.pack(texts).tensors()}

    # masks -----------------------------------------------------------------------------------------------------------
    @staticmethod
    def masks(
        output: VLSegOutput, row: int, size: tuple[int, int], queries: int, mask_threshold: float = 0.5
    ) -> np.ndarray:
        """(K, H, W) bool at `size`, from row `row` of an output; foreground where the probability > mask_threshold."""
        if not 0 < mask_threshold < 1:
            raise VLSegError(f"mask threshold {mask_threshold}: must lie between 0 and 1")
        level = math.log(mask_threshold / (1 - mask_threshold))
        masks = np.empty((queries, *size), bool)
        for k in range(queries):  # one at a time: the float map of a large photograph is big
            logits = output.mask_logits[row, k][None, None].float()
            up = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            masks[k] = (up[0, 0] > level).cpu().numpy()
        return masks
