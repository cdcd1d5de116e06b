"""The model that a run starts from: a preset from nothing, a vlseg checkpoint, or a vision-language model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlseg.models.configuration import VLSegConfig
from vlseg.models.modeling import VLSegModel
from vlseg.models.precision import QUANTISED
from vlseg.models.presets import build_preset, fresh
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.registry import EMBEDDED, WEIGHTS
from vlseg.training.config import TrainConfig
from vlseg.training.paths import learn_paths
from vlseg.types import VLSegError
from vlseg.worlds.sprites import SpriteWorld


@dataclass(slots=True)
class Start:
    """A model and its processor. new: its parts (names of modules) whose weights are random."""

    model: VLSegModel
    processor: VLSegProcessor
    new: list[str] = field(default_factory=list)


def build_model(config: TrainConfig, device: torch.device | None = None, main: bool = True, wait: Any = None) -> Start:
    """The model that a run starts from.

    A preset's run that has begun keeps the shape and the vocabulary it began with (`start/`), whatever the world says
    today. device: where a quantised base is put. main, wait: whether this process writes what all need, and a barrier.
    Raises VLSegError for a source that is no checkpoint.
    """
    start = _from_source(config, device, main, wait) if config.model.source else _from_preset(config)
    if config.model.area:
        start.model.config.image["area"] = start.processor.image["area"] = config.model.area
    if config.paths.on:
        learn_paths(start.model, start.processor, config.paths)
    # Frozen when a model is made, but loading makes new parameters; other ranks would wait for gradients of them.
    for module in start.model.family.idle(start.model.vlm):
        module.requires_grad_(False)
    return start


def _from_preset(config: TrainConfig) -> Start:
    preset = config.model.preset
    if preset is None:
        raise VLSegError("model: give model.preset or model.source")
    if config.adapter.kind != "none" or config.model.base != "float32":
        raise VLSegError("model: adapters and frozen bases need trained weights; name them with model=SOURCE")
    begun = Path(config.out) / "start"
    if (begun / VLSegProcessor.FILE).exists():
        return Start(fresh(VLSegConfig.from_pretrained(begun), config.seed), VLSegProcessor.from_pretrained(begun))
    world = SpriteWorld(styles="train")
    shape = {"head": config.model.head, "pixel_encoder": config.model.build.get("pixel_encoder")}
    return Start(*build_preset(preset, world.vocabulary(), len(world.nouns), config.seed, **shape))


def _from_source(config: TrainConfig, device: torch.device | None, main: bool, wait: Any) -> Start:
    source, kind = locate(str(config.model.source), config.model.build.get("revision"))
    base = config.model.base
    if kind == "vlseg":
        if config.model.build:
            raise VLSegError(f"model.build: {source} is a vlseg checkpoint already; leave model.build out")
        model = load(source, config, device, "float32" if config.model.head else base)
        processor = VLSegProcessor.from_pretrained(source)
        if not config.model.head:
            return Start(model, processor)
        if base in QUANTISED:
            raise VLSegError("model.head: a new head cannot be grown on a quantised base; train it with base: bfloat16")
        return Start(with_head(model, config), processor, ["mask_head", "pixel_decoder"])
    start = _from_vlm(source, config)
    if base not in QUANTISED:
        return start
    # Quantising is part of loading, so the float model goes through a folder; the run's adapters belong to that one.
    folder = Path(config.out) / "base"
    if main and not (folder / "config.json").exists():
        start.model.save_pretrained(folder)
        start.processor.save_pretrained(folder)
    new, processor = start.new, start.processor
    del start
    if wait is not None:
        wait()
    return Start(load(str(folder), config, device, base), processor, new)


def locate(source: str, revision: str | None = None) -> tuple[str, str]:
    """(folder or "org/name", "vlseg" or the model type of a vision-language model). Raises VLSegError."""
    from transformers.utils.hub import cached_file

    if source == EMBEDDED:
        return str(WEIGHTS / EMBEDDED), "vlseg"
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            file = folder / "config.json"
            for inner in ("final", "best"):
                if not file.exists() and (folder / inner / "config.json").exists():
                    raise VLSegError(f"model={source}: is the folder of a run; name its checkpoint: {folder / inner}")
        elif source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise VLSegError(f"model={source}: no such folder; name a checkpoint folder, org/name, or {EMBEDDED}")
        else:
            file = Path(str(cached_file(source, "config.json", revision=revision)))
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise VLSegError(f"model={source}: no config.json of a checkpoint can be had there ({reason})") from error
    return (str(folder) if folder.is_dir() else source), str(kind)


def load(source: str, config: TrainConfig, device: torch.device | None, base: str) -> VLSegModel:
    """A vlseg checkpoint whose weights are held as `base` says. Raises VLSegError where it cannot be loaded."""
    options: dict[str, Any] = {"dtype": getattr(torch, base, torch.float32)}
    if base in QUANTISED:
        compute = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
        options = {"dtype": base, "compute_dtype": compute, "device_map": {"": str(device or "cpu")}}
    try:
        model: VLSegModel = VLSegModel.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VLSegError(f"model={source}: the checkpoint cannot be loaded ({reason})") from error
    return model


def with_head(model: VLSegModel, config: TrainConfig) -> VLSegModel:
    """The model with another head (`config.model.head`); what fits keeps its weights, the rest is new."""
    weights = model.state_dict()
    model.config.head.update(config.model.head)
    grown = fresh(model.config, config.seed)
    grown.load_state_dict(weights, strict=False)
    return grown.to(getattr(torch, config.model.base))


def _from_vlm(source: str, config: TrainConfig) -> Start:
    from vlseg.models.build import from_vlm

    dtype = torch.bfloat16 if config.model.base == "bfloat16" else torch.float32
    build = dict(config.model.build)
    if config.model.head:
        build["head"] = config.model.head
    if config.model.area:
        build["image"] = {**build.get("image", {}), "area": config.model.area}
    torch.manual_seed(config.seed)  # of the parts that the checkpoint does not have
    try:
        model, processor = from_vlm(source, dtype=dtype, **build)
    except TypeError as error:
        raise VLSegError(f"model.build: {' '.join(str(error).split())}") from error
    new = ["mask_head", "pixel_decoder"]
    spec = build.get("pixel_encoder") or {}
    trained = "source" in spec or "weights" in spec or spec.get("vision_cfg", {}).get("timm_model_pretrained")
    if not trained:
        new.append("pixel_encoder")
    elif model.pixel_encoder.pyramid is not None:
        new.append("pixel_encoder.pyramid")
    return Start(model, processor, new)
