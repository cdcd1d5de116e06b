"""What the refiner brings: IoU and boundary IoU of coarse masks and of refined ones, after each iteration.

    python benchmarks/refiner.py [--refiner FOLDER] [--corruptions 40]           wrong masks with a known truth, by kind
    python benchmarks/refiner.py --model FOLDER [--modes mask path] [--scenes 100]     a model's own masks and paths
    python benchmarks/refiner.py ... --figure docs/images/refiner.png      twelve cases, good and bad; needs matplotlib

All on scenes of 256 px that no training has seen, objects of 16 px or more. A model is asked with presence threshold 0:
every query with a target is answered, also with the wrong object, which no refiner mends. Boundary IoU is that of
`vlseg eval` (2 % of the diagonal, 7 px here) and, sharper, of 2 px. n = 0 is the coarse mask. `--work FILE` keeps what
is done scene by scene; run again, it goes on. Intervals are 95 %, by bootstrap over scenes, for n = 0 and the refiner's
own number paired.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import machine

from vlseg.masks import rle as codec
from vlseg.metrics.boundary import boundary_overlap
from vlseg.types import RLE

SIZE, SEEDS = (256, 256), {"corruptions": 906_001, "model": 907_001}
MOST = 5  # iterations
SHARP = 2 / float(np.hypot(*SIZE))  # of the diagonal: 2 px
SCORES = ("IoU", "boundary IoU", "boundary IoU at 2 px")
A_PART = 8  # objects of a corruption that are done, and kept, together

Record = dict[str, Any]  # what: kind or mode; group: scene; steps: for each n the three scores


def scores(mask: np.ndarray, truth: np.ndarray) -> list[float]:
    """IoU, boundary IoU at 7 px and at 2 px."""
    wide, narrow = boundary_overlap(mask, truth), boundary_overlap(mask, truth, SHARP)
    overlap = (int((mask & truth).sum()), int((mask | truth).sum()))
    return [round(both / either, 5) if either else 1.0 for both, either in (overlap, wide, narrow)]


def refined_scores(refiner: Any, image: Image.Image, coarse: Sequence[RLE], truths: Sequence[RLE]) -> list[Any]:
    """For each mask its scores after 0 ... `MOST` iterations; an empty one stays as it is."""
    from vlseg.models.refiner_crop import refine_each

    out = []
    for rle, truth, steps in zip(coarse, truths, refine_each(refiner, image, coarse, MOST), strict=True):
        before, real = codec.decode(rle), codec.decode(truth)
        masks = [before, *(step.mask if step.mask.any() else before for step in steps)]
        masks += [before] * (MOST + 1 - len(masks))
        out.append([scores(mask, real) for mask in masks])
    return out


def corruption_jobs(refiner: Any, count: int) -> dict[str, Callable[[], list[Record]]]:
    """By name what gives the records of `count` objects of each kind of corruption."""
    from vlseg.training.refine_corruptions import KINDS
    from vlseg.training.refine_examples import scene_examples

    def part(kind: str, first: int, many: int) -> list[Record]:
        records = []
        pictures: list[int] = []
        examples = scene_examples(SEEDS["corruptions"], first, many, [kind], SIZE)
        for one in examples:
            if id(one.image) not in pictures:  # `examples` keeps them alive
                pictures.append(id(one.image))
            (found,) = refined_scores(refiner, one.image, [one.coarse], [one.truth])
            group = f"{first} {pictures.index(id(one.image))}"
            records.append({"what": kind, "group": group, "steps": found})
        return records

    starts = range(0, count, A_PART)
    return {
        f"{kind} {start}": partial(part, kind, 100 * start, min(A_PART, count - start))
        for kind in KINDS
        for start in starts
    }


def model_jobs(refiner: Any, system: Any, mode: str, count: int) -> dict[str, Callable[[], list[Record]]]:
    """By name what gives the records of a model's answers in one mode, a scene each."""

    def scene(index: int) -> list[Record]:
        image, queries = scene_queries(index)
        if not queries:
            return []
        truths = [codec.merge(query.masks) for query in queries]
        coarse = answer_masks(system, mode, image, [query.text for query in queries])
        found = refined_scores(refiner, image, coarse, truths)
        return [{"what": mode, "group": str(index), "steps": steps} for steps in found]

    return {f"{mode} {index}": partial(scene, index) for index in range(count)}


def scene_queries(index: int) -> tuple[Image.Image, list[Any]]:
    """An unseen scene and its queries that have a target of 16 px or more."""
    from vlseg.data.registry import open_dataset

    size = f"{SIZE[0]}x{SIZE[1]}"
    sample = open_dataset(f"sprites?n={index + 1}&seed={SEEDS['model']}&size={size}&queries=8")[index]
    large = [q for q in sample.queries if q.masks and max(codec.bbox(codec.merge(q.masks))[2:]) >= 16]
    return Image.fromarray(np.asarray(sample.image)), large


def answer_masks(system: Any, mode: str, image: Image.Image, texts: list[str]) -> list[RLE]:
    """The union of each answer's segments; empty for one that failed."""
    extra = {} if mode == "mask" else {"mode": mode}
    answers = system.segment_batch([image], [texts], presence_threshold=0.0, **extra)[0]
    return [codec.union([segment.rle for segment in answer.segments], answer.size) for answer in answers]


def done_with(jobs: dict[str, Callable[[], list[Record]]], work: Path | None) -> list[Record]:
    """The records of all jobs; those in the work file are not done again."""
    ready: dict[str, list[Record]] = {}
    if work and work.exists():
        for line in work.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # the last one may be cut
                entry = json.loads(line)
                ready[entry["job"]] = entry["records"]
    for name, job in jobs.items():
        if name not in ready:
            ready[name] = job()
            if work:
                with open(work, "a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps({"job": name, "records": ready[name]}))
    return [record for name in jobs for record in ready[name]]


def summary(records: Sequence[Record], own: int) -> Record:
    """Means over the records for each n, and the gain of `own` iterations with its interval."""
    steps = np.array([record["steps"] for record in records])
    groups = {name: i for i, name in enumerate(dict.fromkeys(record["group"] for record in records))}
    group = np.array([groups[record["group"]] for record in records])
    sums = np.zeros((len(groups), 4))
    np.add.at(sums, group, np.column_stack([steps[:, own] - steps[:, 0], np.ones(len(steps))]))
    draws = np.random.default_rng(0).integers(len(groups), size=(2000, len(groups)))
    drawn = sums[draws].sum(1)
    low, high = np.quantile(drawn[:, :3] / drawn[:, 3:], [0.025, 0.975], axis=0)
    return {
        "masks": len(records),
        "scenes": len(groups),
        "mean": {name: steps[:, :, i].mean(0).round(4).tolist() for i, name in enumerate(SCORES)},
        "gain": {
            name: {"n": own, "value": round(float((steps[:, own, i] - steps[:, 0, i]).mean()), 4)}
            | {"ci95": [round(float(low[i]), 4), round(float(high[i]), 4)]}
            for i, name in enumerate(SCORES)
        },
        "worse": round(float((steps[:, own, 0] < steps[:, 0, 0] - 0.02).mean()), 4),
    }


def speed(refiner: Any) -> Record:
    """CPU milliseconds a mask, eight of one scene at once, by iterations."""
    from vlseg.models.refiner_crop import refine
    from vlseg.training.refine_examples import scene_examples

    example = scene_examples(SEEDS["corruptions"], 7, 1, ["wobbly"], SIZE)[0]
    found = {}
    for n in (1, 3, 5):
        taken = []
        for _ in range(4):
            start = time.process_time()
            refine(refiner, example.image, [example.coarse] * 8, n)
            taken.append((time.process_time() - start) / 8)
        found[str(n)] = round(1000 * min(taken), 1)
    return found


def table(result: Record) -> str:
    """Markdown: for every kind or mode a line a score, a column an n."""
    head = ["masks", "", "score", *(f"n = {n}" for n in range(MOST + 1)), "gain (95 %)", "worse"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, one in result["rows"].items():
        for score in SCORES:
            gain = one["gain"][score]
            cells = [name, str(one["masks"])] if score == SCORES[0] else ["", ""]
            cells += [score, *(f"{value:.3f}" for value in one["mean"][score])]
            cells.append(f"{gain['value']:+.3f} ({gain['ci95'][0]:+.3f} to {gain['ci95'][1]:+.3f})")
            cells.append(f"{100 * one['worse']:.0f} %" if score == SCORES[0] else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cases(refiner: Any, system: Any | None, mode: str) -> list[Record]:
    """Masks to show: those of a model's answers, or written paths where there is no model; with what became of them."""
    from vlseg.models.refiner_crop import refine
    from vlseg.training.refine_examples import scene_examples

    found = []
    if system is None:
        drawn = scene_examples(SEEDS["corruptions"], 50_000, 48, ["written path", "leaked", "wobbly"], SIZE)
        sets = [(one.image, [one.coarse], [one.truth], [one.kind]) for one in drawn]
    else:
        sets = []
        for index in range(2000, 2012):
            image, queries = scene_queries(index)
            texts = [query.text for query in queries]
            coarse = answer_masks(system, mode, image, texts) if texts else []
            sets.append((image, coarse, [codec.merge(query.masks) for query in queries], texts))
    for image, coarse, truths, texts in sets:
        steps = refine(refiner, image, coarse)
        for rle, truth, text, step in zip(coarse, truths, texts, steps, strict=True):
            if step is None:
                continue
            masks = [codec.decode(rle), step.mask, codec.decode(truth)]
            before, after = (scores(mask, masks[2])[0] for mask in masks[:2])
            found.append({"image": image, "text": text, "masks": masks, "iou": (before, after)})
    return found


def figure(found: list[Record], file: Path) -> None:
    """Twelve cases as coarse, refined, truth: the four that gain most, four in the middle, the four that lose most."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found.sort(key=lambda case: case["iou"][1] - case["iou"][0])
    middle = len(found) // 2
    shown = [*reversed(found[-4:]), *found[middle - 2 : middle + 2], *found[:4]]
    figure, axes = plt.subplots(4, 9, figsize=(15.5, 8.2))
    for place, case in enumerate(shown):
        column, row = divmod(place, 4)
        union = np.logical_or.reduce(case["masks"])
        rows, columns = np.flatnonzero(union.any(1)), np.flatnonzero(union.any(0))
        half = min(0.6 * max(rows[-1] - rows[0], columns[-1] - columns[0]) + 4, min(union.shape) / 2)
        cy, cx = (
            np.clip((inside[0] + inside[-1]) / 2, half - 0.5, length - half - 0.5)
            for inside, length in zip((rows, columns), union.shape, strict=True)
        )
        for panel, mask in enumerate(case["masks"]):
            axis = axes[row, 3 * column + panel]
            axis.imshow(case["image"])
            tint = np.zeros((*mask.shape, 4))
            tint[mask] = (0, 0.9, 1, 0.45)
            axis.imshow(tint, interpolation="nearest")
            axis.contour(mask.astype(float), [0.5], colors="black", linewidths=1)
            axis.set(xlim=(cx - half, cx + half), ylim=(cy + half, cy - half), xticks=[], yticks=[])
            iou = case["iou"][panel] if panel < 2 else None
            name = ("coarse", "refined", "truth")[panel]
            axis.set_title(f"{name} {iou:.2f}" if iou is not None else name, fontsize=8)
        text = case["text"] if len(case["text"]) <= 46 else case["text"][:45] + "…"
        axes[row, 3 * column].set_xlabel(text, fontsize=7, loc="left")
    for column, name in enumerate(("gain most", "in the middle", "lose most")):
        figure.text((column + 0.5) / 3, 0.985, name, ha="center", va="top", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.965), w_pad=0.3, h_pad=1.2)
    figure.savefig(file, dpi=80)
    Image.open(file).convert("RGB").quantize(256).save(file, optimize=True)  # half the bytes


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refiner", type=Path, help="folder of a refiner (default: the embedded one)")
    parser.add_argument("--model", help="a model whose answers are refined; vlseg-mini is the embedded one")
    parser.add_argument("--modes", nargs="+", choices=["mask", "path"], help="default: all that the model has")
    parser.add_argument("--scenes", type=int, default=100, help="scenes for the model (default 100)")
    parser.add_argument("--corruptions", type=int, default=0, help="objects of each kind of corruption")
    parser.add_argument("--work", type=Path, help="a file for what is done so far, of this refiner and model")
    parser.add_argument("--figure", type=Path, help="draw twelve cases of the model, or of corruptions without one")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args(argv)
    import torch

    from vlseg.models.refiner import Refiner
    from vlseg.systems.quiet import quiet_loading
    from vlseg.systems.registry import EMBEDDED_REFINER, WEIGHTS, load_system

    torch.set_num_threads(1)
    refiner = Refiner.from_pretrained(args.refiner or WEIGHTS / EMBEDDED_REFINER)
    own = refiner.config.iterations
    system = None
    if args.model:
        with quiet_loading():
            system = load_system(args.model)
    modes = [] if system is None else args.modes or list(system.modes)
    jobs = corruption_jobs(refiner, args.corruptions) if args.corruptions else {}
    for mode in modes:
        jobs |= model_jobs(refiner, system, mode, args.scenes)
    records = done_with(jobs, args.work)
    rows = {
        what: summary([record for record in records if record["what"] == what], own)
        for what in dict.fromkeys(record["what"] for record in records)
    }
    result = {"machine": machine(), "settings": {**vars(args), "iterations": own}, "rows": rows}
    result["milliseconds a mask"] = speed(refiner)
    if args.figure:
        figure(cases(refiner, system, modes[0] if modes else ""), args.figure)
    if args.json:
        print(json.dumps(result, default=str))
        return
    print(table(result))
    print(f"worse: masks that lose more than 0.02 IoU in {own} iterations", file=sys.stderr)
    print(f"CPU ms a mask by iterations: {result['milliseconds a mask']}")


if __name__ == "__main__":
    main()
