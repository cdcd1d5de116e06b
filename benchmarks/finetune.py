"""What each recipe makes of the embedded model on the geometry world, which it has not seen, in the same steps.

Every run goes through `vlseg train` as a user would start it, so a stopped one goes on where it was; its scores are
kept as JSON beside it and not made again.

    python benchmarks/finetune.py --only full          one recipe
    python benchmarks/finetune.py                      all that are missing, then the table
    python benchmarks/finetune.py --table --docs docs/fine-tuning.md
    python benchmarks/finetune.py --only lora --set adapter.rank=64 optim.matrix_lr=0.01 --work out/other
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pages import replace_block
from timing import machine

from vlseg.cli.train import find_config
from vlseg.config import load
from vlseg.data.files import write_whole
from vlseg.data.registry import open_dataset
from vlseg.evaluation.ranks import Ranks
from vlseg.export.models import export_model
from vlseg.metrics.case import Case
from vlseg.metrics.referring import by_kind, summary
from vlseg.systems.native import NativeSystem
from vlseg.systems.registry import EMBEDDED, WEIGHTS
from vlseg.training.adapters import attach, count_parameters
from vlseg.training.chain import first_run
from vlseg.training.config import TrainConfig
from vlseg.training.qat import prepare
from vlseg.training.start import build_model
from vlseg.training.validation import score_dataset
from vlseg.types import VLSegError

GOAL, NEAR = 0.80, 0.03  # Buffered IoU of full fine-tuning; how far the others may be from it
SHOWN = ("mIoU", "buffered-IoU", "P@0.5", "N-acc")
TRAIN_SEED, VAL_SEED, TEST_SEED = 1, 900_001, 910_001
VAL_SCENES = 60

# What the embedded model was trained with; thin strokes live along their outlines.
LOSSES = ["loss.bce=4", "loss.dice=2.5", "loss.edge=1.5", "loss.ground=1.5", "loss.target=0.5"]

# A model of 11 million weights that has seen drawings only: it has more to learn than a large one, so rates are higher
# than in the recipes, which are meant for pretrained models, and matrices follow Muon.
WHOLE = ["optim.lr=1.5e-3", "optim.matrix_lr=0.01", "optim.embedding_scale=4", "optim.head_scale=1"]
# Muon's steps have one size, and what one does to a factor counts for more as the other grows: a constant 0.01 is
# nearly as fast as full fine-tuning for 100 steps, and then gets stuck (see docs/fine-tuning.md).
FACTORS = ["optim.lr=2e-3", "optim.matrix_lr=0.005", "optim.embedding_scale=4", "optim.head_scale=1"]
# AdaLoRA's singular values begin at zero and follow AdamW: at 2e-3 it stays behind LoRA from the first steps.
RANKS = ["optim.lr=8e-3", "optim.matrix_lr=0.007", "optim.schedule=cosine", "optim.head_scale=1"]
RATES: dict[str, list[str]] = {
    "full": WHOLE,
    "lora": FACTORS,
    "adalora": RANKS,
    "qlora": FACTORS,
    "qat": WHOLE,
    "adalora-qat": [
        "optim.lr=7e-4",
        "optim.matrix_lr=0.005",
        "optim.embedding_scale=4",
        "optim.head_scale=1",
        "first.optim={lr: 8.0e-3, matrix_lr: 0.007, embedding_scale: 1.0, schedule: cosine}",
    ],
}


def overrides(name: str, args: argparse.Namespace) -> list[str]:
    """The settings of a recipe's run on top of its file."""
    height, width = args.size
    shape = f"size={height}x{width}&queries={args.queries}"
    settings = [
        f"out={args.work / name}",
        f"model={start(args)}",
        f"steps={args.steps}",
        f"data.train=geometry?n={args.steps * args.images}&seed={TRAIN_SEED}&{shape}",
        f"data.val=geometry?n={VAL_SCENES}&seed={VAL_SEED}&{shape}",
        f"data.images={args.images}",
        f"data.queries={args.queries}",
        f"model.area={args.area}",
        "model.checkpointing=false",
        "data.workers=0",
        "eval_every=0",
        f"grid_every={args.steps}",
        "save_every=25",
        "keep=1",
        "log_every=10",
        "trackers=[]",
        "optim.warmup=20",
        "optim.schedule=constant-decay",
        "optim.decay=0.4",
        "threads=1",
        *LOSSES,
        *RATES[name],
    ]
    if name.endswith("qat"):
        settings.append("qat.measure=false")  # the scores below are of the exported int4 checkpoint
    if name == "adalora-qat":  # both stages together take as many steps as any other run
        second = args.steps // 5
        settings += [f"steps={second}", f"first.steps={args.steps - second}"]
    return [*settings, *args.set]


def start(args: argparse.Namespace) -> Path:
    """A copy of the embedded model, made once: runs of other days start from the same weights, whatever is shipped."""
    folder: Path = args.work / "start"
    if not folder.exists():
        partial = folder.with_name(".start.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(WEIGHTS / EMBEDDED, partial)
        partial.rename(folder)
    return folder


def configured(name: str, args: argparse.Namespace) -> TrainConfig:
    """The configuration that `vlseg train` reads."""
    return load(TrainConfig, find_config(name), overrides(name, args))


def trained_weights(config: TrainConfig) -> int:
    """How many weights a run trains at most (of two runs one after the other: the larger number)."""
    before = first_run(config)
    first = 0 if before is None else trained_weights(before)
    start = build_model(config)
    rounded = prepare(start.model, config.qat) if config.qat.kind != "none" else []
    adapted = config.adapter.kind != "none"
    model = attach(start.model, config, start.new, rounded) if adapted else start.model
    return max(first, sum(trained for trained, _ in count_parameters(model).values()))


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder, not in those inside it."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def scores(folder: Path, args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of a checkpoint on scenes that no run has seen, and Buffered IoU by kind of expression."""
    height, width = args.size
    data = open_dataset(f"geometry?n={args.scenes}&seed={TEST_SEED}&size={height}x{width}&queries=8")
    system = NativeSystem.from_pretrained(folder, "cpu")
    system.processor.image["area"] = args.area
    cases: list[Case] = score_dataset(system, data, None, Ranks(), args.work / ".scores")
    kinds = {kind: found.get("buffered-IoU", found.get("N-acc", 0.0)) for kind, found in by_kind(cases).items()}
    return summary(cases), kinds


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train, export, score; what came of it."""
    out = args.work / name
    began = time.perf_counter()
    command = [sys.executable, "-m", "vlseg.cli", "train", str(find_config(name)), *overrides(name, args)]
    if subprocess.run(command).returncode:
        raise VLSegError(f"{name}: the run ended before its last step; the same command goes on with it")
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - began), **told(name, args)}
    result["trained"] = trained_weights(configured(name, args))
    result["adapter_bytes"] = size_of(out / "final" / "adapter")
    for form, folder in forms(name, out).items():
        found, kinds = scores(folder, args)
        result[form] = {"bytes": size_of(folder), "scores": found, "kinds": kinds}
    return result


def forms(name: str, out: Path) -> dict[str, Path]:
    """The checkpoints of a finished run that are scored; of quantisation-aware runs also what they are for."""
    folders = {"float": out / "final"}
    if name.endswith("qat"):
        folders["int4"] = out / "int4"
        if not folders["int4"].exists():
            export_model("int4", out, folders["int4"])
    return folders


def told(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What a result depends on."""
    paths = ("out=", "model=")  # where they lie makes no difference
    settings = [s for s in overrides(name, args) if not s.startswith(paths)] if name in RATES else []
    names = ("steps", "images", "queries", "area", "scenes")
    shape = {name: getattr(args, name) for name in names} | {"size": list(args.size)}
    return {**shape, "settings": settings}


def kept(file: Path, same: dict[str, Any]) -> dict[str, Any] | None:
    """A result of the same settings from an earlier call; None where there is none."""
    if not file.exists():
        return None
    result: dict[str, Any] = json.loads(file.read_text())
    return result if {key: result.get(key) for key in same} == same else None


def collect(args: argparse.Namespace, train: Sequence[str]) -> dict[str, Any]:
    """Results by recipe, "before" first. train: recipes to run where their result is missing."""
    results: dict[str, Any] = {}
    for name in ("before", *RATES):
        file = args.work / f"{name}.json"
        result = kept(file, told(name, args))
        if result is None and name == "before" and not args.table:
            folder = start(args)
            found, kinds = scores(folder, args)
            result = {**told(name, args), "float": {"bytes": size_of(folder), "scores": found, "kinds": kinds}}
        elif result is None and name in train:
            result = run(name, args)
        if result is None:
            continue
        result.setdefault("machine", machine())
        write_whole(file, json.dumps(result, indent=1) + "\n")
        results[name] = result
        print(f"{file}: {shown(result['float']['scores'])}", file=sys.stderr)
    return results


def shown(found: dict[str, float]) -> dict[str, float]:
    """The scores of the table, rounded."""
    return {name: round(found[name], 3) for name in SHOWN if name in found}


def verdicts(results: dict[str, Any]) -> list[str]:
    """Whether the goals are met, one sentence each."""
    buffered = {name: r["float"]["scores"].get("buffered-IoU", 0.0) for name, r in results.items()}
    if "full" not in buffered:
        return []
    met = "reached" if buffered["full"] >= GOAL else "missed"
    lines = [f"Full fine-tuning: Buffered IoU {buffered['full']:.3f}; the goal of {GOAL:.2f} is {met}."]
    for name in ("lora", "adalora", "qlora", "qat", "adalora-qat"):
        if name in buffered:
            gap = buffered[name] - buffered["full"]
            near = "within" if gap >= -NEAR else "not within"
            lines.append(f"{name}: {100 * gap:+.1f} points against full, {near} {100 * NEAR:.0f}.")
    return lines


def page(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    rows = [
        "| recipe | matrices by | trained weights | adapter MB | model MB | " + " | ".join(SHOWN) + " |",
        "|---|---|---|---|---|" + "---|" * len(SHOWN),
    ]
    for name, result in results.items():
        for form in ("float", "int4"):
            if form not in result:
                continue
            trained = f"{result['trained']:,}" if "trained" in result else ""
            adapter = f"{result['adapter_bytes'] / 1e6:.1f}" if result.get("adapter_bytes") else ""
            label = name if form == "float" else f"{name}, exported as int4"
            cells = [f"{result[form]['scores'].get(score, float('nan')):.3f}" for score in SHOWN]
            rule = "Muon" if "optim.matrix_lr" in " ".join(result["settings"]) else "AdamW" if trained else ""
            row = [label, rule, trained, adapter, f"{result[form]['bytes'] / 1e6:.1f}", *cells]
            rows.append(f"| {' | '.join(row)} |")
    any_result = next(iter(results.values()))
    height, width = any_result["size"]
    side = round(any_result["area"] ** 0.5)
    head = (
        f"{any_result['steps']} steps of {any_result['images']} pictures ({height} x {width} px, which the model "
        f"enlarges to {side} x {side}; up to {any_result['queries']} expressions each) for every recipe; scores on "
        f"{any_result['scenes']} unseen diagrams of that size; Buffered IoU by definition A with r = 3 pixels of the "
        f"diagram. Trained on one core of {any_result['machine']['cpu']}."
    )
    return "\n".join([head, "", *rows, "", *(f"- {line}" for line in verdicts(results))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(RATES), default=list(RATES), help="recipes to run")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="to try other settings; see --work")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--images", type=int, default=16, help="pictures a step")
    parser.add_argument("--queries", type=int, default=16, help="expressions a picture")
    parser.add_argument("--area", type=int, default=160 * 160, help="pixels to which the model enlarges a diagram")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 96), metavar=("H", "W"), help="of the diagrams")
    parser.add_argument("--scenes", type=int, default=120, help="unseen diagrams to score on")
    parser.add_argument("--work", type=Path, default=Path("out/finetune"), help="where runs and results are kept")
    parser.add_argument("--table", action="store_true", help="run nothing; the table of what is there")
    parser.add_argument("--docs", type=Path, help="a page whose `finetune` block gets the table")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()
    args.size = tuple(args.size)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    results = collect(args, [] if args.table else args.only)
    if not results:
        raise VLSegError(f"{args.work}: no result of these settings there; leave out --table to run them")
    text = page(results)
    if args.docs:
        replace_block(args.docs, "finetune", text)
    print(json.dumps({"results": results, "verdicts": verdicts(results)}) if args.json else text)


if __name__ == "__main__":
    main()
