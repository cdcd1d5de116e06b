"""Qwen2.5-VL, Qwen3-VL and its mixture of experts: patches of any picture, M-RoPE positions, deepstack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlseg.models.families.base import Family, ImageTokens, Prefix, resized


class Qwen25VLFamily(Family):
    """`Qwen2_5_VLForConditionalGeneration`: an image token is 28 pixels a side, the tower works in windows."""

    def __init__(self, config: Any):
        super().__init__(config)
        vision = self.vlm.vision_config
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)

    def view(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) with sides that are whole image tokens; nothing to do where `image.multiple` sees to it."""
        unit = self.patch * self.merge
        height, width = (max(1, round(side / unit)) * unit for side in pixel_values.shape[-2:])
        return resized(pixel_values, height, width)

    def patches(self, view: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B * patches, 3 * T * p * p), as the stock image processor does: the patches of one image
        token follow each other, and a still picture is repeated in time."""
        x = view.unflatten(3, (-1, self.merge, self.patch)).unflatten(2, (-1, self.merge, self.patch))
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)  # (patches, 3, p, p)
        return x[:, :, None].expand(-1, -1, self.vlm.vision_config.temporal_patch_size, -1, -1).flatten(1)

    def encode(self, vlm: Any, pixel_values: torch.Tensor, levels: Sequence[int] = ()) -> ImageTokens:
        """See `Family.encode`; maps have one cell a patch."""
        view = self.view(pixel_values)
        rows, columns = (side // (self.patch * self.merge) for side in view.shape[-2:])
        grid = torch.tensor([[1, rows * self.merge, columns * self.merge]] * len(view), device=view.device)
        options = {"output_hidden_states": True} if any(level >= 0 for level in levels) else {}
        out = vlm.model.get_image_features(self.patches(view), grid, return_dict=True, **options)
        states = [out.last_hidden_state if level == -1 else out.hidden_states[level] for level in levels]
        return ImageTokens(
            torch.stack(list(out.pooler_output)),
            (rows, columns),
            deepstack=tuple(torch.stack(list(level)) for level in getattr(out, "deepstack_features", None) or ()),
            maps=tuple(self._map(self.reading_order(state, grid), len(view), rows, columns) for state in states),
        )

    def reading_order(self, state: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """(patches, C) with the image tokens' squares of patches in reading order, not in that of the windows.

        grid: (B, 3) frames, rows and columns of patches.
        """
        from transformers.vision_utils import get_vision_window_index

        window = self.vlm.vision_config.window_size
        index, _ = get_vision_window_index(grid, self.merge, window, self.patch)
        return state.unflatten(0, (-1, self.merge**2))[torch.argsort(index.to(state.device))].flatten(0, 1)

    def _map(self, state: torch.Tensor, batch: int, rows: int, columns: int) -> torch.Tensor:
        """(patches, C), square by square, to (B, C, rows * merge, columns * merge)."""
        squares = state.view(batch, rows, columns, self.merge, self.merge, -1)
        return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def encoder_outputs(self, tokens: ImageTokens) -> dict[str, Any]:
        """The stock class takes the tokens as one tensor an image."""
        images: Any = list(tokens.pooler_output)
        return {"image": BaseModelOutputWithPooling(pooler_output=images)}

    def prefix(self, tokens: ImageTokens) -> Prefix:
        """Text and image after M-RoPE (arXiv 2409.12191): an image token has its row and column, and what follows goes
        on behind the longer side."""
        text, (rows, columns) = self.config.prefix, tokens.grid
        before, after = text["before"], text["after"]
        start, behind = len(before), len(before) + max(rows, columns)
        row = torch.arange(rows).repeat_interleave(columns)
        image = torch.stack([torch.zeros_like(row), row, torch.arange(columns).repeat(rows)]) + start
        ends = [torch.arange(start), torch.arange(behind, behind + len(after))]
        positions = torch.cat([ends[0].expand(3, -1), image, ends[1].expand(3, -1)], 1)
        ids = torch.tensor([*before, *self.image_ids(tokens), *after], dtype=torch.long)
        return Prefix(ids, positions, behind + len(after))

    def multiple(self) -> int | None:
        """Whole image tokens, where pixel encoders can live with them (Qwen3-VL: 32)."""
        unit = self.patch * self.merge
        return unit if unit % 32 == 0 else None

    def area(self, standard: int, stock: dict[str, Any]) -> int:
        """Within what its own image processor allows."""
        size = stock.get("size") or {}
        return min(max(standard, size.get("shortest_edge", 0)), size.get("longest_edge", standard))

    def prompt(self, tokenizer: Any, instruction: str) -> tuple[str, str, str]:
        """See `Family.prompt`."""
        return "<|vision_start|>", f"<|vision_end|>{instruction}", ":"


class Qwen3VLFamily(Qwen25VLFamily):
    """`Qwen3VLForConditionalGeneration`, `Qwen3VLMoeForConditionalGeneration`: no windows, deepstack."""

    def reading_order(self, state: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return state

    def encoder_outputs(self, tokens: ImageTokens) -> dict[str, Any]:
        """With the features that are added to the first layers."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        deepstack: Any = [list(level) for level in tokens.deepstack]
        images: Any = list(tokens.pooler_output)
        return {"image": BaseModelOutputWithDeepstackFeatures(pooler_output=images, deepstack_features=deepstack)}
