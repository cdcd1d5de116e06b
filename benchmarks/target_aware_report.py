"""The table of `target_aware.py`: scores of each variant over its seeds, and paired differences to the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlseg.data.files import write_whole
from vlseg.metrics.bootstrap import paired_differences
from vlseg.metrics.case import Case
from vlseg.metrics.referring import summary

SCORES = ("mIoU", "P@0.5", "wrong-instance", "NTA-rate", "NTA-mass")

TEXT = """# Target-aware losses and rectified cost aggregation

Does a loss that names the distractors help a model choose between objects of the same noun? The ablation runs on a
reduced sprite world: 40 things, 128 x 128 pixels, and only expressions with a distractor of the target's own noun
("the red dog" with another dog in the picture; by colour, size, superlative, position). All variants of a seed see the
same scenes in the same order for the same number of steps and start from the same warm tower. Scores are of unseen
scenes; every case has its target. The losses: [`vlseg/losses/target_aware.py`](../vlseg/losses/target_aware.py); the
fusion: [`vlseg/models/heads/fusion.py`](../vlseg/models/heads/fusion.py); to run it again:
`python benchmarks/target_aware.py`.

| `loss.target_form` | meaning |
|---|---|
| none | mask, presence and noun losses only |
| talent | + TALENT's affinity and sentence losses as published (weights 0.1 and 0.01) |
| ours | + contrast of the query with the regions of its image (0.3), + activation inside distractors ({stray}) |

"+rca" adds rectified cost aggregation (`head.fusion: rca`).

## Scores

{scores}

NTA: non-target activation, see [evaluation.md](evaluation.md).

## Differences

Paired over the same cases, 95 % interval by bootstrap over images of all seeds.

{differences}

## How hard each loss pulls

Norm of the gradient with respect to all parameters, weights included, as a share of the mask loss's; mean over the run.

{pulls}

Steps of a run: {steps}; of a seed's warm-up: {warmup}. Runs on one core of a CPU.
"""


def report(runs: Sequence[dict[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    """Scores, differences and gradients by variant, over the seeds that are there."""
    by_name = {name: [r for r in runs if r["variant"] == name] for name in order}
    by_name = {name: found for name, found in by_name.items() if found}
    told: dict[str, Any] = {"variants": {}, "differences": {}}
    for name, found in by_name.items():
        each = [summary(cases_of(run)) for run in found]
        told["variants"][name] = {
            "seeds": [run["seed"] for run in found],
            "cases": sum(len(run["cases"]) for run in found),
            "seconds": round(sum(run["seconds"] for run in found) / len(found)),
            **{s: sum(e[s] for e in each) / len(each) for s in SCORES},
            "spread": {s: [min(e[s] for e in each), max(e[s] for e in each)] for s in SCORES},
            "pulls": pull_shares(found),
        }
    for name in by_name:
        form, _, fusion = name.partition("+")
        others = {f"none+{fusion}" if fusion else "none"} - {name}
        others |= {form} if fusion else set()
        for other in sorted(others & by_name.keys()):
            seeds = sorted({r["seed"] for r in by_name[name]} & {r["seed"] for r in by_name[other]})
            a, b = (
                [case for run in by_name[n] if run["seed"] in seeds for case in cases_of(run)] for n in (other, name)
            )
            if a:
                found = paired_differences(a, b)
                told["differences"][f"{name} - {other}"] = {"seeds": seeds, **{s: found[s] for s in SCORES}}
    told["settings"] = {key: sorted({run[key] for run in runs}) for key in ("steps", "warmup", "stray")}
    return told


def cases_of(run: dict[str, Any]) -> list[Case]:
    """The cases of a run; images of different seeds' models are different draws of the bootstrap."""
    cases = [Case.from_dict(data) for data in run["cases"]]
    for case in cases:
        case.image = f"{run['seed']}/{case.image}"
    return cases


def pull_shares(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean share of each loss's gradient in that of the mask loss."""
    seen = [pull for run in runs for pull in run["pulls"]]
    names = sorted({name for pull in seen for name in pull} - {"step", "mask"})
    return {name: sum(pull.get(name, 0.0) / pull["mask"] for pull in seen) / len(seen) for name in names if seen}


def write_report(told: dict[str, Any], path: Path) -> None:
    """The page of a report."""
    rows = ["| variant | seeds | s a run | " + " | ".join(SCORES) + " |", "|---|---|---|" + "---|" * len(SCORES)]
    for name, found in told["variants"].items():
        cells = [f"{found[s]:.3f} ({found['spread'][s][0]:.3f}-{found['spread'][s][1]:.3f})" for s in SCORES]
        seeds = ", ".join(map(str, found["seeds"]))
        rows.append(f"| {name} | {seeds} | {found['seconds']} | " + " | ".join(cells) + " |")
    pairs = ["| pair | seeds | " + " | ".join(SCORES) + " |", "|---|---|" + "---|" * len(SCORES)]
    for name, found in told["differences"].items():
        cells = [
            f"{found[s]['difference']:+.3f} [{found[s]['ci95'][0]:+.3f}, {found[s]['ci95'][1]:+.3f}]" for s in SCORES
        ]
        pairs.append(f"| {name} | {', '.join(map(str, found['seeds']))} | " + " | ".join(cells) + " |")
    pulls = ["| variant | loss | share |", "|---|---|---|"]
    for name, found in told["variants"].items():
        pulls += [f"| {name} | {loss} | {share:.4f} |" for loss, share in found["pulls"].items()]
    settings = told["settings"]
    text = TEXT.format(
        stray=", ".join(f"{stray:g}" for stray in settings["stray"]),
        scores="\n".join(rows),
        differences="\n".join(pairs) if len(pairs) > 2 else "No pair of runs yet.",
        pulls="\n".join(pulls),
        steps=", ".join(map(str, settings["steps"])),
        warmup=", ".join(map(str, settings["warmup"])),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
