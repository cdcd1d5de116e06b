"""Does the whole path learn photographs? COCO instances as class queries, by way of JSONL, until the training set sits.

The embedded model, which knows drawings only, is fine-tuned whole on N photographs and scored on the same ones: mIoU of
at least 0.8 says that pictures, masks, words, losses and answers belong together at every size and shape. It says
nothing about photographs it has not seen.

    python benchmarks/overfit.py ../shared/data/coco-small                       all of it: 1-2 hours on a CPU core
    python benchmarks/overfit.py FOLDER --photos 6 --sides 256 --steps 200       the same, small

Most of the steps are taken on small pictures, the last ones at full size, where the score is taken: a run for each
size, which begins with the weights of the one before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import machine

from vlseg.cli.train import find_config
from vlseg.data.convert import to_jsonl
from vlseg.data.files import write_whole
from vlseg.data.registry import open_dataset
from vlseg.metrics.referring import summary
from vlseg.systems.registry import EMBEDDED
from vlseg.types import VLSegError

GOAL = 0.8
# As the embedded model was trained: masks lead, and thin parts live along their outlines.
LOSSES = ["loss.bce=4", "loss.dice=2.5", "loss.edge=1.5", "loss.ground=1.5", "loss.target=0.5"]
SHOWN = ("mIoU", "cIoU", "P@0.5", "boundary-IoU", "T-acc")


def first_photos(data: str, count: int, folder: Path) -> Path:
    """The first N pictures of a data set that ask for something, as JSONL in the folder."""
    whole, failed = to_jsonl(open_dataset(data), folder / "all")
    if failed:
        raise VLSegError(f"{data}: {failed[0]}")
    lines = [line for line in whole.read_text(encoding="utf-8").splitlines() if json.loads(line)["queries"]]
    if len(lines) < count:
        raise VLSegError(f"{data}: has {len(lines)} pictures with a query, {count} are asked for")
    path = folder / "all" / f"first-{count}.jsonl"  # beside the whole, for paths are relative
    write_whole(path, "".join(f"{line}\n" for line in lines[:count]))
    return path


def overrides(data: Path, out: Path, model: str, side: int, steps: int, args: argparse.Namespace) -> list[str]:
    """Settings on top of the recipe `full`: higher rates than for a pretrained model; scored four times."""
    return [
        f"out={out}",
        f"model={model}",
        f"data.train={data}",
        f"data.val={data}",
        f"data.val_limit={args.photos}",
        f"steps={steps}",
        f"data.images={args.images}",
        f"data.queries={args.queries}",
        f"model.area={side**2}",
        "model.checkpointing=false",
        "data.leaks=keep",
        "data.workers=0",
        f"eval_every={max(25, steps // 4)}",
        f"grid_every={steps}",
        "save_every=25",
        "keep=1",
        "trackers=[]",
        "optim.lr=1.5e-3",
        "optim.matrix_lr=0.01",
        "optim.head_scale=1",
        "optim.embedding_scale=4",
        "optim.schedule=constant-decay",
        "optim.decay=0.4",
        "optim.warmup=20",
        f"threads={args.threads}",
        *LOSSES,
    ]


def score(folder: Path, data: Path, photos: int, work: Path) -> dict[str, float]:
    """Scores of a checkpoint on the photographs."""
    from vlseg.evaluation.ranks import Ranks
    from vlseg.systems.native import NativeSystem
    from vlseg.training.validation import score_dataset

    system = NativeSystem.from_pretrained(folder, "cpu")
    return summary(score_dataset(system, open_dataset(str(data)), photos, Ranks(), work / ".scores"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help="COCO instances: a folder with instances.json and images/, or any other data set")
    parser.add_argument("--photos", type=int, default=120)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512], help="of the model's input, run after run")
    parser.add_argument("--steps", type=int, nargs="+", default=[750, 120], help="of each run")
    parser.add_argument("--images", type=int, default=8, help="pictures a step")
    parser.add_argument("--queries", type=int, default=8, help="class queries of a picture at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("out/overfit"), help="the run; the same call goes on with it")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()
    if len(args.sides) != len(args.steps):
        parser.error("--sides and --steps: as many numbers each")
    data = first_photos(args.data, args.photos, args.work)
    start, model, curve = time.perf_counter(), EMBEDDED, {}
    for number, (side, steps) in enumerate(zip(args.sides, args.steps, strict=True), 1):
        out = args.work / f"run-{args.photos}-{number}-{side}-{steps}"
        settings = overrides(data, out, model, side, steps, args)
        command = [sys.executable, "-m", "vlseg.cli", "train", str(find_config("full")), *settings]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise VLSegError(f"{out}: the run ended before its last step; the same command goes on with it")
        lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        curve |= {f"{side} px, {line['step']}": line["val"].get("mIoU", 0.0) for line in lines if "val" in line}
        model = str(out / "final")
    seconds = time.perf_counter() - start
    found = score(Path(model), data, args.photos, args.work)
    told: dict[str, Any] = {"photos": args.photos, "sides": args.sides, "steps": args.steps, "seconds": round(seconds),
                            "curve": curve, "scores": found, "goal": GOAL, "reached": found.get("mIoU", 0.0) >= GOAL,
                            "machine": machine()}  # fmt: skip
    if args.json:
        print(json.dumps(told))
        return
    print(f"{args.photos} photographs at about {args.sides[-1]} px squared, {sum(args.steps)} steps, {seconds:.0f} s")
    print("mIoU by step: " + ", ".join(f"{step}: {value:.3f}" for step, value in curve.items()))
    print("  ".join(f"{name} {found[name]:.3f}" for name in SHOWN if name in found))
    print(f"mIoU >= {GOAL} on the training photographs: {'reached' if told['reached'] else 'missed'}")


if __name__ == "__main__":
    main()
