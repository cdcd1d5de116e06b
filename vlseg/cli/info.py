"""`vlseg info`: versions, devices, models. What to paste into a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata

from vlseg.cli.parsing import Parser
from vlseg.systems.presets import PRESETS, Preset
from vlseg.systems.registry import KNOWN, resolve
from vlseg.types import VLSegError
from vlseg.version import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "timm",
    "peft",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "datasets",
    "pycocotools",
    "numpy",
    "pillow",
    "safetensors",
    "huggingface_hub",
    "gradio",
    "fastapi",
    "ray",
    "onnxruntime",
)


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    parser = Parser("info", "Versions and devices; with `models`, the models that have a name and what each needs.")
    parser.add_argument("what", nargs="?", choices=["models"], help="models: what can be named with --model")
    args = parser.parse(argv)
    print("\n".join(models() if args.what == "models" else [*versions(), *devices()]))
    return 0


def versions() -> list[str]:
    """A line a package; nothing is imported for it."""
    lines = [f"vlseg {__version__}", f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{package} not installed")
    return lines


def devices() -> list[str]:
    """The processors that torch can use."""
    lines = [f"CPU: {os.cpu_count()} cores"]
    try:
        import torch
    except ImportError as error:
        return [*lines, f"torch cannot be imported: {' '.join(str(error).split())}"]
    lines[0] += f", {torch.get_num_threads()} threads"
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        lines.append(f"cuda:{i}: {torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    return lines if len(lines) > 1 else [*lines, "no GPU"]


def models() -> list[str]:
    """A line a model: name, what it is, what it needs, whether it is there."""
    lines = []
    for known in KNOWN:
        try:
            resolve(known.name)
            state = "ready"
        except VLSegError as error:
            state = f"not ready: {error}"
        lines.append(f"{known.name}: {known.what}; needs {known.needs} [{state}]")
    lines += [preset_line(preset) for preset in PRESETS.values()]
    lines.append("NAME=FOLDER[,FOLDER]: a system of others from your own folders, one a part: clipseg=weights/clipseg")
    lines.append("FOLDER: a checkpoint, such as the final/ of a run; needs config, weights, tokenizer, processor")
    lines.append("org/name: a checkpoint on the Hugging Face Hub; needs a network the first time")
    return lines


def preset_line(preset: Preset) -> str:
    """A system of others: what it is, what it downloads, under which licence."""
    fetched = [part for part in preset.parts if not part.optional]
    ids = " + ".join(part.id + (f"@{part.revision}" if part.revision != "main" else "") for part in fetched)
    line = f"{preset.name}: {preset.what}; {ids or 'a folder of your own'}"
    if preset.parameters:
        line += f", {preset.parameters} M parameters"
    if licence := ", ".join(dict.fromkeys(part.licence for part in fetched if part.licence)):
        line += f", {licence}"
    if any(part.gated for part in fetched):
        line += ", gated: accept its licence on the Hub first"
    if preset.packages:
        line += f"; pip install {' '.join(preset.packages)}"
    return line
