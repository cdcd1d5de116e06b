"""Checkpoints whose linear layers are rounded for good, to 8 bits or to 4, and packed without a bit to spare.

What is rounded, and how, is what quantisation-aware training saw (`vlseg/training/qat.py`); of other checkpoints the
language model's decoder, for in the mask head rounding costs masks and saves little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlseg.export.model_merged import pick
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.training import qat
from vlseg.training.config import QatSection
from vlseg.training.merge import cast_state, shell
from vlseg.types import VLSegError

PLACES = ("decoder", "vision", "pixel")
BITS = {"int8": 8, "int4": 4}


def section_of(
    kind: str, trained: QatSection | None, where: Sequence[str] | None = None, group: int | None = None
) -> QatSection:
    """How to round. trained: of the run; where it rounded to the same number of bits, its places and groups are kept.

    Raises VLSegError for a place that does not exist, and for a group below 8 or not a multiple of 8.
    """
    same = trained is not None and trained.kind.endswith(kind)
    section = replace(trained, kind=kind) if same and trained is not None else QatSection(kind=kind)  # type: ignore[arg-type]
    if where is not None:
        wrong = [place for place in where if place not in PLACES]
        if wrong or not where:
            raise VLSegError(f"where: {', '.join(wrong) or 'nothing'} is no place; there are {', '.join(PLACES)}")
        section = replace(section, where=list(where))  # type: ignore[arg-type]
    if group is not None:
        if group < 8 or group % 8:
            raise VLSegError(f"group {group}: must be a multiple of 8, such as 32")
        section = replace(section, group=group)
    return section


def export_int8(folder: Path, out: Path, name: str, **options: Any) -> dict[str, Any]:
    """`export_rounded` to 8 bits, a scale a row."""
    return export_rounded("int8", folder, out, name, **options)


def export_int4(folder: Path, out: Path, name: str, **options: Any) -> dict[str, Any]:
    """`export_rounded` to 4 bits, a scale for every `group` weights."""
    return export_rounded("int4", folder, out, name, **options)


def export_rounded(
    kind: str,
    folder: Path,
    out: Path,
    name: str,
    trained: QatSection | None = None,
    where: Sequence[str] | None = None,
    group: int | None = None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint with rounded layers in the packed format of compressed-tensors, which it needs to load.

    Weights are rounded as torchao rounds them in training; scales are float16. On loading they become floating weights
    again: small on disk, not in memory (for that load the plain checkpoint with dtype "int8" or "nf4"). name: for the
    card; trained: of the run; where: places as in `QatSection.where`; dtype: of all other weights, "stored" for that of
    the checkpoint; default: 16 bits, bfloat16 for float32. Returns facts for `export.json`. Raises VLSegError as
    `section_of`, and where a package is missing.
    """
    need("torchao")
    need("compressed_tensors")
    from torchao.quantization import quantize_

    section = section_of(kind, trained, where, group)
    others = pick(None if dtype == "stored" else dtype, folder)
    if dtype is None and others == torch.float32:
        others = torch.bfloat16  # of a model most of which is rounded to 4 bits, the rest would be the larger part
    model = VLSegModel.from_pretrained(folder, dtype=torch.float32)
    names = qat.rounded_layers(model, section)
    state = dict(model.state_dict())
    for twin, key in model.all_tied_weights_keys.items():
        state[key] = state[twin]  # one tensor, so that it is written once
    state = cast_state(state, others)
    wanted = set(names)
    quantize_(model, qat.base_config(section), filter_fn=lambda _, key: key in wanted)
    for key in names:
        layer: Any = model.get_submodule(key)
        del state[f"{key}.weight"]
        state |= packed(f"{key}.weight", layer.weight, BITS[kind])
    written = shell(model)
    written.config.quantization_config = settings(names, section)
    written.save_pretrained(out, state_dict=state, card_name=name)
    VLSegProcessor.from_pretrained(folder).save_pretrained(out)
    facts = {"layers": len(names), "where": list(section.where), "dtype": str(others).removeprefix("torch.")}
    return facts if kind == "int8" else {**facts, "group": section.group}


def packed(name: str, weight: Any, bits: int) -> dict[str, torch.Tensor]:
    """A rounded weight of torchao as the tensors of compressed-tensors' `pack-quantized`: 32 / bits values an int32."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if bool(weight.zero_point.any()):
        raise VLSegError(f"{name}: torchao rounded it with zero points, which the packed format here does not hold")
    rows = weight.qdata.shape[0]
    return {
        f"{name}_packed": pack_to_int32(weight.qdata.contiguous(), bits),
        f"{name}_scale": weight.scale.reshape(rows, -1).to(torch.float16),
        f"{name}_shape": torch.tensor(weight.qdata.shape, dtype=torch.int64),
    }


def settings(names: Sequence[str], section: QatSection) -> dict[str, Any]:
    """`quantization_config` of a packed checkpoint. dequantize: layers are floating ones as soon as they are loaded."""
    weights: dict[str, Any] = {"num_bits": BITS[section.kind], "type": "int", "symmetric": True, "strategy": "channel"}
    if section.kind == "int4":
        weights |= {"strategy": "group", "group_size": section.group}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": True,
        "config_groups": {"group_0": {"targets": list(names), "weights": weights}},
        "ignore": [],
    }


def need(package: str) -> None:
    """Raises VLSegError where a package is missing."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise VLSegError(f"{package} is not installed; pip install 'vlseg[quant]'")
