"""Backbones of transformers as pixel encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlseg.models.frozen_norm import freeze_batch_norm
from vlseg.models.pixel_encoder import PixelEncoder
from vlseg.models.pixel_pyramid import STRIDES, spread
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig

SAM2 = "sam2_hiera_det_model"  # the one backbone that transformers keeps outside AutoBackbone
# Parameters that a backbone never reads: they must not wait for gradients.
IDLE = ("mask_token", "swin.layernorm", "swinv2.layernorm")
# What a configuration's file says besides the shape of the model.
NOT_SHAPE = (
    *("out_features", "out_indices", "_out_features", "_out_indices", "stage_names"),
    *("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "id2label", "label2id"),
)


class HfEncoder(PixelEncoder):
    """Any `AutoBackbone` with one stride (DINOv2, DINOv3, BEiT, ...) or strides 4 to 32 (Swin, ConvNeXt, ResNet, ...),
    and SAM 2's Hiera.

    spec: `{"kind": "hf", "config": {"model_type": ..., ...}}`, the backbone's own configuration as a dictionary.
    """

    def __init__(self, spec: dict[str, Any], config: VLSegConfig):
        super().__init__(spec, config.image)
        self.trunk = backbone(spec.get("config") or {})
        own = self.trunk.config
        freeze_batch_norm(self.trunk)
        for name, parameter in self.trunk.named_parameters():
            if any(part in name for part in IDLE):
                parameter.requires_grad_(False)
        if own.model_type == SAM2:
            self.shape(list(own.embed_dim_per_stage), list(STRIDES))
            return
        channels = list(self.trunk.channels)
        patch = getattr(own, "patch_size", None)
        plain = len(set(channels)) == 1
        if patch is not None and plain:
            self.shape(channels, [int(patch)] * len(channels))
            return
        if len(channels) != len(STRIDES):
            raise VLSegError(f"pixel_encoder: {own.model_type} has {len(channels)} maps and no single stride; needs 4")
        self.shape(channels, STRIDES)

    def features(self, pixels: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """See `PixelEncoder.features`."""
        if self.trunk.config.model_type == SAM2:
            return [m.permute(0, 3, 1, 2) for m in self.trunk(pixels).intermediate_hidden_states]
        return list(self.trunk(pixels).feature_maps)


def backbone(described: dict[str, Any]) -> nn.Module:
    """The backbone of a configuration, with random weights; it gives four depths, or the four stages."""
    from transformers import AutoBackbone, AutoModel

    config = backbone_config(described)
    return (AutoModel if config.model_type == SAM2 else AutoBackbone).from_config(config)


def backbone_config(described: dict[str, Any]) -> Any:
    """A configuration of transformers, from its dictionary, that asks for four depths or all stages.

    Raises VLSegError where transformers knows no such backbone.
    """
    from transformers import AutoBackbone, AutoConfig

    options = {key: value for key, value in described.items() if key not in NOT_SHAPE}
    kind = options.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **options)
        if kind == SAM2:
            return config
        if type(config) not in AutoBackbone._model_mapping:
            raise ValueError(f"{kind} is no backbone")
        layers = len(config.stage_names) - 1
        indices = spread(layers) if layers > len(STRIDES) else list(range(1, layers + 1))
        return AutoConfig.for_model(kind, **options, out_indices=indices)
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VLSegError(f"pixel_encoder.config: no backbone of transformers ({reason})") from error
