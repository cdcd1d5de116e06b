"""Scoring stored masks: from their run lengths, as vlseg does, against decoding and comparing arrays, and LISA's way.

    python benchmarks/scoring.py [--instances instances.json] [--pairs 4000] [--rounds 5] [--json]

Truths are the polygon instances of a COCO file, predictions the same polygons moved, scaled and with noisy corners.
Without a file both are stars in 480 x 640 pixels, about as large as the objects of COCO. Every way takes the same pairs
of RLEs and must give the same counts:

    decode    decode both, logical_and and logical_or, sums            what the ratios are taken over
    lisa      decode both, two-class histograms of torch tensors with an ignore label (LISA, `validate`)
    overlaps  vlseg: intersections and unions of all pairs             `vlseg.metrics.overlap.overlaps`
    scores    vlseg: the same, then cIoU, mIoU and P@0.5 to 0.9
    cases     vlseg: a whole record a pair                             `vlseg.metrics.case.score_case`
    contours  vlseg: the same with Boundary IoU and Buffered IoU, which must look at pixels

Times are of the processor, on one thread; ratios are within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine, paired, ratio

from vlseg.masks import rle as codec
from vlseg.metrics.case import RULES, score_case
from vlseg.metrics.overlap import overlaps
from vlseg.types import RLE, Query

GOAL = 40.0  # overlaps over decode
THRESHOLDS = np.array([0.5, 0.6, 0.7, 0.8, 0.9])


def coco_pairs(path: Path, count: int) -> tuple[list[RLE], list[RLE]]:
    """(truths, predictions), from the polygons of a COCO file, again and again with other noise."""
    rng = np.random.default_rng(0)
    data = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    shapes = [a for a in data["annotations"] if isinstance(a["segmentation"], list)]
    truths, predictions = [], []
    for n in range(count):
        shape = shapes[n % len(shapes)]
        height, width = sizes[shape["image_id"]]
        x, y, w, h = shape["bbox"]
        shift, scale = rng.normal(0, 0.04, 2) * (w, h), rng.normal(1, 0.05, 2)
        moved = []
        for ring in shape["segmentation"]:
            points = np.reshape(ring, (-1, 2))
            points = (points - (x, y)) * scale + (x, y) + shift + rng.normal(0, 0.7, points.shape)
            moved.append(points.clip(0, (width, height)).ravel().tolist())
        truths.append(codec.from_coco(shape["segmentation"], height, width))
        predictions.append(codec.from_coco(moved, height, width))
    return truths, predictions


def blob_pairs(count: int) -> tuple[list[RLE], list[RLE]]:
    """(truths, predictions) of 480 x 640 pixels: stars with 60 corners, the prediction with other noise."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    truths, predictions = [], []
    for _ in range(count):
        centre, size = rng.uniform((120, 120), (520, 360)), rng.uniform(8, 60)
        radius = size * rng.uniform(0.7, 1.1, len(angle))
        for into, noise in ((truths, 1.0), (predictions, rng.normal(1, 0.05, len(angle)))):
            ring = centre + (radius * noise)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
            into.append(codec.from_coco([ring.ravel().tolist()], 480, 640))
    return truths, predictions


def by_decoding(truths: list[RLE], predictions: list[RLE]) -> np.ndarray:
    """What everyone does: (N, 2) of intersection and union."""
    from pycocotools import mask as coco

    counts = []
    for truth, prediction in zip(truths, predictions, strict=True):
        t, p = coco.decode(truth), coco.decode(prediction)
        counts.append((np.logical_and(t, p).sum(), np.logical_or(t, p).sum()))
    return np.array(counts, np.int64)


def by_histograms(truths: list[RLE], predictions: list[RLE]) -> np.ndarray:
    """LISA's counts of class 1 among two, pixels of label 255 left out; histc on a CPU takes floats."""
    import torch
    from pycocotools import mask as coco

    counts = []
    for truth, prediction in zip(truths, predictions, strict=True):
        target, output = (torch.from_numpy(coco.decode(rle)).flatten() for rle in (truth, prediction))
        output[target == 255] = 255
        hits, predicted, true = (
            torch.histc(values.float(), bins=2, min=0, max=1) for values in (output[output == target], output, target)
        )
        counts.append((int(hits[1]), int(predicted[1] + true[1] - hits[1])))
    return np.array(counts, np.int64)


def scores(truths: list[RLE], predictions: list[RLE]) -> dict[str, Any]:
    """cIoU, mIoU and the precisions."""
    inside, union = overlaps(predictions, truths)
    iou = inside / union
    return {"cIoU": inside.sum() / union.sum(), "mIoU": iou.mean(), "P": (iou[:, None] > THRESHOLDS).mean(0)}


def measure(truths: list[RLE], predictions: list[RLE], rounds: int) -> dict[str, Any]:
    """Microseconds a pair and ratios. The slow ways run on fewer pairs."""
    count = len(truths)
    few, fewer = max(1, count // 10), max(1, count // 40)
    want = by_decoding(truths[:few], predictions[:few])
    shares = codec.areas(truths) / [rle["size"][0] * rle["size"][1] for rle in truths]
    assert (want[:, 0] > 0).any()
    assert (want[:, 0] < want[:, 1]).any()
    assert (np.stack(overlaps(predictions[:few], truths[:few]), 1) == want).all()
    assert (by_histograms(truths[:fewer], predictions[:fewer]) == want[:fewer]).all()

    def cases(number: int, rules: Any) -> None:
        for n in range(number):
            query, size = Query("x", [truths[n]]), (truths[n]["size"][0], truths[n]["size"][1])
            score_case(query, size, "found", predictions[n], 0.5, id=str(n), image=str(n), rules=rules)

    ways = {
        "decode": (few, lambda: by_decoding(truths[:few], predictions[:few])),
        "lisa": (fewer, lambda: by_histograms(truths[:fewer], predictions[:fewer])),
        "overlaps": (count, lambda: overlaps(predictions, truths)),
        "scores": (count, lambda: scores(truths, predictions)),
        "cases": (count, lambda: cases(count, None)),
        "contours": (fewer, lambda: cases(fewer, RULES)),
    }
    seconds = paired({name: run for name, (_, run) in ways.items()}, rounds, time.process_time)
    each = {name: [s / ways[name][0] for s in seconds[name]] for name in ways}
    return {
        "pairs": count,
        "mean_iou": round(float(np.mean(want[:, 0] / want[:, 1])), 3),
        "median_share_of_image": round(float(np.median(shares)), 4),
        "pixels_a_mask": round(float(np.mean([rle["size"][0] * rle["size"][1] for rle in truths]))),
        "us_a_pair": {name: round(1e6 * statistics.median(values), 2) for name, values in each.items()},
        "over_decode": {name: round(ratio(each["decode"], values), 2) for name, values in each.items()},
        "goal": GOAL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", type=Path, help="a COCO instances.json with real objects (default: blobs)")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    truths, predictions = coco_pairs(args.instances, args.pairs) if args.instances else blob_pairs(args.pairs)
    result = {"machine": {**machine(), "torch": torch.__version__}, **measure(truths, predictions, args.rounds)}
    if args.json:
        print(json.dumps(result))
        return
    print("  ".join(f"{k}={v}" for k, v in result["machine"].items()))
    for name, us in result["us_a_pair"].items():
        print(f"{name:9s}{us:10.2f} µs a pair{result['over_decode'][name]:10.2f} x")
    print(
        f"{result['pairs']} pairs of {result['pixels_a_mask']} pixels, mean IoU {result['mean_iou']}; goal: {GOAL:g} x"
    )


if __name__ == "__main__":
    main()
