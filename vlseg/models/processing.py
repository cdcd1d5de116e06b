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
from transformers.utils.hub import cached_file

from vlseg.data.files import write_whole
from vlseg.models.configuration import VLSegConfig
from vlseg.models.heads.slots import slot_gate
from vlseg.models.modeling import VLSegOutput
from vlseg.models.packing import Packed, pack_queries
from vlseg.types import VLSegError


def presence_scores(evidence: torch.Tensor, presence: dict[str, float]) -> torch.Tensor:
    """Calibrated probability that the words have a referent, float32 of the shape of `evidence`.

    evidence: logit[SEG] - logit[REJ]; presence: the dictionary of that name in `VLSegConfig`.
    """
    return torch.sigmoid(presence["scale"] * evidence.float() + presence["bias"])


def binary_mask(logits: torch.Tensor, size: tuple[int, int], mask_threshold: float = 0.5) -> np.ndarray:
    """(h, w) mask logits to (H, W) bool at `size`: enlarged bilinearly, foreground where probability > mask_threshold.

    Raises VLSegError for a threshold that is not between 0 and 1.
    """
    if not 0 < mask_threshold < 1:
        raise VLSegError(f"mask threshold {mask_threshold}: must lie between 0 and 1")
    level = math.log(mask_threshold / (1 - mask_threshold))
    enlarged = F.interpolate(logits[None, None].float(), size=size, mode="bilinear", align_corners=False)
    mask: np.ndarray = (enlarged[0, 0] > level).cpu().numpy()
    return mask


def slot_masks(
    logits: torch.Tensor,
    slots: torch.Tensor,
    scores: torch.Tensor,
    size: tuple[int, int],
    mask_threshold: float = 0.5,
) -> list[tuple[np.ndarray, float]]:
    """The parts of a mask, best first: (H, W) bool at `size` and a score in 0..1 each.

    logits: (h, w), of the whole; slots: (S, h, w) and scores: (S,), of its parts. The parts are disjoint, their union
    is `binary_mask(logits, ...)`: each of its pixels goes to the slot that claims it most. A slot counts where its
    score is positive, and the best one always; parts without a pixel are left out.
    """
    whole = binary_mask(logits, size, mask_threshold)
    gate = slot_gate(scores.float())
    kept = [s for s in scores.argsort(descending=True).tolist() if gate[s] > 0]
    owner = np.full(size, kept[0], np.int64)
    most: torch.Tensor | None = None
    for s in kept:  # one at a time: the float map of a large photograph is big
        claim = torch.minimum(slots[s], gate[s])[None, None].float()
        claim = F.interpolate(claim, size=size, mode="bilinear", align_corners=False)[0, 0]
        more = torch.ones_like(claim, dtype=torch.bool) if most is None else claim > most
        owner[more.cpu().numpy()] = s
        most = claim if most is None else torch.maximum(most, claim)
    parts = [(whole & (owner == s), float(scores[s].sigmoid())) for s in kept]
    return [(mask, score) for mask, score in parts if mask.any()]


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
        self.look_for_control_tokens()

    def look_for_control_tokens(self) -> None:
        """Note which tokens typed text must never give; to be called again where some were added."""
        added = self.tokenizer.added_tokens_decoder.items()
        self.control = {number: token.content for number, token in added if len(token.content.strip()) > 1}

    @classmethod
    def from_config(cls, tokenizer: Any, config: VLSegConfig) -> VLSegProcessor:
        """A processor for a model's configuration."""
        return cls(tokenizer, config.image, config.query)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and settings beside a model's weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer._set_processor_class(type(self).__name__)  # not that of the checkpoint it came from
        self.tokenizer.save_pretrained(folder)
        write_whole(folder / self.FILE, json.dumps({"image": self.image, "query": self.query}, indent=1))

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> VLSegProcessor:
        """Load what `save_pretrained` wrote: from a folder, without a network, or "org/name" on the Hub.

        options: `revision`, `token`, `cache_dir`, `local_files_only`, as in transformers; others are not looked at.
        """
        wanted = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        options = {key: options[key] for key in wanted if key in options}
        try:
            file = Path(name) / cls.FILE if Path(name).is_dir() else cached_file(str(name), cls.FILE, **options)
            settings = json.loads(Path(str(file)).read_text(encoding="utf-8"))
        except OSError as error:
            raise VLSegError(f"{name}: no {cls.FILE} to be had; is this a vlseg checkpoint?") from error
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
        return cls(tokenizer, settings["image"], settings["query"])

    # words -----------------------------------------------------------------------------------------------------------
    def query_ids(self, text: str) -> list[int]:
        """Token ids of one query and the suffix. Typed text is never a control token.

        Raises VLSegError for a query without a token and for one of more than `query.max_tokens`.
        """
        limit = self.query["max_tokens"]
        # Tokenising a megabyte to find that it is too long helps nobody; no token has more than 100 characters.
        words = text[: 100 * limit]
        ids = self._plain_ids(words)
        if not ids:
            raise VLSegError("the query is empty")
        if len(ids) > limit or len(words) < len(text):
            raise VLSegError(f"the query is too long: the model reads {limit} tokens, this has {len(ids)} or more")
        return [*ids, *self.suffix_ids]

    def _plain_ids(self, words: str) -> list[int]:
        """Ids of typed text; what spells a control token is spelled out."""
        ids = self.tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # Tokens that are added, but not as special ones, or that are in the vocabulary itself, still come through.
        typed = {self.control[number] for number in set(ids) & self.control.keys()}
        typed = {token for token in typed if token in words}
        if not typed:
            return ids
        for token in typed:
            words = words.replace(token, " ".join(token))
        return self._plain_ids(words)

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

    def resized(self, image: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
        """An RGB picture as the model sees it, (H, W, 3) uint8. size: (H, W), else `input_size`."""
        height, width = size or self.input_size(image.height, image.width)
        return np.array(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))

    def pixel_values(self, image: Image.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
        """An RGB picture to (1, 3, H, W) float32, resized and normalised. size: (H, W), else `input_size`."""
        return self.normalise(torch.from_numpy(self.resized(image, size))[None])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in channels-last memory, mean and std taken out."""
        mean = torch.tensor(self.image["mean"], dtype=torch.float32, device=pixels.device)
        std = torch.tensor(self.image["std"], dtype=torch.float32, device=pixels.device)
        return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> dict[str, torch.Tensor]:
        """Pictures (all of one input size) with their queries to keyword arguments of the model."""
        size = self.input_size(images[0].height, images[0].width)
        pixels = torch.cat([self.pixel_values(image, size) for image in images])
        return {"pixel_values": pixels, **self.pack(texts).tensors()}

    # masks -----------------------------------------------------------------------------------------------------------
    def post_process_masks(
        self,
        output: VLSegOutput,
        sizes: Sequence[tuple[int, int]],
        queries: Sequence[int] | None = None,
        mask_threshold: float = 0.5,
    ) -> list[np.ndarray]:
        """One (K, H, W) bool array an image. sizes: (H, W) each; queries: K each, else as many as the output holds."""
        counts = [output.mask_logits.shape[1]] * len(sizes) if queries is None else queries
        rows = enumerate(zip(sizes, counts, strict=True))
        return [self.masks(output, b, size, count, mask_threshold) for b, (size, count) in rows]

    @staticmethod
    def masks(
        output: VLSegOutput, row: int, size: tuple[int, int], queries: int, mask_threshold: float = 0.5
    ) -> np.ndarray:
        """(K, H, W) bool at `size`, from row `row` of an output; foreground where the probability > mask_threshold."""
        masks = np.empty((queries, *size), bool)
        for k in range(queries):  # one at a time: the float map of a large photograph is big
            masks[k] = binary_mask(output.mask_logits[row, k], size, mask_threshold)
        return masks
