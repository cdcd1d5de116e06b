"""`vlseg eval`: a model, a baseline or a file of predictions scored on a data set; two reports compared."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlseg.cli.parsing import Parser, convert, probability, whole_number
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.data.dataset import Dataset
    from vlseg.evaluation.predictor import Predictor
    from vlseg.evaluation.ranks import Ranks
    from vlseg.evaluation.run import Outcome, Settings

EXAMPLES = """examples:
  vlseg eval --model vlseg-mini --data 'sprites?n=200&seed=7' --out reports/mini
  vlseg eval --model FOLDER --data refcoco --split testA --root /data --processes 2 --out reports/testA
  vlseg eval --predictions results.jsonl --data my.jsonl --baselines --out reports/mine
  vlseg eval --compare reports/a reports/b --out reports/a-b

Killed at any instant, the same command goes on from the batches that are in OUT/shards.
exit code: 0 done, 1 a case failed (each named), 2 a wrong call or input."""

SHOWN = 20  # failures and the like on stderr; all are in samples.parquet
GOES_ON = "the same command goes on from there"


def parser() -> Parser:
    """The arguments of the verb."""
    parser = Parser(
        "eval", "Score answers on a data set: report.json, report.md, samples.parquet, a gallery.", EXAMPLES
    )
    add = parser.add_argument
    add("--model", metavar="M", help="vlseg-mini (default), a checkpoint folder, org/name, or baseline:NAME")
    add("--predictions", metavar="FILE", help="score this file instead of running a model: Results or COCO results")
    add("--compare", nargs=2, metavar=("A", "B"), help="two folders of reports on the same cases: B minus A")
    add("--data", metavar="D", help="a data set, such as refcoco, 'sprites?n=200', my.jsonl or a folder")
    add("--split", metavar="S", help="default: val, or the only one")
    add("--root", metavar="DIR", help="where named data sets lie (default: $VLSEG_DATA, else ./data)")
    add("--out", metavar="DIR", required=True, help="folder to write to")
    add("--limit", metavar="N", help="only the first N images")
    add("--batch", metavar="B", default="8", help="images a call of the model (default 8)")
    add("--processes", metavar="N", help="start N processes on this machine, a GPU each where there are some")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, ...; default: the first GPU, else the CPU")
    add("--dtype", metavar="T", help="float32 (default on the CPU), bfloat16 (on a GPU), float16, int8 or nf4")
    add("--threads", metavar="T", default="1", help="CPU threads a process (default 1); unlike --processes, another "
        "number can change the last bits of a sum")  # fmt: skip
    add("--presence-threshold", metavar="P", help="score in 0..1 from which a query is found; default: the model's own")
    odd = "(not by the protocol: only to reproduce somebody's numbers)"
    add("--mask-threshold", metavar="P", default="0.5", help=f"probability of a pixel inside, if not 0.5 {odd}")
    add("--mode", choices=["mask", "path"], default="mask", help="mask (default), or path where the model has it")
    add("--teacher-forced", action="store_true", help=f"hand the model the right answer's tokens {odd}")
    add("--buffer-radius", metavar="R", default="3", help="of Buffered IoU, in pixels (default 3)")
    add("--seed", metavar="S", default="0", help="of the bootstrap and of what is drawn by chance (default 0)")
    add("--baselines", action="store_true", help="add all baselines to the report")
    add("--json", action="store_true", help="the report on stdout as JSON and nothing else")
    return parser


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    args = _checked(argv)
    if args.compare:
        return _compare(args)
    from vlseg.evaluation import ranks

    if args.processes is None or ranks.started():
        try:
            return _evaluate(args, ranks.join(args.processes))
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"interrupted; {GOES_ON}") from stop
    _prepare(args)  # what is wrong with the call is told here once, and not by every process
    try:
        codes: list[int] = ranks.launch(_rank, (list(argv),), args.processes)
    except RuntimeError as error:
        _say(f"{error}; {GOES_ON}")
        return 1
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"{stop or 'interrupted'}; {GOES_ON}") from stop
    return max(codes)


def _rank(argv: list[str]) -> int:
    """One of several processes; returns its exit code."""
    import signal

    from vlseg.evaluation import ranks

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it ends without a word: the process that started it speaks
    args = _checked(argv)
    return _evaluate(args, ranks.join(args.processes))


def _checked(argv: Sequence[str]) -> Namespace:
    """The arguments with their values read. Raises VLSegError for what can be seen without opening anything."""
    args = parser().parse(argv)
    args.presence_threshold = convert(probability("--presence-threshold"), args.presence_threshold)
    args.mask_threshold = probability("--mask-threshold")(args.mask_threshold)
    for name, least in {"limit": 1, "batch": 1, "processes": 1, "threads": 1, "buffer_radius": 0, "seed": 0}.items():
        option = "--" + name.replace("_", "-")
        setattr(args, name, convert(whole_number(option, least), getattr(args, name)))
    if args.mask_threshold in (0, 1):
        raise VLSegError(f"--mask-threshold {args.mask_threshold:g}: must lie between 0 and 1")
    given = [name for name in ("model", "predictions", "compare") if getattr(args, name)]
    if len(given) > 1:
        raise VLSegError(f"--{given[0]} and --{given[1]}: give one of them")
    if args.compare and args.data:
        raise VLSegError("--compare takes two reports and no --data")
    if not args.compare and not args.data:
        raise VLSegError("--data is missing: name a data set, such as refcoco or my.jsonl; see `vlseg eval --help`")
    runs = not args.predictions and not (args.model or "").startswith("baseline:")
    for name, default in (("teacher_forced", False), ("mask_threshold", 0.5), ("mode", "mask")):
        if not runs and getattr(args, name) != default:
            raise VLSegError(f"--{name.replace('_', '-')}: only for a model that is run")
    if args.mode == "path" and args.mask_threshold != 0.5:
        raise VLSegError("--mask-threshold: a path is drawn as it is written; leave the option out with --mode path")
    return args


def _prepare(args: Namespace) -> tuple[Path, Dataset]:
    """The folder and the data set. Raises VLSegError for either, and for a model that is not there."""
    from vlseg.data.files import writable_folder
    from vlseg.data.registry import open_dataset
    from vlseg.systems.registry import resolve

    out = writable_folder(args.out)
    dataset = open_dataset(args.data, args.split, Path(args.root) if args.root else None)
    if not len(dataset):
        raise VLSegError(f"--data {args.data}: holds no image")
    if not args.predictions and not (args.model or "").startswith("baseline:"):
        resolve(args.model)
    return out, dataset


def _evaluate(args: Namespace, ranks: Ranks) -> int:
    out, dataset = _prepare(args)
    from vlseg.evaluation.report import build_report
    from vlseg.evaluation.run import Settings, evaluate
    from vlseg.metrics.case import Rules

    predictor, compute = _predictor(args, dataset, ranks)
    settings = Settings(args.batch, args.limit, args.seed, Rules(radius=args.buffer_radius), compute)
    if ranks.main:
        for deviation in predictor.deviations:
            _say(f"not by the protocol: {deviation}", red=True)
    key = _key(args, dataset, predictor, settings) if ranks.main else None
    outcome = evaluate(dataset, predictor, settings, out / "shards", key, ranks)
    others = {}
    for other in _baselines(args, dataset, predictor):
        folder = out / "shards" / other.name.replace(":", "-")
        others[other.name] = evaluate(dataset, other, settings, folder, key and {**key, "model": other.name}, ranks)
    if outcome is None:
        return 0
    if not outcome.records:
        reason = outcome.left_out[0] if outcome.left_out else "none has labels"
        raise VLSegError(f"--data {args.data}: no query of it could be scored ({reason})")
    compared = {name: other for name, other in others.items() if other is not None}
    notes = _notes(predictor)
    report = build_report(outcome, dataset, predictor, settings, compared, ranks, notes)
    _write(out, report, outcome, dataset)
    for line in (*notes, *(f"left out: {line}" for line in outcome.left_out), *_failures(report)):
        _say(line)
    _print(args, report, out)
    return 1 if outcome.crashed else 0


def _predictor(args: Namespace, dataset: Dataset, ranks: Ranks) -> tuple[Predictor, str]:
    """Where the answers come from, and what it runs on."""
    if args.predictions:
        from vlseg.evaluation.predictions import StoredPredictions

        return StoredPredictions(Path(args.predictions), dataset, args.presence_threshold, args.limit), ""
    if args.model and args.model.startswith("baseline:"):
        from vlseg.evaluation.baselines import baseline

        return baseline(args.model, dataset, args.seed), ""
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        import torch

        from vlseg.evaluation.predictor import SystemPredictor
        from vlseg.systems.registry import load_system

    torch.manual_seed(args.seed)
    device = ranks.device(args.device)
    kind = (device or "auto").split(":")[0].replace("auto", "cuda" if torch.cuda.is_available() else "cpu")
    compute = f"{kind}, {args.dtype or 'default'} dtype"
    if kind == "cpu":
        torch.set_num_threads(args.threads)
        compute += f", {args.threads} thread{'s' * (args.threads > 1)} a process"
    system = load_system(args.model, device, args.dtype)
    paths = args.mode == "path"
    predictor = SystemPredictor(system, args.presence_threshold, args.mask_threshold, args.teacher_forced, paths)
    return predictor, compute


def _baselines(args: Namespace, dataset: Dataset, predictor: Predictor) -> list[Predictor]:
    if not args.baselines:
        return []
    from vlseg.evaluation.baselines import NAMES, baseline

    return [baseline(name, dataset, args.seed) for name in NAMES if name != predictor.name]


def _key(args: Namespace, dataset: Dataset, predictor: Predictor, settings: Settings) -> dict[str, Any]:
    """What must be the same for a run to go on where another has stopped."""
    from vlseg.version import __version__

    return {
        "model": predictor.name,
        "files of the model": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in _files(args)],
        "way of answering": [predictor.protocol, predictor.deviations, settings.compute],
        "data": [dataset.name, dataset.split, dataset.fingerprint],
        "batch": settings.batch,
        "limit": settings.limit,
        "seed": settings.seed,
        "buffer radius": settings.rules.radius,
        "version": __version__,
    }


def _files(args: Namespace) -> list[Path]:
    """What the answers come from, where it lies on this machine."""
    if args.predictions:
        return [Path(args.predictions)]
    if (args.model or "").startswith("baseline:"):
        return []
    from vlseg.systems.registry import resolve

    folder = Path(resolve(args.model).location)
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def _write(out: Path, report: dict[str, Any], outcome: Outcome, dataset: Dataset) -> None:
    """All files of a report; report.json comes last."""
    from vlseg.evaluation.gallery import write_gallery
    from vlseg.evaluation.markdown import write_markdown
    from vlseg.evaluation.report import write_report
    from vlseg.evaluation.samples import write_samples

    write_samples(out, outcome.records)
    write_gallery(out, outcome.records, dataset, report)
    write_markdown(out, report)
    write_report(out, report)


def _print(args: Namespace, report: dict[str, Any], out: Path) -> None:
    if args.json:
        import json

        print(json.dumps(report, ensure_ascii=False))
        return
    from vlseg.evaluation.markdown import console

    print(console(report))
    print(f"report: {out / 'report.md'}, gallery: {out / 'gallery.html'}")


def _failures(report: dict[str, Any]) -> list[str]:
    lines = [f"failed: {line}" for line in report["failures"][:SHOWN]]
    more = report["counts"]["failed"] - len(lines)
    return [*lines, f"failed: {more} more, see samples.parquet"] if more > 0 else lines


def _notes(predictor: Predictor) -> list[str]:
    extra = getattr(predictor, "extra", [])
    if not extra:
        return []
    notes = [f"{len(extra)} predictions belong to no query of the data and were not scored"]
    return [*notes, *extra[:SHOWN]]


def _compare(args: Namespace) -> int:
    import json

    from vlseg.data.files import writable_folder
    from vlseg.evaluation.compare import compare, console, write_comparison

    comparison = compare(Path(args.compare[0]), Path(args.compare[1]), args.seed)
    out = writable_folder(args.out)
    write_comparison(out, comparison)
    print(json.dumps(comparison, ensure_ascii=False) if args.json else f"{console(comparison)}\n{out / 'compare.md'}")
    return 0


def _say(text: str, red: bool = False) -> None:
    line = f"vlseg: {' '.join(text.splitlines())}"
    if red and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        line = f"\033[31m{line}\033[0m"
    print(line, file=sys.stderr, flush=True)
