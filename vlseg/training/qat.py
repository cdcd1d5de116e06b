"""Quantisation-aware training by torchao: layers that round in the forward pass, and what rounding for good costs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vlseg.data.dataset import Dataset
from vlseg.data.files import write_whole
from vlseg.data.images import open_image
from vlseg.evaluation.ranks import Ranks
from vlseg.metrics.referring import summary
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.native import NativeSystem
from vlseg.training.adapters import linear_layers
from vlseg.training.config import QatSection
from vlseg.training.validation import score_dataset
from vlseg.types import VLSegError

INT4: Any = getattr(torch, "int4", None)  # torch has it, and mypy does not know


def base_config(section: QatSection) -> Any:
    """torchao's configuration of what the weights will be in the end."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis, PerGroup

    if section.kind == "int8":
        return IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    if section.kind == "int4":
        return IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(section.group))
    return Int8DynamicActivationIntxWeightConfig(
        weight_dtype=INT4, weight_granularity=PerGroup(section.group)
    )  # fmt: skip


def rounded_layers(model: VLSegModel, section: QatSection) -> list[str]:
    """Names of the layers to round: linear ones at `section.where` whose input divides into groups.

    Raises VLSegError where there is none.
    """
    names = linear_layers(model, section.where, pointwise=False)
    if section.kind != "int8":
        inputs: dict[str, Any] = {name: model.get_submodule(name) for name in names}
        names = [name for name in names if inputs[name].in_features % section.group == 0]
    if not names:
        raise VLSegError(
            f"qat.where: no linear layer of {', '.join(section.where)} divides into groups of qat.group={section.group}"
        )
    return names


def prepare(model: VLSegModel, section: QatSection) -> list[str]:
    """Turn the layers into ones that round in the forward pass, in place; returns their names. Raises VLSegError."""
    try:
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig
    except ImportError as error:
        raise VLSegError(f"qat: {error.name} is not installed; pip install 'vlseg[quant]'") from error
    names = rounded_layers(model, section)
    wanted = set(names)
    quantize_(model, QATConfig(base_config(section), step="prepare"), filter_fn=lambda _, name: name in wanted)
    done = [name for name in names if type(model.get_submodule(name)).__name__ == "FakeQuantizedLinear"]
    if done != names:
        raise VLSegError(f"qat: torchao rounds {len(done)} of {len(names)} layers; is torchao 0.15 or later installed?")
    return names


def quantise(folder: Path, names: Sequence[str], section: QatSection, target: Path) -> None:
    """A checkpoint folder of floating weights rounded for good, as another folder with the same processor.

    Goes by way of loading: torchao's tensors of a model converted in memory cannot be saved.
    """
    load_quantised(folder, names, section).save_pretrained(target)
    for file in target.glob("*.safetensors"):
        _list_parts_only(file)
    VLSegProcessor.from_pretrained(folder).save_pretrained(target)


def _list_parts_only(file: Path) -> None:
    """Take a model's own parameters off torchao's list of names, whose reader splits each at a dot: these have none."""
    with safe_open(file, framework="pt") as weights:
        metadata = dict(weights.metadata())
        tensors = {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118  (no mapping)
    metadata["tensor_names"] = json.dumps([name for name in json.loads(metadata["tensor_names"]) if "." in name])
    partial = file.with_name(f".part-{file.name}")
    save_file(tensors, partial, metadata)
    os.replace(partial, file)


def load_quantised(folder: Path, names: Sequence[str], section: QatSection) -> VLSegModel:
    """A checkpoint folder of floating weights, its layers `names` rounded for good."""
    from transformers import TorchAoConfig

    with torch.device("meta"):
        layers = [n for n, m in VLSegModel(VLSegModel.config_class.from_pretrained(folder)).named_modules()
                  if isinstance(m, nn.Linear)]  # fmt: skip
    kept = [name for name in layers if name not in set(names)]
    how = TorchAoConfig(base_config(section), modules_to_not_convert=kept)
    model: VLSegModel = VLSegModel.from_pretrained(folder, dtype=torch.float32, quantization_config=how)
    return model


def bytes_on_disk(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def packed_bytes(folder: Path, model: VLSegModel, names: Sequence[str], section: QatSection) -> int:
    """Bytes of the same weights with 4-bit values two a byte; torchao keeps one a byte."""
    if section.kind == "int8":
        return bytes_on_disk(folder)
    layers: list[Any] = [model.get_submodule(name) for name in names]
    return bytes_on_disk(folder) - sum(layer.weight.numel() // 2 for layer in layers)


def measured(folder: Path, pictures: Sequence[str], queries: Sequence[str]) -> dict[str, float]:
    """Seconds a picture and peak memory (MiB) of a checkpoint, in a process of its own so that nothing else counts."""
    call = [sys.executable, "-m", "vlseg.training.measure", str(folder)]
    request = json.dumps({"pictures": list(pictures), "queries": list(queries)})
    done = subprocess.run(call, input=request, capture_output=True, text=True)
    if done.returncode:
        raise VLSegError(f"{folder}: cannot be measured ({done.stderr.strip().splitlines()[-1:]})")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def report(entries: dict[str, dict[str, Any]], file: Path) -> str:
    """Write what quantising came to as JSON; returns it as a table. entries: by "float" and "quantised"."""
    write_whole(file, json.dumps(entries, indent=1) + "\n")
    entries = {name: entry for name, entry in entries.items() if name != "settings"}
    keys = list(dict.fromkeys(key for entry in entries.values() for key in entry))
    lines = [f"{'':12}" + "".join(f"{key:>18}" for key in keys)]
    for name, entry in entries.items():
        cells = [entry.get(key) for key in keys]
        shown = ["" if c is None else f"{c:,.4g}" if isinstance(c, float) else f"{c:,}" for c in cells]
        lines.append(f"{name:12}" + "".join(f"{text:>18}" for text in shown))
    return "\n".join(lines)


def measure_run(
    out: Path,
    names: Sequence[str],
    section: QatSection,
    data: Dataset | None,
    limit: int | None,
    device: torch.device | None = None,
) -> str:
    """Quantise `out/final` for good as `out/quantised`, and compare the two; `out/qat.json` and a table.

    data: on whose pictures they are timed and scored; without it only bytes are told. device: where they are scored.
    Seconds and memory that cannot be measured (a GPU that is full of the run itself) are left out, and the table says
    why.
    """
    folders = {"float": out / "final", "quantised": out / "quantised"}
    partial = out / ".quantised.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        quantise(folders["float"], names, section, partial)
        shutil.rmtree(folders["quantised"], ignore_errors=True)
        os.replace(partial, folders["quantised"])
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    entries: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for name, folder in folders.items():
        model = VLSegModel.from_pretrained(folder, dtype=torch.float32).to(device or torch.device("cpu"))
        entry: dict[str, Any] = {"bytes": bytes_on_disk(folder)}
        if name == "quantised":
            entry["bytes_packed"] = packed_bytes(folder, model, names, section)
        if data is not None:
            system = NativeSystem(model, VLSegProcessor.from_pretrained(folder), name)
            cases = score_dataset(system, data, limit, Ranks(), out / ".val")
            entry["mIoU"] = round(summary(cases).get("mIoU", 0.0), 5)
            with tempfile.TemporaryDirectory() as place:
                try:
                    entry |= measured(folder, *_some_pictures(data, Path(place)))
                except VLSegError as error:
                    failed.append(str(error))
        entries[name] = entry
    if data is not None:
        entries["quantised"]["IoU_lost"] = round(entries["float"]["mIoU"] - entries["quantised"]["mIoU"], 5)
    table = report({"settings": {"kind": section.kind, "layers": len(names)}, **entries}, out / "qat.json")
    return "\n".join([table, *failed])


def _some_pictures(data: Dataset, folder: Path, count: int = 4) -> tuple[list[str], list[str]]:
    """Files of the first pictures that can be read, and the queries of the first."""
    files: list[str] = []
    queries: list[str] = []
    for i in range(min(len(data), 10 * count)):
        sample = data[i]
        try:
            picture, _ = open_image(sample.image)
        except VLSegError:
            continue  # the scores name it
        if not sample.queries or len(files) == count:
            continue
        queries = queries or [query.text for query in sample.queries[:8]]
        files.append(str(folder / f"{i}.png"))
        picture.save(files[-1])
    return files, queries
