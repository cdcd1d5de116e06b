"""`vlseg export KIND SOURCE --out DIR`: Results in other tools' formats, models in other runtimes'."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from vlseg.cli.parsing import Parser, convert, nearest, probability
from vlseg.types import VLSegError

MODELS = {
    "merged": "adapters merged into the model",
    "int8": "linear layers in 8 bits, all else in 16 (dtype=stored: as it is)",
    "int4": "linear layers in 4 bits, all else in 16 (dtype=stored: as it is)",
    "onnx": "for ONNX Runtime",
}
RESULTS = ("coco", "yolo", "labelstudio", "cvat", "png", "svg")
SHOWN = 50  # problems that are named one by one


def parser() -> Parser:
    """The arguments of the verb."""
    from vlseg.export.kinds import KINDS

    lines = [f"  {name:<12} {kind.what}" for name, kind in KINDS.items()]
    models = [f"  {name:<12} {what}" for name, what in MODELS.items()]
    epilog = "\n".join([
        "KIND, of Results (SOURCE: JSON, JSON lines, Parquet, a folder of them, labels.jsonl):", *lines,
        "\nKIND, of a model (SOURCE: a run or a checkpoint; options as key=value behind it):", *models,
        "  of every kind: data=SPEC [limit=20] tells how far SOURCE and export answer alike, on so many pictures",
        "\nexamples:",
        "  vlseg export coco masks/ --out coco",
        "  vlseg export yolo results.jsonl --copy-images --out yolo",
        "  vlseg export labelstudio labels.jsonl --image-prefix '/data/local-files/?d=' --out ls",
        "  vlseg export merged runs/lora --out merged",
        "  vlseg export int4 runs/lora 'data=sprites?n=40' limit=40 --out int4",
        "\nexit code: 0 done, 1 a record or a picture failed (each named), 2 a wrong call or input",
    ])  # fmt: skip
    made = Parser("export", "Write Results for other tools, or a model for another runtime.", epilog)
    add = made.add_argument
    add("kind", metavar="KIND", help="what to write; see below")
    add("source", metavar="SOURCE", help="Results, or the folder of a run or checkpoint")
    add("settings", metavar="KEY=VALUE", nargs="*", help="of a model's export")
    add("--out", metavar="DIR", required=True, help="folder to write to")
    add("--as", dest="shape", choices=["masks", "polygons"], help="how coco, labelstudio and cvat hold an instance")
    add("--tolerance", metavar="PX", help="polygons may leave the outline by this many pixels (default 0: exact)")
    add("--min-score", metavar="P", default="0", help="leave out segments of a lower score (default 0)")
    add("--copy-images", action="store_true", help="copy the pictures, upright, to DIR/images")
    add("--images", metavar="DIR", help="where pictures lie that are not where their Result says")
    add("--image-prefix", metavar="TEXT", default="", help="labelstudio: stands before the names of pictures")
    return made


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    args = parser().parse(argv)
    known = [*MODELS, *RESULTS]
    if args.kind not in known:
        raise VLSegError(
            f"vlseg export: no kind {args.kind!r}{nearest(args.kind, known) or '; there are ' + ', '.join(known)}"
        )
    return _model(args) if args.kind in MODELS else _results(args)


def _results(args: Namespace) -> int:
    from vlseg.export.kinds import Options, export_results
    from vlseg.export.source import Results

    if args.settings:
        raise VLSegError(f"{args.settings[0]}: {args.kind} takes one SOURCE and no settings")
    tolerance = convert(_pixels, args.tolerance) or 0.0
    options = Options(args.shape, tolerance, args.copy_images, args.image_prefix)
    results = Results(args.source, args.images, probability("--min-score")(args.min_score))
    path = export_results(args.kind, results, args.out, options)
    for problem in results.problems[:SHOWN]:
        print(f"vlseg: {' '.join(problem.split())}", file=sys.stderr)
    if len(results.problems) > SHOWN:
        print(f"vlseg: {len(results.problems) - SHOWN} more", file=sys.stderr)
    print(path)
    return 1 if results.problems else 0


def _pixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise VLSegError(f"--tolerance {text}: not a number of pixels") from error
    if not 0 <= value <= 1000:
        raise VLSegError(f"--tolerance {text}: must lie in 0..1000 pixels")
    return value


def _model(args: Namespace) -> int:
    for option, given in (("--as", args.shape), ("--tolerance", args.tolerance), ("--copy-images", args.copy_images),
                          ("--images", args.images), ("--image-prefix", args.image_prefix)):  # fmt: skip
        if given:
            raise VLSegError(f"{option}: only for Results, and {args.kind} writes a model")
    settings: dict[str, Any] = {}
    for word in args.settings:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise VLSegError(f"{word}: write settings of a model's export as key=value")
        import yaml

        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise VLSegError(f"{word}: the value cannot be read") from error
    from vlseg.export.models import export_model

    path = export_model(args.kind, args.source, args.out, **settings)
    if "data" in settings:
        from vlseg.export.models import describe

        print(describe(path), file=sys.stderr)
    print(path if path is not None else args.out)
    return 0
