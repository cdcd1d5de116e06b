"""`export_model`: a run or checkpoint as another kind of model, written whole or not at all."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from vlseg.types import VLSegError

FACTS = "export.json"
MEASURED = ("data", "limit")  # options of every kind


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model. writer: "module:function" of vlseg.export; options: what it takes besides."""

    what: str
    writer: str
    options: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "merged": Kind("plain weights, adapters merged", "model_merged:export_merged", ("dtype",)),
    "int8": Kind("8-bit linear layers, packed", "model_quantised:export_int8", ("where", "dtype")),
    "int4": Kind("4-bit linear layers, packed", "model_quantised:export_int4", ("where", "group", "dtype")),
    "onnx": Kind("ONNX: one graph a picture, one for its queries", "model_onnx:export_onnx", ("size",)),
}


def export_model(
    kind: str, source: str | Path, out: str | Path, *, data: str | None = None, limit: int | None = None, **options: Any
) -> Path:
    """Write the model of a run, checkpoint or adapter folder as another kind; returns the folder `out`.

    kind: of `KINDS`. options: merged: dtype ("float32", "float16", "bfloat16"); int8: where (a list of "decoder",
    "vision", "pixel"), dtype (of the other weights, or "stored"); int4: these and group (weights a scale); onnx: size
    (H, W) of the input. Default is what a quantisation-aware run trained for, else the decoder and groups of 32; the
    stored dtype, of int8 and int4 16 bits; and a square of the model's own area. data: a spec of `open_dataset`: the
    source and the written folder both answer the queries of its first `limit` pictures (default 20).

    The folder loads with `Segmenter`; `export.json` in it tells bytes, settings and how far the answers agree, where
    data is given (`describe`). Raises VLSegError, in one line, for unknown kinds and options, a source that is none, an
    `out` that holds something already, data that cannot be read, and where a package is missing.
    """
    if kind not in KINDS:
        raise VLSegError(f"export {kind}: unknown kind of model{_nearest(kind, list(KINDS))}")
    chosen = KINDS[kind]
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in chosen.options:
            raise VLSegError(f"export {kind}: no option {name!r}{_nearest(name, [*chosen.options, *MEASURED])}")
    if data is None and limit is not None:
        raise VLSegError("limit: a number of pictures of data=SPEC; name the data, or leave limit out")
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise VLSegError(f"{target}: is there already; name another folder, or remove it")
    from vlseg.export.agreement import LIMIT, Agreement
    from vlseg.export.model_source import find, plain_checkpoint
    from vlseg.systems.quiet import quiet_loading

    origin = find(source)
    agreement = None if data is None else Agreement(data, LIMIT if limit is None else limit)
    if kind in ("int8", "int4"):
        given["trained"] = origin.config.qat if origin.config and origin.config.qat.kind != "none" else None
    if kind != "onnx":
        given["name"] = str(target)
    module, _, function = chosen.writer.partition(":")
    write: Callable[..., dict[str, Any]] = getattr(import_module(f"vlseg.export.{module}"), function)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        with quiet_loading(), plain_checkpoint(origin) as folder:
            if agreement:
                agreement.ask_source(folder)
            facts = write(folder, partial, **given)
            facts = {"kind": kind, "source": str(source), "source_bytes": weight_bytes(folder), **facts}
        facts["bytes"] = weight_bytes(partial)
        if agreement:
            facts["agreement"] = agreement.of(partial)
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    except OSError as error:
        raise VLSegError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weights and graphs."""
    files = [file for pattern in ("*.safetensors", "*.onnx") for file in folder.glob(pattern)]
    return sum(file.stat().st_size for file in files)


def describe(out: Path) -> str:
    """What an export came to, in one line: `int4: 42 layers, 45.6 MB before, 12.3 MB now; mean IoU 0.98 ...`."""
    from vlseg.export.agreement import in_words

    facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    layers = f"{facts['layers']} layers of {', '.join(facts['where'])}, " if "layers" in facts else ""
    agreement = f"; {in_words(facts['agreement'])}" if "agreement" in facts else ""
    before, now = (facts[name] / 1e6 for name in ("source_bytes", "bytes"))
    return f"{facts['kind']}: {layers}{before:.1f} MB before, {now:.1f} MB now{agreement}"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known) or 'none'}"
