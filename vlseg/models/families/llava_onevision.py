"""LLaVA-OneVision: one square view of the picture and a newline token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlseg.models.families.base import ImageTokens, Prefix, SquareFamily


class LlavaOnevisionFamily(SquareFamily):
    """`LlavaOnevisionForConditionalGeneration`; behind an image's tokens, one a cell of `grid`, stands a newline.

    The base view only: its any-resolution tiles lose their padding behind the tower, so that their number of tokens
    differs from image to image.
    """

    def stock_features(self, vlm: Any, views: torch.Tensor, options: dict[str, Any]) -> Any:
        """Of a picture that comes with others in one prompt (2 a prompt) the stock class takes the base view alone."""
        return vlm.model.get_image_features(
            views.flatten(0, 1),
            image_sizes=torch.tensor([[self.side, self.side]] * len(views)),
            batch_num_images=torch.tensor([2] * len(views)),
            return_dict=True,
            **options,
        )

    def idle(self, vlm: Any) -> list[nn.Module]:
        """What lies behind the layer whose features become tokens."""
        tower, chosen = vlm.model.vision_tower, self.vlm.vision_feature_layer
        tower = getattr(tower, "vision_model", tower)
        layers = tower.encoder.layers
        used = max(n % (len(layers) + 1) for n in ([chosen] if isinstance(chosen, int) else chosen))
        return [tower.post_layernorm, *layers[used:]]

    def places(self, tokens: ImageTokens, prefix: Prefix) -> slice | torch.Tensor:
        """All but the newline, which has the id of an image token, too."""
        rows, columns = tokens.grid
        return (prefix.ids == self.vlm.image_token_id).nonzero()[: rows * columns, 0]

    def encoder_outputs(self, tokens: Any) -> dict[str, Any]:
        """The stock class takes the tokens as one tensor an image."""
        images: Any = list(tokens.pooler_output)
        return {"image": BaseModelOutputWithPooling(pooler_output=images)}
