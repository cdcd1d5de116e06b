"""Path mode learned further by reinforcement against by supervision, at equal steps, from one model; three seeds.

    python benchmarks/path_reinforce.py --start FOLDER --out runs/path_reinforce [--steps 60] [--write docs/paths.md]

FOLDER is a checkpoint that writes paths. From it, for every seed, one run learns from its own paths
(`configs/train/reinforce.yaml`) and one goes on as it was trained (all weights, all losses, targets by the codec), on
the same scenes, with the same optimizer. All are then asked for masks and for paths on unseen scenes, with rejection
off, so that a score is that of a mask. Killed at any instant, the same command goes on. `--write` puts the table
between its two marks in a page.

Intervals are those of 95 % by bootstrap over images, seeds pooled; differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

SEED = 950_001  # of the unseen scenes; training uses seeds below 1000
WAYS = ("supervised", "reinforced")
MARKS = ("<!-- path_reinforce: begin -->", "<!-- path_reinforce: end -->")
RECIPE = Path(__file__).resolve().parents[1] / "configs" / "train" / "reinforce.yaml"


def settings(args: argparse.Namespace, way: str, seed: int) -> Any:
    """The configuration of one run."""
    from vlseg.config import load
    from vlseg.training.config import TrainConfig

    changes = [f"out={args.out / f'{way}-{seed}'}", f"model.source={args.start}", f"steps={args.steps}"]
    changes += [f"seed={seed}", f"data.seed={31 + seed}", "threads=1", "save_every=10", "log_every=1", "trackers=[]"]
    changes += ["data.val_scenes=1"]
    if way == "supervised":
        # codec, limit and box are the start's, as they are for the other way
        changes += ["reinforce.on=false", "paths.on=true", "paths.price=8e-3", "loss.path_spread=0.7"]
    return load(TrainConfig, RECIPE, [*changes, *args.set])


def asked(folder: Path, args: argparse.Namespace, name: str) -> dict[str, list[Any]]:
    """The cases of a checkpoint by mode, asked once and kept."""
    from vlseg.data.registry import open_dataset
    from vlseg.evaluation.predictor import SystemPredictor
    from vlseg.evaluation.run import Settings, evaluate
    from vlseg.evaluation.samples import read_samples, write_samples
    from vlseg.systems.native import NativeSystem

    data = open_dataset(f"sprites?n={args.scenes}&seed={SEED}&size={args.size}x{args.size}&queries=8")
    system, found = None, {}
    for mode in ("mask", "path"):
        kept = args.out / "cases" / f"{name}-{mode}-{args.scenes}-{args.size}"
        if not (kept / "samples.parquet").exists():
            system = system or NativeSystem.from_pretrained(folder, dtype="float32", name=name)
            predictor = SystemPredictor(system, 0.0, paths=mode == "path")
            outcome = evaluate(data, predictor, Settings(batch=8))
            assert outcome is not None
            assert not any(record.crashed for record in outcome.records)
            kept.mkdir(parents=True, exist_ok=True)
            write_samples(kept, outcome.records)
        found[mode] = [record.case for record in read_samples(kept) if not record.case.absent]
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All numbers as plain data; what is not there yet is trained and asked first."""
    from accelerate.state import AcceleratorState

    from vlseg.metrics.bootstrap import paired_differences, with_intervals
    from vlseg.training.loop import train

    cases: dict[str, list[dict[str, list[Any]]]] = {"start": [asked(Path(args.start), args, "start")]}
    minutes: dict[str, float] = dict.fromkeys(WAYS, 0.0)
    for seed in range(args.seeds):
        for way in WAYS:
            config = settings(args, way, seed)
            final = Path(config.out) / "final"
            if not final.exists():
                start = time.process_time()
                AcceleratorState._reset_state(True)
                train(config)
                took = (time.process_time() - start) / 60
                (final.parent / "minutes.json").write_text(json.dumps(took))
            minutes[way] += json.loads((final.parent / "minutes.json").read_text()) / args.seeds
            cases.setdefault(way, []).append(asked(final, args, f"{way}-{seed}"))
    result: dict[str, Any] = {"steps": args.steps, "seeds": args.seeds, "scenes": args.scenes, "size": args.size}
    result["cases"] = len(cases["start"][0]["path"])
    result["cpu minutes a run"] = {way: round(value, 1) for way, value in minutes.items()}
    for mode in ("mask", "path"):
        for way, runs in cases.items():
            pooled = [case for run in runs for case in run[mode]]
            scores = with_intervals(pooled, ranking=False)
            each = [with_intervals(run[mode], resamples=50, ranking=False) for run in runs]
            result[f"{mode}, {way}"] = {
                name: {**scores[name], "seeds": [round(one[name]["value"], 4) for one in each]}
                for name in ("mIoU", "boundary-IoU", "P@0.5")
            }
        pairs = {"reinforced - supervised": ("supervised", "reinforced"), "reinforced - start": ("start", "reinforced")}
        for name, (a, b) in pairs.items():
            before = [case for run in cases[a] for case in run[mode]] * (args.seeds if a == "start" else 1)
            after = [case for run in cases[b] for case in run[mode]]
            found = paired_differences(before, after)
            result[f"{mode}, {name}"] = {score: found[score] for score in ("mIoU", "boundary-IoU", "P@0.5")}
    return result


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| | mIoU | boundary IoU | P@0.5 | mIoU of each seed |", "|---|---|---|---|---|"]
    for name, scores in result.items():
        if not isinstance(scores, dict) or "mIoU" not in scores:
            continue
        cells = []
        for entry in scores.values():
            low, high = entry["ci95"]
            value = f"{entry['value']:.3f}" if "value" in entry else f"{entry['difference']:+.3f}"
            cells.append(
                f"{value} ({low:+.3f}, {high:+.3f})" if "difference" in entry else f"{value} ({low:.3f}–{high:.3f})"
            )
        seeds = " ".join(f"{value:.3f}" for value in scores["mIoU"].get("seeds", []))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {seeds} |")
    took = ", ".join(f"{way} {value:.1f}" for way, value in result["cpu minutes a run"].items())
    lines += [
        "",
        f"{result['steps']} steps, {result['seeds']} seeds; {result['cases']} queries with a target in "
        f"{result['scenes']} unseen scenes of {result['size']} px, rejection off. CPU minutes a run: {took}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--start", required=True, help="a checkpoint folder that writes paths")
    parser.add_argument("--out", type=Path, default=Path("runs/path_reinforce"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--size", type=int, default=128, help="side of the unseen scenes in pixels")
    parser.add_argument("--set", nargs="*", default=[], metavar="a.b=c", help="settings of all runs")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between its marks in this page")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        import torch

        torch.set_num_threads(1)
        result = measure(args)
    if args.write:
        from path_model import write

        write(args.write, table(result), MARKS)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
