"""The adapter of a family: image-token layout, position ids of the packed row, bidirectional blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig


class Family(ABC):
    """Defaults for a causal family whose image is one run of image tokens and whose positions are one-dimensional."""

    def __init__(self, config: VLSegConfig):
        self.config = config

    def image_features(self, vlm: Any, pixel_values: torch.Tensor) -> Any:
        """The stock class's own image features; `pooler_output` holds the image tokens (B, N, D)."""
        return vlm.model.get_image_features(pixel_values=pixel_values, return_dict=True)

    def prefix_ids(self, tokens: int) -> torch.Tensor:
        """(P,) int64: the ids of the prefix of an image of `tokens` image tokens."""
        return torch.full((tokens,), self.config.vlm.image_token_id, dtype=torch.long)

    def tower(self, vlm: Any) -> nn.Module | None:
        """The stock class's vision tower as a timm module, where it is one."""
        return None

    def idle(self, vlm: Any) -> list[nn.Module]:
        """Modules of the stock class that a forward pass never runs: they must not wait for gradients."""
        return []

    @abstractmethod
    def grid(self, features: Any) -> tuple[int, int]:
        """(rows, columns) of the image tokens."""

    def positions(self, prefix: int, offset: torch.Tensor) -> torch.Tensor:
        """(B, P + S) position ids; every query restarts behind the image. offset: (B, S)."""
        if self.config.image_positions == "shared":
            image = torch.zeros(prefix, dtype=torch.long, device=offset.device)
            start = 1
        else:
            image = torch.arange(prefix, device=offset.device)
            start = prefix
        return torch.cat([image.expand(len(offset), -1), offset + start], 1)

    def block(self, prefix: int, owner: torch.Tensor) -> torch.Tensor | None:
        """(B, P + S) int64 bidirectional blocks, or None where the family is causal throughout. owner: (B, S)."""
        if self.config.image_attention != "bidirectional":
            return None
        block = torch.zeros(owner.shape[0], prefix + owner.shape[1], dtype=torch.long, device=owner.device)
        block[:, :prefix] = 1
        return block


def family_of(config: VLSegConfig) -> Family:
    """The adapter for `config.vlm.model_type`. Raises VLSegError for a family that has none yet."""
    from vlseg.models.families.fast_vlm import FastVlmFamily

    families = {"fast_vlm": FastVlmFamily}
    kind = getattr(config.vlm, "model_type", None)
    if kind not in families:
        raise VLSegError(f"no adapter for the model family {kind!r}; known: {', '.join(sorted(families))}")
    return families[kind](config)
