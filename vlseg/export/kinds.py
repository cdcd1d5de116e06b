"""`export_results`: which formats there are, and what each can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlseg.data.files import writable_folder
from vlseg.export.source import Results
from vlseg.types import VLSegError


@dataclass(frozen=True, slots=True)
class Options:
    """How a format is written. shape: "masks" or "polygons", None for the format's own; tolerance: of polygons, pixels.

    copy_images: the pictures go to OUT/images. image_prefix: stands before names of pictures (Label Studio).
    """

    shape: str | None = None
    tolerance: float = 0.0
    copy_images: bool = False
    image_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A format. shapes: what an instance may be written as, the default first; images: whether pictures go along."""

    what: str
    shapes: tuple[str, ...]
    images: bool


KINDS = {
    "coco": Kind("COCO instances: annotations.json", ("polygons", "masks"), True),
    "yolo": Kind("YOLO segmentation: data.yaml and labels/train/*.txt", ("polygons",), True),
    "labelstudio": Kind("Label Studio: tasks.json with predictions, and config.xml", ("masks", "polygons"), True),
    "cvat": Kind("CVAT for images 1.1: annotations.xml, and labels.json", ("masks", "polygons"), True),
    "png": Kind("masks/*.png, value = category; instances/*.png, one each; labels.json", ("masks",), False),
    "svg": Kind("*.svg, a path an instance", ("polygons",), False),
}

Writer = Callable[[Results, Path, Options], Path]


def export_results(kind: str, results: Results, out: str | Path, options: Options | None = None) -> Path:
    """Write results in a format; returns the file or folder to open first. What fails is added to `results.problems`.

    kind: one of `KINDS`. Raises VLSegError for another, an option that the format does not have, and a folder that
    cannot be written to.
    """
    options = options or Options()
    if kind not in KINDS:
        raise VLSegError(f"no format {kind!r}; known: {', '.join(KINDS)}")
    known = KINDS[kind]
    if options.shape is not None and options.shape not in known.shapes:
        raise VLSegError(f"--as {options.shape}: {kind} has {' and '.join(known.shapes)}")
    if options.tolerance and (options.shape or known.shapes[0]) != "polygons":
        hint = "; add --as polygons" if "polygons" in known.shapes else ""
        raise VLSegError(f"--tolerance: only for polygons{hint}")
    if options.tolerance and kind == "svg":
        raise VLSegError("--tolerance: SVG paths are written as the Results have them")
    if options.copy_images and not known.images:
        raise VLSegError(f"--copy-images: {kind} has no place for pictures")
    if options.image_prefix and kind != "labelstudio":
        raise VLSegError("--image-prefix: only for labelstudio")
    write: Writer = import_module(f"vlseg.export.{kind}").write
    return write(results, writable_folder(out), options)
