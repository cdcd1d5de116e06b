"""`vlseg data render | info | check | convert`."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.cli.parsing import Parser, convert, nearest, whole_number
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.data.dataset import Dataset, Problem

USES = {
    "render": "write scenes of a procedural world: vlseg data render WORLD --out DIR --n N --seed S",
    "info": "count what a data set holds: vlseg data info D",
    "check": "read every record, image and mask: vlseg data check D",
    "convert": "write it as JSONL or Parquet: vlseg data convert D --out DIR --to jsonl|parquet",
}
SPECS = """D: a JSONL file, a COCO instance file, a folder (Parquet, JSONL, images/ and masks/), or a name with options:
  {names}
such as 'coco?root=DIR&absent=2' or 'sprites?n=500&seed=9&size=256x256&styles=held_out'.
Names are looked for in --root, $VLSEG_DATA or ./data. docs/data.md says what goes where."""
NAMED = 20  # problems that `info` names; `check` names all


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    if not argv:
        raise VLSegError(f"vlseg data: say what to do: {', '.join(USES)}; see `vlseg data --help`")
    if argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {use:<8} {what}" for use, what in USES.items())
        print(f"usage: vlseg data USE ...\n\n{lines}\n\n{_specs()}")
        return 0
    use, rest = argv[0], argv[1:]
    if use not in USES:
        raise VLSegError(f"vlseg data: no use {use!r}{nearest(use, list(USES)) or '; there are ' + ', '.join(USES)}")
    return {"render": _render, "info": _info, "check": _check, "convert": _convert}[use](rest)


def _render(argv: Sequence[str]) -> int:
    parser = Parser("data render", "Write scenes with exact masks: OUT/images and OUT/data.jsonl.")
    parser.add_argument("world", metavar="WORLD", help="sprites or geometry")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--n", metavar="N", required=True, help="number of scenes")
    parser.add_argument("--seed", metavar="S", required=True, help="same seed, same scenes")
    parser.add_argument("--size", metavar="HxW", help="size of every picture in pixels; default: a mixture")
    parser.add_argument("--queries", metavar="K", default="8", help="expressions a scene (default 8)")
    parser.add_argument("--styles", choices=["train", "plain", "held_out"], default="train", help="look of the scenes")
    args = parser.parse(argv)
    count, seed = whole_number("--n", 1)(args.n), whole_number("--seed", 0)(args.seed)
    queries, size = whole_number("--queries", 1)(args.queries), convert(_size, args.size)
    from vlseg.worlds.render import render_dataset

    path = render_dataset(args.world, Path(args.out), count, seed, size, queries, args.styles)
    print(path)
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text.strip())
    if not match or min(int(match[1]), int(match[2])) < 32:
        raise VLSegError(f"--size {text}: write height x width, such as 256x320, each at least 32")
    return int(match[1]), int(match[2])


def _parser(use: str, description: str, leaks: bool) -> Parser:
    parser = Parser(f"data {use}", description, _specs())
    parser.add_argument("data", metavar="D", help="the data set; see below")
    parser.add_argument("--split", metavar="S", help="train, val, testA, ...; default: val, or the only one")
    parser.add_argument("--root", metavar="DIR", help="where named data sets lie; default: $VLSEG_DATA, else ./data")
    if leaks:
        what = "leave out images of any validation or test split of the RefCOCO family below the root"
        parser.add_argument("--without-leaks", action="store_true", help=what)
    return parser


def _specs() -> str:
    from vlseg.data.registry import KNOWN

    width = max(map(len, KNOWN))
    lines = (f"{known.name:<{width}}  {known.what}: {' '.join(known.splits)}".rstrip(": ") for known in KNOWN.values())
    return SPECS.format(names="\n  ".join(lines))


def _open(args: Namespace, pictures: bool) -> Dataset:
    from vlseg.data.registry import data_root, open_dataset, parse_spec

    root = Path(args.root) if args.root else None
    dataset = open_dataset(args.data, args.split, root, pictures=pictures)
    if not getattr(args, "without_leaks", False):
        return dataset
    from vlseg.data.leaks import without_leaks

    options = parse_spec(args.data)[1]
    return without_leaks(dataset, data_root(Path(options["root"]) if "root" in options else root))


def _info(argv: Sequence[str]) -> int:
    parser = _parser("info", "Count images, queries and masks; records that cannot be used are named.", leaks=True)
    parser.add_argument("--fingerprint", action="store_true", help="also the SHA-256 of all queries and masks")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse(argv)
    dataset = _open(args, pictures=False)
    problems, notes = dataset.problems, getattr(dataset, "notes", [])
    if not len(dataset) and not problems and not args.without_leaks:
        raise VLSegError(_empty(args.data))
    counts: dict[str, int] = dataset.counts()  # type: ignore[attr-defined]  # every data set of the registry has them
    kinds = {name.removeprefix("kind "): number for name, number in counts.items() if name.startswith("kind ")}
    numbers = {name: number for name, number in counts.items() if not name.startswith("kind ")}
    if not numbers["ignore regions"]:
        del numbers["ignore regions"]
    fingerprint = dataset.fingerprint if args.fingerprint else None
    if args.json:
        found = {"name": dataset.name, "split": dataset.split, "counts": numbers, "kinds": kinds, "notes": notes,
                 "problems": len(problems), "fingerprint": fingerprint}  # fmt: skip
        print(json.dumps(found))
    else:
        for name, number in numbers.items():
            print(f"{name:<12} {number}")
        if kinds:
            ordered = sorted(kinds.items(), key=lambda item: -item[1])
            print(f"{'kinds':<12} " + ", ".join(f"{kind} {number}" for kind, number in ordered))
        if dataset.split:
            print(f"{'split':<12} {dataset.split}")
        if fingerprint:
            print(f"{'fingerprint':<12} {fingerprint}")
        for note in notes:
            print(f"{'note':<12} {note}")
    _name(problems[:NAMED])
    if len(problems) > NAMED:
        print(f"... and {len(problems) - NAMED} more problems; `vlseg data check` names all", file=sys.stderr)
    return 1 if problems else 0


def _check(argv: Sequence[str]) -> int:
    args = _parser("check", "Read every record, image and mask; each broken one is named.", leaks=False).parse(argv)
    dataset = _open(args, pictures=True)
    from vlseg.data.jsonl import check_sample

    _name(dataset.problems)
    broken = 0
    for index in _progress(range(len(dataset))):
        try:
            problems = check_sample(dataset[index])
        except VLSegError as error:
            problems = [str(error)]
        broken += bool(problems)
        for problem in problems:
            where = _where(dataset, index)
            print(problem if problem.startswith(where) else f"{where}: {problem}", file=sys.stderr)
    if not len(dataset) and not dataset.problems:
        raise VLSegError(_empty(args.data))
    if _is_jsonl(args.data):
        lines = sum(re.search(r":\d+$", problem.where) is not None for problem in dataset.problems)
        print(f"{len(dataset) + lines} lines, {len(dataset.problems) + broken} broken")
    else:
        print(f"{len(dataset)} images, {broken} broken; {len(dataset.problems)} records left out")
    return 1 if broken or dataset.problems else 0


def _where(dataset: Dataset, index: int) -> str:
    """What a sample is called in messages: its line in a JSONL file, else its id."""
    records = getattr(dataset, "records", None)
    if records is None:
        return f"{dataset.name}: sample {index}"
    record, source = records[index], getattr(dataset, "source", dataset.name)
    return f"{source}:{record['line']}" if "line" in record else f"{source}: image {record['id']}"


def _convert(argv: Sequence[str]) -> int:
    parser = _parser("convert", "Write a data set as JSONL, or as Parquet that `datasets` loads.", leaks=True)
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument("--to", choices=["jsonl", "parquet"], default="jsonl", help="jsonl (default) or parquet")
    parser.add_argument("--copy-images", action="store_true", help="jsonl: copy the pictures to DIR/images as well")
    args = parser.parse(argv)
    if args.copy_images and args.to == "parquet":
        raise VLSegError("--copy-images: Parquet files hold the pictures anyway; leave it out")
    dataset = _open(args, pictures=True)
    if not len(dataset) and not dataset.problems:
        raise VLSegError(_empty(args.data))
    from vlseg.data.convert import to_jsonl, to_parquet

    if args.to == "jsonl":
        path, failed = to_jsonl(dataset, Path(args.out), args.copy_images, _progress)
    else:
        path, failed = to_parquet(dataset, Path(args.out), _progress)
    _name([*dataset.problems, *failed])
    for note in getattr(dataset, "notes", []):
        print(f"note: {note}", file=sys.stderr)
    print(path)
    return 1 if failed or dataset.problems else 0


def _name(problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(" ".join(f"{problem.where}: {problem.what}".split()), file=sys.stderr)


def _empty(spec: str) -> str:
    return f"{spec}: holds no {'line' if _is_jsonl(spec) else 'sample'}"


def _is_jsonl(spec: str) -> bool:
    return spec.endswith((".jsonl", ".ndjson"))


def _progress(steps: range) -> Iterable[int]:
    if not sys.stderr.isatty():
        return steps
    from tqdm import tqdm

    return tqdm(steps, unit="image", dynamic_ncols=True)
