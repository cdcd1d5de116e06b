"""A model that was exported as ONNX, run by onnxruntime: two graphs, the image once and then its queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlseg.models.configuration import VLSegConfig
from vlseg.models.families.base import ImageTokens
from vlseg.models.grouping import Groups
from vlseg.models.modeling import ImageFeatures, VLSegOutput
from vlseg.models.pixel_decoder import PixelFeatures
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.native import NativeSystem
from vlseg.systems.registry import ONNX_SHAPES
from vlseg.types import VLSegError

IMAGE_GRAPH, QUERY_GRAPH, SHAPES = "image.onnx", "queries.onnx", ONNX_SHAPES
PREFIX = "image_"  # of the names: a graph has values named "embedding" of its own
QUERY_INPUTS = ("query_ids", "query_owner", "query_offset", "query_answers")
QUERY_OUTPUTS = ("mask_logits", "evidence")


def tensors_of(features: ImageFeatures) -> dict[str, torch.Tensor]:
    """What the query graph takes of an image, by name; nothing that it does not need."""
    tokens, pixels = features.tokens, features.pixels
    named: dict[str, torch.Tensor | None] = {"tokens": tokens.pooler_output}
    named |= {f"deepstack_{i}": tensor for i, tensor in enumerate(tokens.deepstack)}
    named |= {f"memory_{i}": tensor for i, tensor in enumerate(pixels.memory)}
    named |= {"embedding": pixels.embedding, "detail": pixels.detail, "nouns": pixels.nouns, "context": pixels.context}
    named |= {f"trunk_{i}": tensor for i, tensor in enumerate(pixels.trunk)}
    if pixels.groups is not None:
        named |= {"group_pixels": pixels.groups.pixels, "group_cells": pixels.groups.cells}
    return {f"{PREFIX}{name}": tensor for name, tensor in named.items() if tensor is not None}


def features_of(named: dict[str, torch.Tensor], grid: tuple[int, int], tiles: tuple[int, int]) -> ImageFeatures:
    """The inverse of `tensors_of`. grid, tiles: as in `ImageTokens`."""

    named = {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}

    def run(prefix: str) -> list[torch.Tensor]:
        return [named[f"{prefix}_{i}"] for i in range(sum(name.startswith(f"{prefix}_") for name in named))]

    tokens = ImageTokens(named["tokens"], grid, tiles, tuple(run("deepstack")))
    groups = Groups(named["group_pixels"], named["group_cells"]) if "group_pixels" in named else None
    pixels = PixelFeatures(
        run("memory"),
        named["embedding"],
        named.get("detail"),
        named.get("nouns"),
        named.get("context"),
        run("trunk"),
        groups,
    )
    return ImageFeatures(tokens, pixels)


class OnnxModel:
    """The two graphs with the face of `VLSegModel`, as far as `NativeSystem` looks at it. float32, on the CPU."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise VLSegError(f"{folder}: needs onnxruntime; pip install 'vlseg[export]'") from error
        try:
            shapes = json.loads((folder / SHAPES).read_text(encoding="utf-8"))
            self.size: tuple[int, int] = tuple(shapes["size"])
            self._place = (tuple(shapes["grid"]), tuple(shapes["tiles"]))
            self.config = VLSegConfig.from_pretrained(folder)
            providers = ["CPUExecutionProvider"]
            self._image = onnxruntime.InferenceSession(str(folder / IMAGE_GRAPH), providers=providers)
            self._queries = onnxruntime.InferenceSession(str(folder / QUERY_GRAPH), providers=providers)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise VLSegError(f"{folder}: not a whole ONNX export ({' '.join(str(error).split())[:160]})") from error
        self._taken = [entry.name for entry in self._queries.get_inputs() if entry.name not in QUERY_INPUTS]

    def eval(self) -> OnnxModel:
        """It is never in training."""
        return self

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """As `VLSegModel.encode_image`; (B, 3, H, W) of the size that was exported, one image after the other."""
        names = [entry.name for entry in self._image.get_outputs()]
        rows = [self._image.run(names, {"pixel_values": pixels[None].contiguous().numpy()}) for pixels in pixel_values]
        joined = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*rows, strict=True)]
        return features_of(dict(zip(names, joined, strict=True)), *self._place)

    def __call__(self, image_features: ImageFeatures, **packed: torch.Tensor) -> VLSegOutput:
        """As `VLSegModel.forward`; only `mask_logits` and `evidence` of the output are filled."""
        named = tensors_of(image_features)
        rows = []
        for b in range(len(packed["query_ids"])):
            feed: dict[str, Any] = {name: packed[name][b : b + 1].numpy() for name in QUERY_INPUTS}
            feed |= {name: named[name][b : b + 1].contiguous().numpy() for name in self._taken}
            rows.append(self._queries.run(list(QUERY_OUTPUTS), feed))
        logits, evidence = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*rows, strict=True))
        nothing = torch.empty(0)
        return VLSegOutput(logits, [], nothing, evidence, nothing, nothing)


class FixedSizeProcessor(VLSegProcessor):
    """Every picture at the one size that a graph was exported for."""

    size: tuple[int, int]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """That size, whatever the picture's."""
        return self.size


def load_onnx(
    folder: str | Path, device: str | None = None, dtype: str | None = None, name: str | None = None
) -> NativeSystem:
    """An ONNX export as a `System`. name: what answers call it; default: the folder.

    Pictures are resized to the size of the export, whatever their shape; else answers are those of the checkpoint.
    Raises VLSegError for a folder that is none, another device than the CPU, another number type than float32.
    """
    folder = Path(folder)
    if (device or "cpu") != "cpu":
        raise VLSegError(f"{folder}: an ONNX export runs on the CPU here, not on {device}; use the checkpoint for that")
    if (dtype or "float32") != "float32":
        raise VLSegError(f"{folder}: an ONNX export computes in float32, not in {dtype}; use the checkpoint for that")
    model: Any = OnnxModel(folder)
    processor = FixedSizeProcessor.from_pretrained(folder)
    assert isinstance(processor, FixedSizeProcessor)
    processor.size = model.size
    return NativeSystem(model, processor, name or str(folder))
