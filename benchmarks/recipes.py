"""Every shipped recipe in every way to spread it over processes; writes docs/recipes.md.

    python benchmarks/recipes.py [--launch single cpu fsdp2 zero2 zero3] [--recipe lora full] [--json] [--out FILE]

Each cell is run, on CPUs and a small random checkpoint of a real class: one step, an interrupt, the same command once
more, a second step, and the result asked with `Segmenter`. Only a whole table is written to the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recipes.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]  # small versions of the recipes are those of the tests

import many_runs  # noqa: E402

LAUNCHES = {
    "single": ("1 process", 1),
    "cpu": ("2 processes (DDP)", 2),
    "fsdp2": ("FSDP2", 2),
    "zero2": ("ZeRO-2", 2),
    "zero3": ("ZeRO-3", 2),
}
MASKS = {"found", "absent", "failed"}


def cells(launch: str, recipes: list[str], source: Path, data: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What became of each recipe launched in that way, by name; one start of the processes runs them all.

    source: of a vision-language model; data: a JSONL; folder: an empty one for the runs. A cell holds "refused" (the
    words), or "processes", "resumed" (at its second step, to the weights of a run that was not interrupted),
    "reloaded", and the shares of weights and of the optimizer's moments that a process holds.
    """
    ranks = LAUNCHES[launch][1]
    jobs = [[name, str(folder / name), str(source), str(data), []] for name in recipes]
    told = many_runs.in_ranks(many_runs.in_two_goes, jobs, ranks, folder / "ranks", launch)
    made = {}
    for name in recipes:
        found = told[0][name]
        if "refused" in found:
            made[name] = {"refused": found["refused"]}
            continue
        shares = {
            key: max(rank[name][key] / rank[name][f"all_{key}"] for rank in told) for key in ("weights", "moments")
        }
        made[name] = {
            "processes": found["processes"],
            "sharding": found["sharding"],
            "resumed": found["begins"] == [0, 1] and len(found["losses"]) == 2 and not found["other"],
            "reloaded": reloads(folder / name / "final", data),
            **{key: round(share, 3) for key, share in shares.items()},
        }
    return made


def reloads(folder: Path, data: Path) -> bool:
    """Whether what a run has left answers."""
    from vlseg.segmenter import Segmenter

    answers = Segmenter(folder, device="cpu")(data.parent / "0.png", ["the red mug", "the big cat"])
    return len(answers) == 2 and {answer.status for answer in answers} <= MASKS and answers.size == (64, 64)


def shown(cell: dict[str, Any]) -> str:
    """A cell of the page."""
    if "refused" in cell:
        return "refused: " + cell["refused"].partition(": ")[2]
    words = ["ran", "resumed" if cell["resumed"] else "DID NOT RESUME"]
    words.append("reloaded" if cell["reloaded"] else "DID NOT RELOAD")
    if cell["sharding"] != "none":
        words.append(f"{cell['weights']:.0%} of the weights and {cell['moments']:.0%} of the moments a process")
    return ", ".join(words)


def page(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page as Markdown. table: cells by launch and recipe."""
    import torch
    import transformers

    names = list(next(iter(table.values())))
    head = ["recipe", *(LAUNCHES[launch][0] for launch in table)]
    rows = [[f"`{name}`", *(shown(table[launch][name]) for launch in table)] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    lines = [line.replace("| --- |", "|---|").replace(" --- |", "---|") for line in lines]
    return f"""# Recipes and ways to launch them

`vlseg train RECIPE --launch NAME --processes N`. Every cell was run by `python benchmarks/recipes.py`, with 2 processes
over gloo on a CPU where not said otherwise, on a small random Qwen2.5-VL of the real class: a step, an interrupt, the
same command again, a second step, and the checkpoint in `final/` asked with `Segmenter`. It shows that the machinery
holds, not how well a model learns. Transformers {transformers.__version__}, torch {torch.__version__.split("+")[0]}.

{chr(10).join(lines)}

- **of the weights, of the moments**: the share of all weights, and of the optimizer's moments for those that are
  trained, that the fuller of the two processes holds, counted in the running processes. ZeRO-2 keeps weights whole.
- What is refused is refused in one line before anything is loaded.
- `adalora-qat` is two runs; where the first is refused, the first can be run with `--launch ddp`, and the second
  started from its `first/final`.
"""


def main() -> None:
    """Run the table and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", nargs="+", choices=LAUNCHES, default=list(LAUNCHES))
    parser.add_argument("--recipe", nargs="+", choices=many_runs.RECIPES, default=list(many_runs.RECIPES))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    parser.add_argument("--out", type=Path, default=PAGE)
    args = parser.parse_args()
    from blocks import write_blocks

    from vlseg.models.specimens import write_specimen

    table = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source, data = write_specimen("qwen2.5-vl", folder / "vlm"), write_blocks(folder / "blocks")
        for launch in args.launch:
            begin = time.perf_counter()
            table[launch] = cells(launch, args.recipe, source, data, folder / launch)
            print(f"{launch}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if args.json:
        print(json.dumps(table))
    else:
        for launch, found in table.items():
            for name, cell in found.items():
                print(f"{launch:8} {name:12} {shown(cell)}")
    if args.launch == list(LAUNCHES) and args.recipe == list(many_runs.RECIPES):
        args.out.write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    main()
