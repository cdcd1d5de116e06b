"""What a model is exported from: the checkpoint of a run, a checkpoint folder, or an adapter that is merged first."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vlseg.config import load
from vlseg.models.precision import QUANTISED
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.registry import EMBEDDED, WEIGHTS
from vlseg.training.config import TrainConfig
from vlseg.training.merge import BASE, merged_state, save_merged
from vlseg.types import VLSegError

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """A checkpoint folder, or a PEFT folder where `adapter` is true; config: of the run that it came from, if any."""

    folder: Path
    adapter: bool = False
    config: TrainConfig | None = None


def find(source: str | Path) -> Origin:
    """What a run, checkpoint, or adapter folder means; of a run final/, else best/.

    Raises VLSegError for a folder that is none of these, a run that has not come to its end, and quantised weights.
    """
    folder = WEIGHTS / EMBEDDED if str(source) == EMBEDDED else Path(source).expanduser()
    if not folder.is_dir():
        raise VLSegError(f"{source}: no such folder; name a run, a checkpoint, or {EMBEDDED}")
    if (folder / "config.yaml").exists() and not (folder / "config.json").exists():
        for inner in ("final", "best"):
            if _holds_weights(folder / inner):
                return _origin(folder / inner, folder / "config.yaml")
        raise VLSegError(f"{source}: the run has no final/ yet; `vlseg train` with the same settings goes on with it")
    if not _holds_weights(folder):
        raise VLSegError(f"{source}: neither a run (config.yaml), a checkpoint (config.json) nor an adapter")
    # final/, best/ and their adapter/ lie one or two folders below the run's
    above = (parent / "config.yaml" for parent in list(folder.resolve().parents)[:2])
    return _origin(folder, next((file for file in above if file.exists()), None))


def _holds_weights(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", ADAPTER_FILE, f"adapter/{ADAPTER_FILE}"))


def _origin(folder: Path, run: Path | None) -> Origin:
    config = None if run is None else load(TrainConfig, run)
    if (folder / "config.json").exists():
        try:
            known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            kind, quantised = known.get("model_type"), known.get("quantization_config")
        except (OSError, ValueError, AttributeError) as error:
            raise VLSegError(f"{folder}: config.json cannot be read ({error}); the checkpoint is broken") from error
        if kind != "vlseg":
            raise VLSegError(f"{folder}: a checkpoint of model type {kind!r}, not of vlseg; fine-tune it first")
        if quantised:
            raise VLSegError(f"{folder}: its weights are quantised already; export the checkpoint it was made from")
        return Origin(folder, False, config)
    return Origin(folder if (folder / ADAPTER_FILE).exists() else folder / "adapter", True, config)


@contextlib.contextmanager
def plain_checkpoint(origin: Origin) -> Iterator[Path]:
    """Within the block: a folder with the weights of a plain model, adapters merged.

    An adapter of a run with a quantised base is merged into the dequantised base. Raises VLSegError where the base
    cannot be had.
    """
    if not origin.adapter:
        yield origin.folder
        return
    with tempfile.TemporaryDirectory(prefix="vlseg-merged-") as folder:
        _merge(origin, Path(folder))
        yield Path(folder)


def _merge(origin: Origin, out: Path) -> None:
    from peft import PeftModel

    from vlseg.training.start import build_model, load, locate

    if origin.config is not None:
        start = build_model(origin.config)
        model, processor = start.model, start.processor
    else:
        settings = json.loads((origin.folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        base, kind = locate(str(settings.get("base_model_name_or_path")))
        if kind != "vlseg":
            raise VLSegError(
                f"{origin.folder}: the adapter belongs to {base}, whose mask head is in no checkpoint; keep the "
                "adapter in the folder of its run, or export the run's final/"
            )
        # As the run held them; an adapter makes good the rounding it has met, too.
        model = load(base, TrainConfig(mixed_precision="no"), None, base_held(origin.folder))
        processor = VLSegProcessor.from_pretrained(base)
    try:
        adapted = PeftModel.from_pretrained(model, str(origin.folder))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VLSegError(f"{origin.folder}: the adapter does not fit its base ({reason})") from error
    save_merged(adapted, merged_state(adapted), processor, out, torch.float32)


def base_held(adapter: Path) -> str:
    """How the base of an adapter was held when it was trained, as `ModelSection.base`; "float32" where nobody says.

    Raises VLSegError for a note that cannot be read.
    """
    note = adapter / BASE
    try:
        kind = json.loads(note.read_text(encoding="utf-8"))["base"]
    except FileNotFoundError:
        return "float32"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VLSegError(f"{note}: cannot be read ({error}); the adapter is broken") from error
    return kind if kind in QUANTISED else "float32"


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating number type of most weights in a checkpoint's files."""
    from safetensors import safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    counts = dict.fromkeys(names, 0)
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (no mapping)
                piece = weights.get_slice(key)
                if piece.get_dtype() in counts:
                    counts[piece.get_dtype()] += max(1, int(torch.Size(piece.get_shape()).numel()))
    return names[max(counts, key=lambda name: counts[name])]
