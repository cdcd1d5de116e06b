"""`vlseg data render | info | check`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vlseg.cli.parsing import Parser, convert, nearest, whole_number
from vlseg.types import VLSegError

USES = {
    "render": "write scenes of a procedural world: vlseg data render WORLD --out DIR --n N --seed S",
    "info": "count what a JSONL file holds: vlseg data info FILE.jsonl",
    "check": "read every line, image and mask: vlseg data check FILE.jsonl",
}


def run(argv: Sequence[str]) -> int:
    """The verb; returns the exit code."""
    if not argv:
        raise VLSegError(f"vlseg data: say what to do: {', '.join(USES)}; see `vlseg data --help`")
    if argv[0] in ("-h", "--help"):
        print("usage: vlseg data USE ...\n\n" + "\n".join(f"  {use:<7} {what}" for use, what in USES.items()))
        return 0
    use, rest = argv[0], argv[1:]
    if use not in USES:
        raise VLSegError(f"vlseg data: no use {use!r}{nearest(use, list(USES)) or '; there are ' + ', '.join(USES)}")
    return {"render": _render, "info": _info, "check": _check}[use](rest)


def _render(argv: Sequence[str]) -> int:
    parser = Parser("data render", "Write scenes with exact masks: OUT/images and OUT/data.jsonl.")
    parser.add_argument("world", metavar="WORLD", help="sprites")
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


def _info(argv: Sequence[str]) -> int:
    parser = Parser("data info", "Count images, queries and masks of a JSONL file; broken lines are named.")
    parser.add_argument("file", metavar="FILE.jsonl")
    path = parser.parse(argv).file
    from vlseg.data.jsonl import scan

    counts, kinds, broken = Counter[str](), Counter[str](), 0
    for _, sample in scan(path):
        if isinstance(sample, VLSegError):
            broken += 1
            print(sample, file=sys.stderr)
            continue
        counts["images"] += 1
        for query in sample.queries:
            counts["queries"] += 1
            labelled = "unlabelled" if query.masks is None else "present" if query.masks else "absent"
            counts[labelled] += 1
            counts["masks"] += len(query.masks or [])
            counts["distractors"] += len(query.distractors)
            kinds[query.kind or "(none)"] += 1
    if not counts and not broken:
        raise VLSegError(f"{path}: holds no line")
    for name in ("images", "queries", "present", "absent", "unlabelled", "masks", "distractors"):
        print(f"{name:<12} {counts[name]}")
    if set(kinds) != {"(none)"}:
        print(f"{'kinds':<12} " + ", ".join(f"{kind} {number}" for kind, number in kinds.most_common()))
    return 1 if broken else 0


def _check(argv: Sequence[str]) -> int:
    parser = Parser("data check", "Read every line, image and mask of a JSONL file; each broken line is named.")
    parser.add_argument("file", metavar="FILE.jsonl")
    path = parser.parse(argv).file
    from vlseg.data.jsonl import check_sample, scan

    lines = broken = 0
    for number, sample in scan(path):
        lines += 1
        if isinstance(sample, VLSegError):
            problems = [str(sample)]
        else:
            problems = [f"{path}:{number}: {problem}" for problem in check_sample(sample)]
        broken += bool(problems)
        for problem in problems:
            print(problem, file=sys.stderr)
    if not lines:
        raise VLSegError(f"{path}: holds no line")
    print(f"{lines} lines, {broken} broken")
    return 1 if broken else 0
