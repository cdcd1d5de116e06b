"""The adapter of a family: what the language model sees of an image, and the layout of the packed row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlseg.models.packing import PADDING

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig


@dataclass(slots=True)
class ImageTokens:
    """What the vision tower makes of B images of one size. Every tensor has the batch in front.

    pooler_output: (B, N, D), the image tokens as the language model takes them. grid: (rows, columns) of them, of the
    global view where there are tiles. tiles: (rows, columns). deepstack: (B, N, D) each, what Qwen3-VL adds to its
    first layers. maps: (B, C, h, w) each, features of the tower before its patches are merged, over the whole image.
    """

    pooler_output: torch.Tensor
    grid: tuple[int, int]
    tiles: tuple[int, int] = (1, 1)
    deepstack: tuple[torch.Tensor, ...] = ()
    maps: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefix:
    """What stands before the queries of every row: text, the image, the instruction that all queries share.

    ids: (P,) int64. positions: (P,) int64, or (3, P) for M-RoPE. start: the position of a query's first token.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    start: int


class Family(ABC):
    """Defaults for a causal family whose image is one run of tokens and whose positions are one-dimensional.

    An image arrives as (B, 3, H, W), normalised with the checkpoint's own mean and std. What the tower takes is made of
    it on the device of the model, so that a batch holds one image tensor only.
    """

    instruction = "Segment what these words refer to, or reject them if nothing in the picture fits:\n"
    splits = False  # whether `image.split` may cut an image into tiles besides the global view
    prefix_lm = False  # whether the prefix, and every query, is a bidirectional block, as in pretraining

    def __init__(self, config: VLSegConfig):
        self.config = config
        self.vlm: Any = config.vlm

    # the image -------------------------------------------------------------------------------------------------------
    @abstractmethod
    def encode(self, vlm: Any, pixel_values: torch.Tensor, levels: Sequence[int] = ()) -> ImageTokens:
        """(B, 3, H, W) to image tokens, through the stock class's own `get_image_features`.

        levels: which features of the vision tower to keep in `maps`: indices into its `hidden_states` (0: its input, n:
        after layer n), or -1: its last output.
        """

    def encoder_outputs(self, tokens: ImageTokens) -> dict[str, Any]:
        """The tokens as the stock class takes them: `mm_encoder_outputs`."""
        return {"image": BaseModelOutputWithPooling(pooler_output=tokens.pooler_output)}

    def tower(self, vlm: Any) -> nn.Module | None:
        """The stock class's vision tower as a timm module, where it is one."""
        return None

    def idle(self, vlm: Any) -> list[nn.Module]:
        """Modules of the stock class that a forward pass never runs: they must not wait for gradients."""
        return []

    # the row ---------------------------------------------------------------------------------------------------------
    def image_ids(self, tokens: ImageTokens) -> list[int]:
        """The ids that stand for an image: one an image token, and what stands between them."""
        return [self.vlm.image_token_id] * tokens.pooler_output.shape[1]

    def places(self, tokens: ImageTokens, prefix: Prefix) -> slice | torch.Tensor:
        """Where in the prefix the tokens of `grid` stand, in reading order: of several views the last is the global."""
        rows, columns = tokens.grid
        return (prefix.ids == self.vlm.image_token_id).nonzero()[:, 0][-rows * columns :]

    def prefix(self, tokens: ImageTokens) -> Prefix:
        """The prefix of a row."""
        text = self.config.prefix
        ids = torch.tensor([*text["before"], *self.image_ids(tokens), *text["after"]], dtype=torch.long)
        if self.config.image_positions == "shared":
            return Prefix(ids, torch.zeros_like(ids), 1)
        return Prefix(ids, torch.arange(len(ids)), len(ids))

    def positions(self, prefix: Prefix, offset: torch.Tensor) -> torch.Tensor:
        """Position ids of the row; every query restarts behind the prefix. offset: (B, S) int64.

        Returns (B, P + S), or (3, B, P + S) for M-RoPE.
        """
        before = prefix.positions.to(offset.device).unsqueeze(-2)
        shape = (*before.shape[:-2], len(offset), -1)
        return torch.cat([before.expand(shape), (offset + prefix.start).expand(shape)], -1)

    def block(self, prefix: int, owner: torch.Tensor) -> torch.Tensor | None:
        """(B, P + S) int64 bidirectional blocks, or None where the family is causal throughout. owner: (B, S)."""
        image = owner.new_ones(owner.shape[0], prefix)
        if self.prefix_lm:
            return torch.cat([image, torch.where(owner == PADDING, 0, owner + 1)], 1)
        if self.config.image_attention == "bidirectional":
            return torch.cat([image, torch.zeros_like(owner)], 1)
        return None

    def token_logits(self, vlm: Any, states: torch.Tensor, rows: slice | None = None) -> torch.Tensor:
        """(..., hidden) to (..., vocabulary) float32, as the stock class computes them. rows: only those tokens."""
        head = vlm.get_output_embeddings()
        if rows is None:
            return head(states).float()
        if type(head) is not nn.Linear or hasattr(head.weight, "ds_id"):  # adapters, quantised or partitioned weights
            return head(states)[..., rows].float()
        return F.linear(states, head.weight[rows], None if head.bias is None else head.bias[rows]).float()

    # building from a checkpoint --------------------------------------------------------------------------------------
    def multiple(self) -> int | None:
        """Sides of an input are best multiples of this; None where any will do."""
        return None

    def area(self, standard: int, stock: dict[str, Any]) -> int:
        """Pixels of an input. standard: where the family has no view; stock: settings of its own image processor."""
        return standard

    def brackets(self, tokenizer: Any) -> tuple[str, str]:
        """What the stock processor writes before and behind the image tokens, where the chat template does not."""
        return "", ""

    def tile_tokens(self, tokenizer: Any) -> dict[str, list[int]]:
        """Ids that `image_ids` needs besides that of the image; kept in `VLSegConfig.prefix["tiles"]`."""
        return {}

    def prompt(self, tokenizer: Any, instruction: str) -> tuple[str, str, str]:
        """(before the image, behind it, behind a query) where the checkpoint has no chat template."""
        return "", f"\n{instruction}", ":"


class SquareFamily(Family):
    """A family whose tower takes squares: the global view is the image squeezed to one, as its own processor does.

    With `image.split`, the image is also cut into tiles of that size, as many a side as come closest to its size.
    """

    most_tiles = 6  # a side

    def area(self, standard: int, stock: dict[str, Any]) -> int:
        """At least what the tower sees: one square, or two by two tiles of it."""
        return max(standard, ((2 if self.config.image.get("split") else 1) * self.side) ** 2)

    @property
    def side(self) -> int:
        """Side of the square in pixels."""
        size = self.vlm.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tiles of an image; (1, 1) where it is not split."""
        if not (self.splits and self.config.image.get("split")):
            return 1, 1
        rows, columns = (min(max(1, round(side / self.side)), self.most_tiles) for side in (height, width))
        return rows, columns

    def views(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, tiles + 1, 3, S, S): the tiles in reading order, if any, and last the global view."""
        side, (rows, columns) = self.side, self.tiles(*pixel_values.shape[-2:])
        views = resized(pixel_values, side, side)[:, None]
        if rows * columns > 1:
            tiles = resized(pixel_values, rows * side, columns * side)
            tiles = tiles.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, 3, rows, S, columns, S)
            views = torch.cat([tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2), views], 1)
        return views

    def stock_features(self, vlm: Any, views: torch.Tensor, options: dict[str, Any]) -> Any:
        """The stock class's output for (B, V, 3, S, S); its `pooler_output` holds the tokens, views in order."""
        return vlm.model.get_image_features(views.flatten(0, 1), return_dict=True, **options)

    def encode(self, vlm: Any, pixel_values: torch.Tensor, levels: Sequence[int] = ()) -> ImageTokens:
        """See `Family.encode`."""
        views = self.views(pixel_values)
        out = self.stock_features(vlm, views, {"output_hidden_states": True} if any(n >= 0 for n in levels) else {})
        pooled = out.pooler_output if isinstance(out.pooler_output, torch.Tensor) else torch.cat(out.pooler_output)
        pooled = pooled.reshape(len(views), -1, pooled.shape[-1])
        side = int((pooled.shape[1] // views.shape[1]) ** 0.5)
        maps = tuple(self._map(out.last_hidden_state if n == -1 else out.hidden_states[n], views) for n in levels)
        return ImageTokens(pooled, (side, side), self.tiles(*pixel_values.shape[-2:]), maps=maps)

    def _map(self, state: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """(B * V, [class token and] patches, C) to (B, C, h, w) of the global view."""
        patch = self.vlm.vision_config.patch_size
        side = self.side // (patch if isinstance(patch, int) else patch[0])
        whole = state.unflatten(0, tuple(views.shape[:2]))[:, -1, -side * side :]
        return whole.transpose(1, 2).unflatten(2, (side, side))


def resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, 3, H, W) in another size: bicubic with antialiasing, as in the image processors of transformers."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    out = F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return out.to(pixels.dtype)
