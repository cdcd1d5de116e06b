"""Idefics3 and SmolVLM: one square view of the picture, or tiles with their names and the view behind them."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlseg.models.families.base import ImageTokens, SquareFamily


class IdeficsFamily(SquareFamily):
    """`Idefics3ForConditionalGeneration`, `SmolVLMForConditionalGeneration`."""

    splits = True

    def stock_features(self, vlm: Any, views: torch.Tensor, options: dict[str, Any]) -> Any:
        """The stock class takes the views of an image together."""
        return vlm.model.get_image_features(views, return_dict=True, **options)

    def encoder_outputs(self, tokens: ImageTokens) -> dict[str, Any]:
        """The stock class takes the tokens of all images as one run."""
        images: Any = tokens.pooler_output.flatten(0, 1)
        return {"image": BaseModelOutputWithPooling(pooler_output=images)}

    def image_ids(self, tokens: ImageTokens) -> list[int]:
        """`<fake><row_1_col_1><image>..` a tile, a line a row, `<fake><global-img><image>..<fake>` at the end."""
        name, (rows, columns) = self.config.prefix["tiles"], tokens.tiles
        views = rows * columns + 1 if rows * columns > 1 else 1
        run = [self.vlm.image_token_id] * (tokens.pooler_output.shape[1] // views)
        ids: list[int] = []
        for row in range(rows if views > 1 else 0):
            for column in range(columns):
                ids += [*name["fake"], *name[f"{row + 1},{column + 1}"], *run]
            ids += name["line"] if row < rows - 1 else name["lines"]
        return [*ids, *name["fake"], *name["global"], *run, *name["fake"]]

    def tile_tokens(self, tokenizer: Any) -> dict[str, list[int]]:
        """See `Family.tile_tokens`. "lines" stands between the last row and the global view."""
        texts = {"fake": "<fake_token_around_image>", "global": "<global-img>"}
        if self.config.image.get("split"):
            sides = range(1, self.most_tiles + 1)
            texts |= {"line": "\n", "lines": "\n\n"}
            texts |= {f"{row},{column}": f"<row_{row}_col_{column}>" for row in sides for column in sides}
        return {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in texts.items()}
