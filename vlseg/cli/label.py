"""`vlseg label IMAGES --queries FILE --out DIR`: pseudo-labels, ignore maps, what to annotate next."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlseg.cli.inputs import expand
from vlseg.cli.parsing import Parser, convert, probability
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.bulk.pictures import Pictures
    from vlseg.bulk.questions import Questions

EXAMPLES = """examples:
  vlseg label photos/ --model clipseg --queries words.txt --out labels
  vlseg label photos/ --model runs/a/final --against sam3 --queries words.jsonl --out labels

FILE has one query a line, asked of every image, or is JSONL with {"image": ..., "queries": [...]}. Other wordings of a
query stand behind it: the red mug | the red cup | the mug that is red

DIR: labels.jsonl (to train on), ranking.csv and ranking.jsonl (most uncertain first), with --against maps/*.png (255 is
ignored), errors.jsonl. Killed at any instant, the same command goes on; broken images are tried again.
exit code: 0 done, 1 an image or a query failed (each named), 2 a wrong call or input."""
SHOWN = 20  # errors on stderr; all are in errors.jsonl and ranking.jsonl


def parser() -> Parser:
    """The arguments of the verb."""
    made = Parser("label", "Label images with a model, and say which a person should look at first.", EXAMPLES)
    add = made.add_argument
    add("images", metavar="IMAGES", help="a file, folder or glob")
    add("--queries", metavar="FILE", required=True, help="what to label; see below")
    add("--out", metavar="DIR", required=True, help="folder to write to")
    add("--model", metavar="M", help="vlseg-mini (default), a system, the folder of a checkpoint, or org/name")
    add(
        "--against", metavar="M2", help="a second model: where the two differ pixels are ignored, or the label left out"
    )
    add("--min-confidence", metavar="P", default="0", help="leave out labels of less confidence (default 0)")
    add("--agree", metavar="IOU", default="0.5", help="least IoU with the second model for a label (default 0.5)")
    add("--no-flips", action="store_true", help="do not ask of the mirrored image: half the time, no such signal")
    add("--presence-threshold", metavar="P", help="score in 0..1 from which a query is found; default: the model's own")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU")
    add("--dtype", metavar="T", help="float32 (default on the CPU), bfloat16 (on a GPU), float16, int8 or nf4")
    add("--max-pixels", metavar="N", default="100M", help="refuse larger images (default 100M)")
    add("--quiet", action="store_true", help="no progress, no summary")
    return made


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    args = parser().parse(argv)
    confidence, agree = probability("--min-confidence")(args.min_confidence), probability("--agree")(args.agree)
    presence = convert(probability("--presence-threshold"), args.presence_threshold)
    from vlseg.data.files import writable_folder
    from vlseg.data.images import parse_pixels
    from vlseg.systems.registry import resolve

    max_pixels = parse_pixels(args.max_pixels)
    resolve(args.model)
    if args.against is not None and resolve(args.against) == resolve(args.model):
        raise VLSegError(f"--against {args.against}: is the model itself, and never differs; name another")
    pictures, questions = _asked(args)
    out = writable_folder(args.out)
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from vlseg.bulk.label import Labeller, Rules
        from vlseg.bulk.label_run import run_labels
        from vlseg.systems.registry import load_system

        system = load_system(args.model, args.device, args.dtype)
        against = None if args.against is None else load_system(args.against, args.device, args.dtype)
    labeller = Labeller(system, against, Rules(confidence, agree, not args.no_flips, presence))
    key = {"files of the models": [_files(name) for name in (args.model, args.against)], "number type": args.dtype}

    def progress(numbers: Sequence[int]) -> Iterable[int]:
        if args.quiet or not sys.stderr.isatty():
            return numbers
        from tqdm import tqdm

        return tqdm(numbers, unit="image", dynamic_ncols=True)

    try:
        summary = run_labels(labeller, pictures, questions, out, key, max_pixels=max_pixels, progress=progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("interrupted; the same command goes on from there") from stop
    wrong = [_named(e["image"], e["error"]) for e in summary.errors]
    wrong += [f"{f['image']}: {f['text'][:60]!r} {f['reason']}" for f in summary.failed]
    for line in wrong[:SHOWN]:
        _say(line)
    if len(wrong) > SHOWN:
        _say(f"{len(wrong) - SHOWN} more, see errors.jsonl and ranking.jsonl in {out}")
    if not args.quiet:
        _say(f"{summary.line()}; labels in {out / 'labels.jsonl'}")
    return 1 if wrong else 0


def _asked(args: Namespace) -> tuple[Pictures, Questions]:
    from vlseg.bulk.pictures import FilePictures, is_table
    from vlseg.bulk.questions import read_questions

    if is_table(args.images):
        raise VLSegError(f"{args.images}: labels name their pictures by path; give a folder or a glob of image files")
    sources, _ = expand(args.images, args.out)
    if "://" in sources[0] or not Path(sources[0]).exists():
        raise VLSegError(f"{args.images}: no such image; give a file, a folder or a glob")
    pictures = FilePictures(sources)
    questions = read_questions(args.queries, pictures.names)
    left_out = len(pictures.names) - len(questions)
    if left_out and not args.quiet:
        _say(f"{left_out} of {len(pictures.names)} images have no queries in {args.queries} and are left out")
    return pictures, questions


def _files(model: str | None) -> list[list[Any]]:
    from vlseg.systems.registry import resolve

    folder = Path(resolve(model).location)
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _named(image: str, error: str) -> str:
    return error if image in error else f"{image}: {error}"


def _say(text: str) -> None:
    print(f"vlseg: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)
