"""A model as ONNX, in two graphs: `image.onnx`, once a picture, and `queries.onnx`, its packed queries to masks.

The size of the picture is fixed when exporting: the layout of the row depends on it. Tokens and queries are dynamic.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vlseg.data.files import write_whole
from vlseg.models.modeling import VLSegModel
from vlseg.models.packing import Packed, pack_queries
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.onnx_model import (
    IMAGE_GRAPH,
    QUERY_GRAPH,
    QUERY_INPUTS,
    QUERY_OUTPUTS,
    SHAPES,
    OnnxModel,
    features_of,
    tensors_of,
)
from vlseg.types import VLSegError

TOLERANCE = 1e-4  # of logits, on top of the same share of their range


class ImagePart(nn.Module):
    """(1, 3, H, W) to the tensors of `tensors_of`, in order."""

    def __init__(self, model: VLSegModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors_of(self.model.encode_image(pixel_values)).values())


class QueryPart(nn.Module):
    """Packed queries and an image's tensors to mask logits (1, K, h, w) and evidence (1, K)."""

    def __init__(self, model: VLSegModel, names: Sequence[str], grid: tuple[int, int], tiles: tuple[int, int]):
        super().__init__()
        self.model, self.names, self.place = model, list(names), (grid, tiles)

    def forward(
        self,
        ids: torch.Tensor,
        owner: torch.Tensor,
        offset: torch.Tensor,
        answers: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = features_of(dict(zip(self.names, tensors, strict=True)), *self.place)
        output = self.model(ids, owner, offset, answers, image_features=features)
        return output.mask_logits, output.evidence


def export_onnx(folder: Path, out: Path, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Write the two graphs of a checkpoint folder, and what `load_onnx` needs, into the existing folder `out`.

    size: (H, W) of the input in pixels, multiples of the model's; default: the square of the model's own area.
    The graphs are run by onnxruntime and compared with the model before they count. Returns facts for `export.json`.
    Raises VLSegError where a package is missing, and for a model that cannot be exported.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise VLSegError(f"onnx: {error.name} is not installed; pip install 'vlseg[export]'") from error
    model = VLSegModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = VLSegProcessor.from_pretrained(folder)
    size = checked_size(processor, size)
    random = np.random.default_rng(0)
    pixels = processor.normalise(torch.from_numpy(random.integers(0, 256, (1, *size, 3), np.uint8))).contiguous()
    packed = example_queries(processor, 3)
    family = model.config.vlm.model_type
    with torch.no_grad():
        features = model.encode_image(pixels)
        named = tensors_of(features)
        tokens, dim = torch.export.Dim("tokens", min=2), torch.export.Dim("queries", min=1)
        shapes: Any = ({1: tokens}, {1: tokens}, {1: tokens}, {1: dim}, tuple({} for _ in named))
        row = [packed.tensors()[name] for name in QUERY_INPUTS]
        convert(ImagePart(model), (pixels,), out / IMAGE_GRAPH, ["pixel_values"], list(named), None, family)
        part = QueryPart(model, list(named), features.tokens.grid, features.tokens.tiles)
        inputs = [*QUERY_INPUTS, *named]
        convert(part, (*row, *named.values()), out / QUERY_GRAPH, inputs, list(QUERY_OUTPUTS), shapes, family)
    place = {"size": list(size), "grid": list(features.tokens.grid), "tiles": list(features.tokens.tiles)}
    write_whole(out / SHAPES, json.dumps(place) + "\n")
    model.config.save_pretrained(out)
    processor.save_pretrained(out)
    worst = difference(model, out, pixels, example_queries(processor, 5))
    return {"size": list(size), "opset": onnx.load(out / QUERY_GRAPH, load_external_data=False).opset_import[0].version,
            "largest_difference": worst}  # fmt: skip


def checked_size(processor: VLSegProcessor, size: tuple[int, int] | None) -> tuple[int, int]:
    """The input size that is asked for. Raises VLSegError where the model does not take it."""
    if size is None:
        side = int(processor.image["area"] ** 0.5)
        return processor.input_size(side, side)
    multiple, limit = processor.image["multiple"], processor.image["max_side"]
    if len(size) != 2 or any(side < multiple or side % multiple or side > limit for side in size):
        raise VLSegError(f"size {size}: height and width must be multiples of {multiple}, at most {limit}")
    return size[0], size[1]


def example_queries(processor: VLSegProcessor, count: int) -> Packed:
    """Packed queries of different lengths."""
    words = ["the mug", "the red mug on the left", "a dog", "the second chair from the right", "it"]
    return pack_queries([[processor.query_ids(text) for text in words[:count]]], processor.pad_id)


def convert(
    part: nn.Module,
    example: tuple[torch.Tensor, ...],
    file: Path,
    inputs: list[str],
    outputs: list[str],
    shapes: Any,
    family: str,
) -> None:
    """Write one graph. family: the model type, for messages. Raises VLSegError where torch cannot."""
    with quiet():
        try:
            program = torch.export.export(part, example, dynamic_shapes=shapes, strict=False)
            for check in program.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_scalar.default):
                program.graph.erase_node(check)
            program.graph.eliminate_dead_code()  # what only the checks looked at; ONNX has no words for some of it
            graphs: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs
            )
            graphs.save(str(file), external_data=False)
        except Exception as error:  # every step of the exporter has its own way to say no
            reason = " ".join(str(error).split())[:200]
            raise VLSegError(f"onnx: {file.name} of {family} cannot be exported ({reason})") from error


def difference(model: VLSegModel, out: Path, pixels: torch.Tensor, packed: Packed) -> float:
    """Largest difference of the graphs from the model, as a share of the logits' range (1 at least).

    Raises VLSegError above `TOLERANCE`.
    """
    graphs = OnnxModel(out)
    tensors = packed.tensors()
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tensors)
    got = graphs(graphs.encode_image(pixels), **tensors)
    worst = 0.0
    for mine, theirs in ((got.mask_logits, expected.mask_logits), (got.evidence, expected.evidence)):
        worst = max(worst, float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)))
    if not worst <= TOLERANCE:
        raise VLSegError(
            f"onnx: the graphs of {model.config.vlm.model_type} differ from the model by {worst:.1e} (more than "
            f"{TOLERANCE:g})"
        )
    return worst


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter tells its progress on stdout, its half-made graphs on stderr, and warns of what does not matter."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # what it cannot do it raises, too
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
