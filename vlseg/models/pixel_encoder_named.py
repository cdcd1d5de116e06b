"""Pixel encoders by name: from a checkpoint to a description that needs no name, and the weights.

    {"kind": "hf", "source": FOLDER or "org/name"}              any backbone of transformers, SAM 2's image encoder
    {"kind": "open_clip", "model": "ViT-B-16", "weights": FILE}  a model of open_clip by name; FILE: its checkpoint
    {"kind": "open_clip", "vision_cfg": {...}, "weights": FILE}  the same, described; FILE may also be timm's
    {"kind": "open_clip", "vision_cfg": {"timm_model_name": ..., "timm_model_pretrained": True}}  timm fetches them

Otherwise an open_clip encoder is random. A saved vlseg checkpoint holds description and weights itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from vlseg.models.pixel_encoder import PixelEncoder
from vlseg.models.pixel_encoder_hf import NOT_SHAPE, backbone_config
from vlseg.types import VLSegError

PREFIXES = ("visual.trunk.", "visual.", "trunk.", "")  # where checkpoints of open_clip and timm keep the tower
Weights = dict[str, torch.Tensor]


def named(spec: dict[str, Any]) -> tuple[dict[str, Any], Weights | None]:
    """A description without names, for `VLSegConfig.pixel_encoder`, and the named weights, for `fill`; None: random.

    Raises VLSegError, in one line, where a name stands for nothing that can be read.
    """
    spec = copy.deepcopy(spec)
    source, model, file = spec.pop("source", None), spec.pop("model", None), spec.pop("weights", None)
    if spec.get("kind") == "hf" and source is not None:
        return _from_transformers(spec, source)
    if spec.get("kind") == "open_clip":
        if model is not None:
            _describe(spec, model)
        if file is not None:
            return _from_file(spec, model, Path(file))
        if spec.get("vision_cfg", {}).get("timm_model_pretrained"):
            return _from_timm(spec)
    return spec, None


def fill(encoder: PixelEncoder, weights: Weights) -> None:
    """Load the weights of `named` into the encoder's trunk; what is in front of or behind it is left out.

    Raises VLSegError where a tensor is missing or has another shape.
    """
    wanted = encoder.trunk.state_dict()
    new = [k for k in wanted if "hidden_states_norms" in k]  # norms that a backbone adds to what was pretrained
    lacking = [k for k in wanted if k not in weights and k not in new]
    if lacking:
        raise VLSegError(f"pixel_encoder: the checkpoint lacks {len(lacking)} of its tensors ({lacking[0]}, ...)")
    fits = {k: weights[k] for k in wanted if k in weights}
    for key, value in fits.items():
        if value.shape != wanted[key].shape:
            raise VLSegError(
                f"pixel_encoder: {key} is {tuple(value.shape)} in the checkpoint, {tuple(wanted[key].shape)} here; "
                "is it the checkpoint of this model (vision_cfg.image_size included)?"
            )
    encoder.trunk.load_state_dict(fits, strict=False)


def _describe(spec: dict[str, Any], model: str) -> None:
    import open_clip

    stated = open_clip.get_model_config(model)
    if stated is None:
        raise VLSegError(f"pixel_encoder.model: open_clip knows no {model!r}; see open_clip.list_models()")
    spec.setdefault("vision_cfg", {**stated["vision_cfg"], "timm_model_pretrained": False})
    spec.setdefault("embed_dim", stated["embed_dim"])
    if stated.get("quick_gelu"):
        spec.setdefault("quick_gelu", True)


def _from_file(spec: dict[str, Any], model: str | None, file: Path) -> tuple[dict[str, Any], Weights]:
    import pickle

    from open_clip.factory import load_state_dict
    from safetensors import SafetensorError

    try:
        state = load_state_dict(str(file))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise VLSegError(f"pixel_encoder.weights={file}: no checkpoint that can be read ({reason})") from error
    prefix = next(p for p in PREFIXES if any(k.startswith(p) for k in state))
    mean, std = _clip_normalisation(model) if prefix.startswith("visual") else _timm_normalisation(spec)
    spec.setdefault("mean", list(mean))
    spec.setdefault("std", list(std))
    return spec, {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _from_timm(spec: dict[str, Any]) -> tuple[dict[str, Any], Weights]:
    import timm

    name = spec["vision_cfg"]["timm_model_name"]
    try:
        weights = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise VLSegError(f"pixel_encoder: timm cannot fetch the weights of {name!r} ({reason})") from error
    spec["vision_cfg"]["timm_model_pretrained"] = False
    mean, std = _timm_normalisation(spec)
    spec.setdefault("mean", list(mean))
    spec.setdefault("std", list(std))
    return spec, weights


def _clip_normalisation(model: str | None) -> tuple[Any, Any]:
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    for tag in open_clip.list_pretrained_tags_by_model(model) if model else ():
        trained = open_clip.get_pretrained_cfg(model, tag)
        if trained.get("mean"):
            return trained["mean"], trained["std"]
    return OPENAI_DATASET_MEAN, OPENAI_DATASET_STD


def _timm_normalisation(spec: dict[str, Any]) -> tuple[Any, Any]:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import get_pretrained_cfg

    stated = get_pretrained_cfg(spec.get("vision_cfg", {}).get("timm_model_name", ""))
    return (stated.mean, stated.std) if stated else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _from_transformers(spec: dict[str, Any], source: str) -> tuple[dict[str, Any], Weights]:
    from transformers import AutoBackbone, AutoConfig, Sam2Model
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stated = AutoConfig.from_pretrained(source)
        sam = hasattr(getattr(stated, "vision_config", None), "backbone_config")
        described = stated.vision_config.backbone_config if sam else stated
        config = backbone_config(described.to_dict())
        if sam:
            trunk = Sam2Model.from_pretrained(source).vision_encoder.backbone
        else:
            # not AutoBackbone.from_pretrained: transformers 5.23 takes a folder for a name on the Hub there
            kind: Any = AutoBackbone._model_mapping[type(config)]
            trunk = kind.from_pretrained(source, config=config)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VLSegError(f"pixel_encoder.source={source}: no backbone that can be read ({reason})") from error
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:  # a folder without a preprocessor_config.json: normalised as for the language model
        settings = {}
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        if settings.get(name) is not None:
            spec.setdefault(key, list(settings[name]))
    spec["config"] = {key: value for key, value in config.to_diff_dict().items() if key not in NOT_SHAPE}
    return spec, trunk.state_dict()
