"""Label, train, score, label again: a model improves on pictures that nobody has annotated yet.

    python examples/label_loop.py --images photos/ --queries words.txt --labelled mine.jsonl --val val.jsonl \\
        --model vlseg-mini --config lora --rounds 3 --out loop

A round, in OUT/round-N:

1. `vlseg label` with the best model so far, from the second round on against the one it came from: where the two differ
   pixels are ignored, or the label is left out.
2. The pictures that the ranking puts first are copied into next.jsonl, for a person. Annotate them (`vlseg export
   labelstudio` and `cvat` open them in such tools), add them to the file of --labelled, and the next round has them.
3. `vlseg train` on file of --labelled and on the pseudo-labels of all other pictures. Words behind the options go to
   it as they are: steps=500 optim.lr=1e-4
4. `vlseg eval` on --val. The new model stays where it scores higher, else the best so far goes into the next round.

OUT/loop.json says what came of each round. Stopped, the same command goes on from the step that it had come to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the rounds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder or glob of pictures")
    parser.add_argument("--queries", required=True, help="what to label: a query a line, or JSONL")
    parser.add_argument("--labelled", type=Path, required=True, help="JSONL that a person has labelled")
    parser.add_argument("--val", type=Path, required=True, help="JSONL to score on; nothing of it is trained on")
    parser.add_argument("--model", default="vlseg-mini", help="to start from")
    parser.add_argument("--config", default="lora", help="of `vlseg train` (default lora)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the steps on pseudo-labels (default 0.5)")
    parser.add_argument("--min-confidence", default="0.8", help="of a pseudo-label (default 0.8)")
    parser.add_argument("--annotate", type=int, default=20, help="pictures a round for a person (default 20)")
    parser.add_argument("--metric", default="mIoU", help="of the report that decides (default mIoU)")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, required=True)
    args, settings = parser.parse_known_args()

    best, before = args.model, None
    score = evaluate(best, args, args.out / "start")
    history: list[dict[str, Any]] = [{"round": 0, "model": best, args.metric: score}]
    print(f"start: {args.metric} {score:.4f}", flush=True)
    for number in range(1, args.rounds + 1):
        folder = args.out / f"round-{number}"
        labels = label(best, before, args, folder / "labels")
        chosen = hand_over(folder, args.annotate, args.labelled)
        pseudo = pseudo_labels(labels, folder / "pseudo.jsonl", chosen, args.labelled)
        new = train(best, pseudo, args, settings, folder / "run")
        fresh = evaluate(new, args, folder / "report")
        kept = fresh > score
        history.append({"round": number, "model": new, args.metric: fresh, "kept": kept, "pseudo-labels": pseudo[1],
                        "for a person": len(chosen)})  # fmt: skip
        if kept:
            best, before, score = new, best, fresh
        (args.out / "loop.json").write_text(json.dumps({"best": best, "rounds": history}, indent=1) + "\n")
        print(f"round {number}: {args.metric} {fresh:.4f}, {'kept' if kept else 'not kept'}", flush=True)
    print(f"best: {best} ({args.metric} {score:.4f})")
    return 0


def vlseg(*words: Any, may_fail: bool = False) -> None:
    """One verb in a process of its own, which gives its memory back. may_fail: single items may (exit code 1)."""
    code = subprocess.run([sys.executable, "-m", "vlseg.cli", *map(str, words)], check=False).returncode
    if code and not (may_fail and code == 1):
        raise SystemExit(f"vlseg {words[0]} ended with {code}")


def label(model: str, before: str | None, args: argparse.Namespace, out: Path) -> Path:
    """Pseudo-labels of all pictures."""
    options = ["--against", before] if before else []
    options += ["--device", args.device] if args.device else []
    vlseg("label", args.images, "--model", model, "--queries", args.queries, "--min-confidence", args.min_confidence,
          "--out", out, *options, may_fail=True)  # fmt: skip
    return out / "labels.jsonl"


def hand_over(folder: Path, count: int, labelled: Path) -> set[str]:
    """Write next.jsonl with `count` pictures, those of the most uncertain queries that no person has labelled; returns
    what labels.jsonl calls them."""
    labels = folder / "labels" / "labels.jsonl"
    rows = read(labels)
    of_image = {(labels.parent / row["image"]).resolve(): row for row in rows}
    known = by_hand(labelled)
    of_image = {path: row for path, row in of_image.items() if path not in known}
    chosen: dict[str, dict[str, Any]] = {}
    for row in read(labels.parent / "ranking.jsonl"):
        line = of_image.get(Path(row["image"]).resolve())
        if line is not None and len(chosen) < count:
            chosen.setdefault(line["image"], line)
    write(folder / "next.jsonl", [moved(line, labels.parent) for line in chosen.values()])
    return set(chosen)


def pseudo_labels(labels: Path, file: Path, chosen: set[str], labelled: Path) -> tuple[Path, int]:
    """Write the labels that are trained on: not those of pictures that a person has labelled or will; and count them."""  # noqa: E501
    known = {(labelled.parent / line["image"]).resolve() for line in read(labelled)}
    lines = [line for line in read(labels) if line["image"] not in chosen]
    lines = [line for line in lines if (labels.parent / line["image"]).resolve() not in known]
    lines = [line for line in lines if any("masks" in query for query in line["queries"])]
    write(file, [moved(line, labels.parent) for line in lines])
    return file, sum("masks" in query for line in lines for query in line["queries"])


def by_hand(labelled: Path) -> set[Path]:
    """The pictures that a person has labelled."""
    return {(labelled.parent / line["image"]).resolve() for line in read(labelled)}


def train(model: str, pseudo: tuple[Path, int], args: argparse.Namespace, settings: list[str], out: Path) -> str:
    """A run on both files; returns its checkpoint. One that is there already stays as it is."""
    if (out / "final" / "config.json").exists():
        return str(out / "final")
    parts = [{"data": str(args.labelled), "weight": 1 - args.share if pseudo[1] else 1.0}]
    if pseudo[1]:
        parts.append({"data": str(pseudo[0]), "weight": args.share})
    vlseg("train", args.config, f"model={model}", f"out={out}", f"data.mix={json.dumps(parts)}", *settings)
    return str(out / "final")


def evaluate(model: str, args: argparse.Namespace, out: Path) -> float:
    """The metric that decides, on --val."""
    options = ["--device", args.device] if args.device else []
    if not (out / "report.json").exists():
        vlseg("eval", "--model", model, "--data", args.val, "--out", out, *options, may_fail=True)
    report = json.loads((out / "report.json").read_text())
    return float(report["metrics"][args.metric]["value"])


def moved(line: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A line for a file in another folder."""
    return {**line, "image": str((folder / line["image"]).resolve())}


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(file: Path, lines: list[dict[str, Any]]) -> None:
    """A JSONL file."""
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
