"""`vlseg segment IMAGES --queries FILE --out DIR [--engine local|ray]`: many images into shards of results."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlseg.cli.inputs import expand
from vlseg.cli.model_key import model_key
from vlseg.cli.parsing import Parser, whole_number
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.bulk.job import Job
    from vlseg.bulk.pictures import Pictures
    from vlseg.bulk.questions import Questions

SHOWN = 20  # errors on stderr; all are in errors.jsonl
GOES_ON = "the same command goes on from there"
# Options that only bulk runs have, with their defaults.
OPTIONS = {"engine": "local", "processes": None, "batch": "8", "shard_size": "200", "format": "jsonl", "split": None}


def add_options(parser: Parser) -> None:
    """The options of bulk runs."""
    group = parser.add_argument_group("many images at a time (shards of results in DIR instead of files an image)")
    add = group.add_argument
    add("--queries", dest="queries_file", metavar="FILE", help="one query a line, asked of every image, or JSONL with "
        '{"image": ..., "queries": [...]}')  # fmt: skip
    add("--engine", choices=["local", "ray"], help="local (default): this machine; ray: the cluster at RAY_ADDRESS")
    add("--processes", metavar="N", help="local: processes (default: one a GPU); ray: the most actors")
    add("--batch", metavar="B", help="images a call of the model (default 8)")
    add("--shard-size", metavar="N", help="images a file of results (default 200)")
    add("--format", choices=["jsonl", "parquet"], help="of the results (default jsonl)")
    add("--split", metavar="S", help="of Parquet files or a dataset saved to disk that have several")


def wanted(args: Namespace) -> bool:
    """Whether a call asks for a bulk run: by an option of one, or by images in Parquet files or a saved dataset."""
    if args.queries_file is not None or any(getattr(args, name) is not None for name in OPTIONS):
        return True
    if not (args.image.endswith(".parquet") or Path(args.image).is_dir()):
        return False
    from vlseg.bulk.pictures import is_table

    return is_table(args.image)


def run(
    args: Namespace,
    presence: float | None,
    mask: float,
    max_pixels: int,
    options: dict[str, Any],
    cache: dict[str, Any],
) -> int:
    """A bulk run; returns the exit code. options, cache: further ones of `Segmenter`; the latter change no answer."""
    for name, default in OPTIONS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.out is None:
        raise VLSegError("--out is missing: a bulk run writes its results to a folder")
    if args.json:
        raise VLSegError("--json: a bulk run writes its results to --out; leave the option out")
    if args.queries_file is not None and args.queries:
        raise VLSegError(f"QUERY {args.queries[0]!r} and --queries {args.queries_file}: give one of them")
    if args.processes is not None:
        args.processes = whole_number("--processes", 1)(args.processes)
    batch, shard = whole_number("--batch", 1)(args.batch), whole_number("--shard-size", 1)(args.shard_size)
    from vlseg.data.files import writable_folder
    from vlseg.systems.registry import resolve

    resolve(args.model)
    pictures = _pictures(args)
    questions = _questions(args, pictures)
    out = writable_folder(args.out)
    if args.engine == "ray":
        _check_ray()
    from functools import partial

    from vlseg.bulk.job import Job, load_segmenter

    job = Job(
        pictures,
        questions,
        partial(load_segmenter, args.model, args.dtype, {**options, **cache}),
        args.device,
        shard,
        batch,
        presence,
        mask,
        args.mode,
        args.refine,
        max_pixels,
    )
    return _go(args, job, out, options)


def _go(args: Namespace, job: Job, out: Path, options: dict[str, Any]) -> int:
    from vlseg.bulk.run import run_bulk

    left_out = len(job.pictures.names) - len(job.questions)
    if left_out and not args.quiet:
        _say(f"{left_out} of {len(job.pictures.names)} images have no queries in {args.queries_file} and are left out")
    processes = args.processes or (_devices(args.device) if args.engine == "local" else 0)
    progress = False if args.quiet else None
    try:
        summary = run_bulk(job, out, args.engine, processes, args.format, model_key(args, options), progress)
    except RuntimeError as error:
        _say(f"{' '.join(str(error).split())}; {GOES_ON}")
        return 1
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'interrupted'}; {GOES_ON}") from stop
    for wrong in summary.errors[:SHOWN]:
        text = wrong["error"]
        _say(text if wrong["image"] in text else f"{wrong['image']}: {text}")
    for failed in summary.failed[:SHOWN]:
        _say(f"{failed['image']}: {failed['text'][:60]!r} failed: {failed['reason']}")
    more = max(0, len(summary.errors) - SHOWN) + max(0, len(summary.failed) - SHOWN)
    if more:
        _say(f"{more} more, see {out / 'errors.jsonl'} and the results")
    if not args.quiet:
        _say(f"{summary.line()}; results in {out}")
    return 1 if summary.errors or summary.failed else 0


def _pictures(args: Namespace) -> Pictures:
    from vlseg.bulk.pictures import FilePictures, is_table, open_tables

    if is_table(args.image):
        return open_tables(args.image, args.split)
    if args.split is not None:
        raise VLSegError(f"--split {args.split}: only for Parquet files and datasets saved to disk")
    sources, _ = expand(args.image, args.out)
    if "://" in sources[0] or not Path(sources[0]).exists():
        raise VLSegError(f"{args.image}: a bulk run reads a folder, a glob, Parquet files or a dataset saved to disk")
    return FilePictures(sources)


def _questions(args: Namespace, pictures: Pictures) -> Questions:
    from vlseg.bulk.questions import read_questions, same_for_all

    if not len(pictures.names):
        raise VLSegError(f"{args.image}: holds no image")
    if args.queries_file is not None:
        return read_questions(args.queries_file, pictures.names)
    return same_for_all(args.queries, len(pictures.names))


def _devices(device: str | None) -> int:
    """Processes where none are asked for: one a GPU."""
    if device not in (None, "auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _check_ray() -> None:
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise VLSegError('--engine ray: Ray is not installed; pip install "ray[data]"')


def _say(text: str) -> None:
    print(f"vlseg: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)
