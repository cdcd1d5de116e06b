"""`open_dataset`: from what a user writes (`refcoco`, `coco?absent=2`, `my.jsonl`, a folder) to a `Dataset`."""

from __future__ import annotations

import difflib
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlseg.data.dataset import Dataset
from vlseg.data.request import Request
from vlseg.types import VLSegError


@dataclass(frozen=True)
class Known:
    """A data set that has a name. opener: "module:function" of vlseg.data; splits: () where the files tell them.

    default: the split that is meant where none is said. pictures: whether it has a folder of pictures.
    """

    name: str
    what: str
    opener: str
    splits: tuple[str, ...] = ()
    default: str = "val"
    options: tuple[str, ...] = ()
    pictures: bool = True


_UNC, _UMD = ("train", "val", "testA", "testB"), ("train", "val", "test")
_REFER, _TEXT = "refer:open_refer", ("text",)
_SCENES = ("n", "seed", "size", "queries")
_SPRITES = (*_SCENES, "styles")
KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known("refcoco", "RefCOCO, UNC partition", _REFER, _UNC, options=_TEXT),
        Known("refcoco+", "RefCOCO+, UNC partition", _REFER, _UNC, options=_TEXT),
        Known("refcocog-umd", "RefCOCOg, UMD partition", _REFER, _UMD, options=_TEXT),
        Known("refcocog-google", "RefCOCOg, Google partition", _REFER, ("train", "val"), options=_TEXT),
        Known("refcoco-google", "RefCOCO, Google partition", _REFER, _UMD, options=_TEXT),
        Known("grefcoco", "gRefCOCO: none, one or several targets", _REFER, _UNC, options=_TEXT),
        Known("reasonseg", "ReasonSeg", "reasonseg:open_reasonseg", _UMD, pictures=False),
        Known("refcoco-m", "RefCOCO-M", "mirrors:open_refcoco_m", ("val",), pictures=False),
        Known("phrasecut", "PhraseCut", "phrasecut:open_phrasecut", (*_UMD, "miniv")),
        Known("coco", "COCO instances as class queries", "coco:open_coco", (), "", ("absent", "seed")),
        Known(
            "sprites", "the procedural world of drawn things", "scenes:open_sprites", (), "", _SPRITES, pictures=False
        ),
        Known("geometry", "the procedural world of diagrams", "scenes:open_geometry", (), "", _SCENES, pictures=False),
    )
}


def open_dataset(spec: str, split: str | None = None, root: Path | None = None, *, pictures: bool = True) -> Dataset:
    """The data set that a spec names: NAME or PATH, then options as in `?root=DIR&split=testA`.

    NAME: one of `KNOWN`. PATH: a JSONL file, a COCO instance file (.json), or a folder: of Parquet files, of images/
    and masks/, or with SPLIT.jsonl, data.jsonl or instances.json in it. split: where neither it nor the spec says one,
    "val", or the only one there is. root: where named data sets lie: the spec's `root`, this, $VLSEG_DATA, ./data.
    pictures: False opens RefCOCO and the like also where their folder of pictures is missing, for counting.

    Raises VLSegError, in one line, for names, options and splits that do not exist, and for files that are missing.
    """
    name, options = parse_spec(spec)
    known = KNOWN.get(name)
    kind = None if known else _kind_of(Path(name).expanduser(), split or options.get("split", ""))
    if known:
        allowed = (*known.options, "root", "split", *(["images"] if known.pictures else []))
    elif kind:
        allowed = (*kind.options, "split")
    else:
        raise _unknown(name, Path(name).expanduser())
    _check_options(name, options, allowed)
    if split and options.get("split", split) != split:
        raise VLSegError(f"{spec}: asks for split {options['split']}, the call for {split}; say one")
    split = options.pop("split", split or "")
    if kind:
        return _opener(kind.opener)(Request(name, split, kind.path.parent, kind.path, options, pictures))
    assert known is not None
    place = data_root(Path(options.pop("root")) if "root" in options else root)
    split = split or known.default
    if known.splits:
        split = _check_split(name, split, known.splits)
    return _opener(known.opener)(Request(name, split, place, None, options, pictures))


def data_root(root: Path | None = None) -> Path:
    """The folder that named data sets lie in: the one that is given, $VLSEG_DATA, ./data."""
    return Path(root or os.environ.get("VLSEG_DATA") or "data").expanduser()


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """(name or path, options). %XX in values is decoded. Raises VLSegError for options that are not KEY=VALUE."""
    if not spec:
        raise VLSegError(f"no data set named; there are {', '.join(KNOWN)}, or the path of a file or folder")
    if "?" not in spec or os.path.exists(spec):
        return spec, {}
    name, _, rest = spec.partition("?")
    options: dict[str, str] = {}
    for part in rest.split("&"):
        key, equals, value = part.partition("=")
        if not key or not equals or not value or key in options:
            raise VLSegError(f"{spec}: options are written ?key=value&key=value, each key once; cannot read {part!r}")
        options[key] = urllib.parse.unquote(value)
    return name, options


@dataclass(frozen=True)
class _Kind:
    """How the path of a spec is opened. path: the file or folder itself."""

    opener: str
    path: Path
    options: tuple[str, ...] = ()


def _kind_of(path: Path, split: str) -> _Kind | None:
    """The kind of a file or folder; None where it is of none that is known."""
    coco = ("absent", "seed", "images")
    if path.suffix in (".jsonl", ".ndjson") and not path.is_dir():  # a missing one is told by who opens it
        return _Kind("jsonl:open_jsonl", path)
    if path.is_file():
        return _Kind("coco:open_coco", path, coco) if path.suffix == ".json" else None
    if not path.is_dir():
        return None
    from vlseg.data.folder import is_mask_folder
    from vlseg.data.parquet import parquet_files

    lines = {file.stem: file for file in path.glob("*.jsonl")}
    chosen = lines.get(split) or lines.get("data")
    if chosen is None and len(lines) == 1 and not split:
        chosen = next(iter(lines.values()))
    if chosen is not None:
        return _Kind("jsonl:open_jsonl", chosen)
    if (path / "instances.json").is_file() and not any(path.glob("*refs(*")):
        return _Kind("coco:open_coco", path / "instances.json", coco)
    if is_mask_folder(path):
        return _Kind("folder:open_folder", path)
    return _Kind("mirrors:open_folder", path, ("text", "images")) if parquet_files(path) else None


def _unknown(name: str, path: Path) -> VLSegError:
    if path.is_dir():
        hint = "it has neither Parquet files, images/ and masks/, data.jsonl nor instances.json"
        if lines := sorted(path.glob("*.jsonl")):
            hint = f"say which split; it has {', '.join(file.stem for file in lines)}"
        signs = {"*refs(*": "refcoco", "*/*refs(*": "refcoco", "refer_*.json": "phrasecut", "val/*.json": "reasonseg"}
        for sign, known in signs.items():
            if any(path.glob(sign)):
                hint = f"to read it as a named data set write NAME?root={name}, for example {known}?root={name}"
                break
        return VLSegError(f"{name}: not a folder of data that is known: {hint}")
    if path.exists():
        return VLSegError(f"{name}: not a file of data; give .jsonl, a COCO .json, or a folder")
    if name in ("refcocog", "RefCOCOg"):
        return VLSegError(f"{name}: say which partition: refcocog-umd (the usual one) or refcocog-google")
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KNOWN)}"
    return VLSegError(f"{name}: no such file or folder, and no data set of that name; {hint}")


def _check_options(name: str, options: dict[str, str], allowed: tuple[str, ...]) -> None:
    for key in options:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(allowed)}"
            raise VLSegError(f"{name}: no option {key!r}; {hint}")


def _check_split(name: str, split: str, splits: tuple[str, ...]) -> str:
    for known in splits:
        if split.lower() == known.lower() or (split, known) == ("validation", "val"):
            return known
    close = difflib.get_close_matches(split, splits, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? there are" if close else "there are"
    raise VLSegError(f"{name}: no split {split!r}; {hint} {', '.join(splits)}")


def _opener(name: str) -> Callable[[Request], Dataset]:
    module, _, function = name.partition(":")
    opener: Callable[[Request], Dataset] = getattr(import_module(f"vlseg.data.{module}"), function)
    return opener
