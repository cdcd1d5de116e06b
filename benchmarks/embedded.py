"""Score the embedded model on unseen scenes: by kind, by size, on a held-out style, and with parts switched off.

    python benchmarks/embedded.py [--model FOLDER] [--scenes 500] [--json]

All scores are those of `vlseg eval` (docs/evaluation.md): free-running, at the scene's own 256 px, with 95 % intervals
by bootstrap over images. Objects of less than 24 px are counted apart: a stride-4 map cannot draw them. `--calibrate`
first fits the presence score on other scenes and writes it into the checkpoint; `--card` writes `scores.json` beside
the weights, for `card.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = {"scenes": 910_001, "held-out style": 920_001, "parts": 930_001, "calibration": 940_001}
SIZE, SMALL, QUERIES = (256, 256), 24, 8


def unseen(name: str, count: int, styles: str = "train") -> Any:
    """Scenes as a data set; the training stream uses seed 1."""
    from vlseg.data.registry import open_dataset

    size = f"{SIZE[0]}x{SIZE[1]}"
    return open_dataset(f"sprites?n={count}&seed={SEEDS[name]}&size={size}&queries={QUERIES}&styles={styles}")


def score(system: Any, dataset: Any, threshold: float | None = None) -> list[Any]:
    """The cases of a data set. threshold: of presence; None: the checkpoint's own."""
    from vlseg.evaluation.predictor import SystemPredictor
    from vlseg.evaluation.run import evaluate

    outcome = evaluate(dataset, SystemPredictor(system, threshold))
    assert outcome is not None  # one process
    assert not any(record.crashed for record in outcome.records)
    return [record.case for record in outcome.records]


def calibrate(system: Any, count: int) -> dict[str, float]:
    """Fit scale, bias and threshold of the presence score on scenes that are used for nothing else."""
    from vlseg.evaluation.calibrate import best_threshold, platt

    system.model.config.presence = {"scale": 1.0, "bias": 0.0, "threshold": 0.5}
    cases = score(system, unseen("calibration", count))
    present = np.array([not c.absent for c in cases])
    plain = np.clip([c.score for c in cases], 1e-7, 1 - 1e-7)
    evidence = np.log(plain / (1 - plain))
    scale, bias = platt(evidence, present)
    threshold = best_threshold(1 / (1 + np.exp(-(scale * evidence + bias))), present)
    return {"scale": round(scale, 4), "bias": round(bias, 4), "threshold": threshold}


def measure(system: Any, count: int, parts: int) -> dict[str, Any]:
    """All tables as plain data."""
    from vlseg.evaluation.ablate import PARTS, OtherImages, without
    from vlseg.metrics.bootstrap import with_intervals
    from vlseg.metrics.referring import by_kind

    cases = score(system, unseen("scenes", count))
    seen = [c for c in cases if c.absent or c.extent >= SMALL]
    tiny = [c for c in cases if not c.absent and c.extent < SMALL]
    kinds = {k: with_intervals([c for c in seen if c.kind == k]) for k in sorted({c.kind for c in seen})}
    held = score(system, unseen("held-out style", count, "held_out"))
    result = {
        "scenes": count,
        "overall": with_intervals(seen),
        "below 24 px": with_intervals(tiny),
        "kinds": kinds,
        "held-out style": with_intervals([c for c in held if c.absent or c.extent >= SMALL]),
    }
    few = unseen("parts", parts)

    def by(cases: list[Any]) -> dict[str, float]:
        kinds = by_kind([c for c in cases if not c.absent])
        whole = float(np.mean([c.iou for c in cases if not c.absent]))
        return {"overall": whole, **{k: s["mIoU"] for k, s in kinds.items()}}

    # Parts are judged by their masks alone (threshold 0), or a rejection would hide what the mask is worth.
    ablations = {"whole model": by(score(system, few, 0.0))}
    ablations["queries of another image"] = by(score(system, OtherImages(few), 0.0))
    for part in PARTS:
        with without(system.model, part):
            ablations[f"without {part}"] = by(score(system, few, 0.0))
    result["parts"] = {"scenes": parts, "mIoU": ablations}
    return result


def digest(file: Path) -> str:
    """SHA-256 of a file: whose scores these are."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""

    def cell(scores: dict[str, Any], name: str) -> str:
        entry = scores.get(name)
        return "" if entry is None else f"{entry['value']:.3f} ({entry['ci95'][0]:.3f}–{entry['ci95'][1]:.3f})"

    columns = ["mIoU", "cIoU", "P@0.5", "boundary-IoU", "wrong-instance", "T-acc", "N-acc"]
    lines = ["| | cases | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    rows = {"all, objects ≥ 24 px": result["overall"], **result["kinds"]}
    rows |= {"objects < 24 px": result["below 24 px"], "drawing style held out": result["held-out style"]}
    for name, scores in rows.items():
        cases = max((e["cases"] for e in scores.values()), default=0)
        lines.append(f"| {name} | {cases} | " + " | ".join(cell(scores, c) for c in columns) + " |")
    parts = result["parts"]["mIoU"]
    names = list(parts["whole model"])
    lines += ["", "| mIoU, rejection off | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for part, scores in parts.items():
        lines.append(f"| {part} | " + " | ".join(f"{scores[n]:.3f}" for n in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder (default: the embedded model)")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--parts", type=int, default=200, help="scenes for the switched-off parts")
    parser.add_argument(
        "--calibrate", type=int, default=0, metavar="SCENES", help="fit the presence score on so many first"
    )
    parser.add_argument("--card", action="store_true", help="write scores.json beside the weights")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    from vlseg.systems.quiet import quiet_loading
    from vlseg.systems.registry import EMBEDDED, WEIGHTS

    with quiet_loading():
        from vlseg.systems.native import NativeSystem

    folder = Path(args.model or WEIGHTS / EMBEDDED)
    system = NativeSystem.from_pretrained(folder, dtype="float32", name=args.model or EMBEDDED)
    start = time.perf_counter()
    if args.calibrate:
        system.model.config.presence = calibrate(system, args.calibrate)
        system.model.config.save_pretrained(folder)
    result = {"model": system.name, "presence": system.model.config.presence}
    result["calibration_scenes"] = args.calibrate
    result |= measure(system, args.scenes, args.parts)
    result["minutes"] = round((time.perf_counter() - start) / 60, 1)
    result["weights"] = digest(folder / "model.safetensors")
    if args.card:
        (folder / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
