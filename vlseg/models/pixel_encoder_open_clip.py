"""Vision towers of open_clip as pixel encoders: its own ViT and ResNet, and those it takes from timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.frozen_norm import freeze_batch_norm
from vlseg.models.pixel_encoder import PixelEncoder
from vlseg.models.pixel_pyramid import STRIDES, spread
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig

# How a timm model is told to take images of any size, by the module that it comes from; the others need no telling.
ANY_SIZE: dict[str, dict[str, Any]] = {
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "vision_transformer": {"dynamic_img_size": True},
}


class OpenClipEncoder(PixelEncoder):
    """The vision tower of an open_clip model, its pooling and projection left out.

    spec: `{"kind": "open_clip", "vision_cfg": {...}, "embed_dim": int}` as in open_clip's own model JSON
    (`timm_model_name` and so on, or `layers`, `width`, `patch_size`); `"quick_gelu": True` for OpenAI's own weights.
    """

    def __init__(self, spec: dict[str, Any], config: VLSegConfig):
        super().__init__(spec, config.image)
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.transformer import VisionTransformer

        tower = _tower(spec)
        trunk: Any = getattr(tower, "trunk", tower)
        if isinstance(trunk, VisionTransformer):
            self.take = [layer - 1 for layer in spread(trunk.transformer.layers)]
            trunk.prune_intermediate_layers(self.take, prune_norm=True, prune_head=True)
            trunk.attn_pool = None
            channels, strides = [trunk.conv1.out_channels] * len(self.take), [trunk.patch_size[0]] * len(self.take)
        elif isinstance(trunk, ModifiedResNet):
            trunk.attnpool = None
            self.take = [1, 2, 3, 4]
            stages = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
            channels, strides = [stage[-1].conv3.out_channels for stage in stages], list(STRIDES)
        elif hasattr(trunk, "feature_info"):
            levels = [(i, v["num_chs"], v["reduction"]) for i, v in enumerate(trunk.feature_info)]
            if len({stride for _, _, stride in levels}) == 1:
                levels = [levels[layer - 1] for layer in spread(len(levels))]
            else:
                levels = [level for level in levels if level[2] in STRIDES]
            self.take = [i for i, _, _ in levels]
            trunk.prune_intermediate_layers(self.take, prune_norm=True, prune_head=True)
            channels, strides = [c for _, c, _ in levels], [s for _, _, s in levels]
        else:
            raise VLSegError(f"pixel_encoder: {type(trunk).__name__} hands out no maps from inside; name another tower")
        freeze_batch_norm(trunk)
        self.trunk = trunk
        self.shape(channels, strides)

    def features(self, pixels: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `PixelEncoder.features`."""
        if hasattr(self.trunk, "positional_embedding"):
            return vit_features(self.trunk, pixels, self.take)
        found = self.trunk.forward_intermediates(pixels, indices=self.take, intermediates_only=True)
        return found["image_intermediates"] if isinstance(found, dict) else found


def _tower(spec: dict[str, Any]) -> nn.Module:
    """The tower as open_clip builds it, or straight from timm where it must be told to take any size."""
    vision = dict(spec.get("vision_cfg") or {})
    name = vision.get("timm_model_name")
    if name:
        import timm
        from timm.models import model_entrypoint

        if not timm.is_model(name.split("/")[-1]):
            raise VLSegError(f"pixel_encoder.vision_cfg.timm_model_name: timm knows no {name!r}")
        options = ANY_SIZE.get(model_entrypoint(name.split("/")[-1]).__module__.split(".")[-1])
        if options is not None:
            rate = vision.get("timm_drop_path")
            drop = {} if rate is None else {"drop_path_rate": rate}
            return timm.create_model(name, pretrained=False, num_classes=0, **options, **drop)
    from open_clip.model import _build_vision_tower

    try:
        return _build_vision_tower(spec.get("embed_dim", 512), vision, spec.get("quick_gelu", False))
    except TypeError as error:
        raise VLSegError(f"pixel_encoder.vision_cfg: {error}") from error


def vit_features(tower: Any, pixels: torch.Tensor, take: list[int]) -> list[torch.Tensor]:
    """Maps of open_clip's own ViT at any size: its position table, interpolated as open_clip does when it loads one."""
    x = tower.conv1(pixels)
    rows, columns = x.shape[-2:]
    table = tower.positional_embedding
    if (rows, columns) != tuple(tower.grid_size):
        grid = table[1:].unflatten(0, tuple(tower.grid_size)).permute(2, 0, 1)[None].float()
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False)
        table = torch.cat([table[:1], grid[0].flatten(1).t().to(table.dtype)])
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = tower.ln_pre(tower.patch_dropout(x + table.to(x.dtype)))
    _, states = tower.transformer.forward_intermediates(x, indices=take)
    return [state[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for state in states]
