"""What the path codec alone can reach: IoU of mask -> tokens -> mask against tokens a mask, and how fast it is.

    python benchmarks/paths.py [--data coco|crowd|sprites] [--codec joint-64] [--masks N] [--side 128] [--json]
    python benchmarks/paths.py ... --work FILE.jsonl           (keeps paths as they are found; run again, it goes on)
    python benchmarks/paths.py --plot FILE.png RESULT.json [RESULT.json ...]

Codecs: joint-G and split-G (one or two tokens a vertex on a grid of G x G), with -curves behind it for cubics;
peucker-G is what one would do by hand: Douglas-Peucker outlines on the grid of joint-G (peucker2-G: split-G). Every
emitted token counts, box and end included. IoU is counted on decoded RLEs by pycocotools, whatever the encoder says.
Points at a budget are spread over the masks by one Lagrangian.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import machine

from vlseg.masks import rle as runs
from vlseg.masks.budget import allocate
from vlseg.masks.grid import GridRing, box_bins, box_edges
from vlseg.masks.outline import outline
from vlseg.masks.path_codec import PRICE, EffortName, PathCodec
from vlseg.masks.simplify import simplify
from vlseg.metrics.boundary import boundary_overlap
from vlseg.types import RLE, VLSegError

COCO = Path(__file__).resolve().parents[1] / "../shared/data/coco-small/instances.json"
PRICES = [5e-5, 2e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2e-2]
TOLERANCES = [0.0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 14, 20, 30]
BUDGETS = (45, 35, 25)
SPREAD = (8, 10, 12, 15, 18, 21, 25, 30, 35, 40, 45, 50, 60, 70, 80)

_CHUNK = 128  # masks that are encoded together

# For each mask its paths: token ids, from the longest to the shortest.
Paths = list[list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=["coco", "crowd", "sprites"], default="coco")
    parser.add_argument("--annotations", type=Path, default=COCO, help="a COCO instances file")
    parser.add_argument("--codec", default="joint-64")
    parser.add_argument("--masks", type=int, default=0, help="a random sample of so many; all of COCO, 1,000 sprites")
    parser.add_argument("--side", type=int, default=128, help="pixels of a side of the sprites' scenes")
    parser.add_argument("--prices", type=float, nargs="+", default=PRICES, help="of a token in IoU, ascending")
    parser.add_argument("--effort", choices=["fast", "thorough"], default="thorough")
    parser.add_argument("--timed", type=int, default=64, help="how many of them to time, one by one and eight at once")
    parser.add_argument("--work", type=Path, help="a file for the paths found so far")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    parser.add_argument("--plot", type=Path, help="draw results instead; needs matplotlib")
    parser.add_argument("results", type=Path, nargs="*", help="files of earlier runs with --json")
    args = parser.parse_args()
    if args.plot:
        draw(args.plot, [json.loads(path.read_text(encoding="utf-8")) for path in args.results])
        return
    try:
        masks = load(args.data, args.annotations, args.masks, args.side)
        result = measure(masks, args.codec, args.prices, args.effort, args.work, args.timed)
    except (VLSegError, OSError) as error:
        sys.exit(f"paths.py: {error}")
    data = args.data + (f" {args.side} px" if args.data == "sprites" else "")
    result = {"machine": machine(), "data": data, "effort": args.effort, **result}
    print(json.dumps(result) if args.json else table(result))


def load(data: str, annotations: Path, count: int, side: int) -> list[RLE]:
    """The masks: instances or crowds of a COCO file, or the visible objects of sprite scenes."""
    if data == "sprites":
        from vlseg.worlds.sprites import SpriteWorld

        world, index = SpriteWorld(), 0
        rles: list[RLE] = []
        while len(rles) < (count or 1000):
            scene = world.scene(20_261, index, (side, side), 1)
            rles += [runs.encode(scene.mask(i)) for i in range(len(scene.objects))]
            index += 1
        return rles[: count or 1000]
    content = json.loads(annotations.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    chosen = [a for a in content["annotations"] if bool(a["iscrowd"]) == (data == "crowd")]
    if count:
        chosen = [chosen[i] for i in np.random.default_rng(0).permutation(len(chosen))[:count]]
    return [runs.from_coco(a["segmentation"], *sizes[a["image_id"]]) for a in chosen]


def measure(
    masks: Sequence[RLE], name: str, prices: Sequence[float], effort: EffortName, work: Path | None, timed: int
) -> dict[str, Any]:
    """Points along the curve, at the budgets, and how long it takes."""
    kind, grid, *curves = name.split("-")
    codec = PathCodec(int(grid), joint=kind in ("joint", "peucker"), curves=bool(curves))
    if kind.startswith("peucker"):
        labels: Sequence[float] = TOLERANCES
        paths, milliseconds = [peucker(codec, runs.decode(mask)) for mask in masks], None
    else:
        labels = prices
        paths, milliseconds = encode(codec, masks, prices, effort, work)
    tokens = [np.array([len(path) for path in mine]) for mine in paths]
    iou = [
        np.concatenate([runs.iou([codec.decode_rle(path, size(mask))], [mask])[0] for path in mine])
        for mask, mine in zip(masks, paths, strict=True)
    ]
    curve = [
        {"at": label, "tokens": float(np.mean([t[i] for t in tokens])), "iou": float(np.mean([v[i] for v in iou]))}
        for i, label in enumerate(labels)
    ]
    least = sum(int(t.min()) for t in tokens)
    taken = {n: allocate(tokens, iou, n * len(masks)) for n in sorted({*BUDGETS, *SPREAD}) if n * len(masks) >= least}
    spread = [
        {
            "tokens": float(np.mean([t[i] for t, i in zip(tokens, chosen, strict=True)])),
            "iou": float(np.mean([v[i] for v, i in zip(iou, chosen, strict=True)])),
        }
        for budget, chosen in taken.items()
        if budget in SPREAD
    ]
    result = {
        "codec": name,
        "vocabulary": len(codec.vocabulary),
        "masks": len(masks),
        "curve": curve,
        "curve_ms_a_mask": milliseconds,
        "spread": spread,
        "budgets": {str(n): score(codec, masks, paths, taken[n]) for n in BUDGETS if n in taken},
    }
    if timed and not kind.startswith("peucker"):
        result["ms_a_mask"] = speed(codec, masks, timed)
    return result


def encode(
    codec: PathCodec, masks: Sequence[RLE], prices: Sequence[float], effort: EffortName, work: Path | None
) -> tuple[Paths, float]:
    """The paths of all masks, some at a time, and CPU milliseconds a mask; goes on from those in the file ``work``."""
    run = {"codec": repr(codec), "prices": list(prices), "effort": effort, "masks": len(masks)}
    done: list[dict[str, Any]] = []
    if work and work.exists():
        text = work.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        head, *lines = whole.splitlines() or [""]
        if head != json.dumps(run):
            raise VLSegError(f"{work} is of another run: {head}")
        work.write_text(whole, encoding="utf-8")
        done = [json.loads(line) for line in lines]
    elif work:
        work.write_text(json.dumps(run) + "\n", encoding="utf-8")
    for start in range(_CHUNK * len(done), len(masks), _CHUNK):
        began = time.process_time()
        found = codec.trade_offs(masks[start : start + _CHUNK], prices, effort)
        seconds = time.process_time() - began
        done.append({"seconds": seconds, "paths": [[point.tokens for point in points] for points in found]})
        if work:
            with work.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
    seconds = sum(chunk["seconds"] for chunk in done)
    return [path for chunk in done for path in chunk["paths"]], 1e3 * seconds / len(masks)


def size(mask: RLE) -> tuple[int, int]:
    return mask["size"][0], mask["size"][1]


def score(codec: PathCodec, masks: Sequence[RLE], paths: Paths, taken: Sequence[int]) -> dict[str, Any]:
    """What chosen paths are worth, over all masks and by COCO's classes of size."""
    rows = []
    for mask, mine, i in zip(masks, paths, taken, strict=True):
        drawn = codec.decode_rle(mine[i], size(mask))
        inside, either = boundary_overlap(runs.decode(drawn), runs.decode(mask))
        _, rings = codec.vocabulary.read(mine[i])
        vertices, cubics = sum(len(ring.nodes) for ring in rings), sum(ring.cubics for ring in rings)
        iou = float(runs.iou([drawn], [mask])[0, 0])
        rows.append((len(mine[i]), iou, inside / either, vertices, len(rings), cubics, runs.area(mask)))
    columns = np.array(rows, dtype=np.float64).T
    area = columns[6]
    names = ("tokens", "iou", "boundary_iou", "vertices", "rings", "cubics")
    classes = {"small": area < 32**2, "medium": (area >= 32**2) & (area < 96**2), "large": area >= 96**2}
    return {
        **{name: float(values.mean()) for name, values in zip(names, columns, strict=False)},
        "iou_p10": float(np.percentile(columns[1], 10)),
        "most_tokens": int(columns[0].max()),
        "by_size": {
            name: {
                "masks": int(these.sum()),
                "tokens": float(columns[0, these].mean()),
                "iou": float(columns[1, these].mean()),
            }
            for name, these in classes.items()
            if these.any()
        },
    }


def peucker(codec: PathCodec, mask: np.ndarray) -> list[list[int]]:
    """The outline at every tolerance, each point at the nearest place of the grid: no search."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    extent = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    bins = box_bins(extent, (mask.shape[0], mask.shape[1]), codec.box_bins)
    box = box_edges(bins, (mask.shape[0], mask.shape[1]), codec.box_bins)
    cell = (box[2:] - box[:2]) / (codec.grid - 1)
    rings = outline(mask)
    out = []
    for tolerance in TOLERANCES:
        nodes = [np.clip(np.rint((ring - box[:2]) / cell), 0, codec.grid - 1) for ring in simplify(rings, tolerance)]
        out.append(codec.write(bins, [GridRing.of(ring.astype(np.int64).tolist()) for ring in nodes]))
    return out


def speed(codec: PathCodec, masks: Sequence[RLE], count: int) -> dict[str, float]:
    """CPU milliseconds a mask on a sample, one by one and eight at a time (as one image has them); and decoding."""
    sample = [runs.decode(masks[i]) for i in np.random.default_rng(1).permutation(len(masks))[:count]]
    out = {}
    efforts: tuple[EffortName, ...] = ("fast", "thorough")
    for effort in efforts:
        for batch in (1, 8):
            groups = [sample[i : i + batch] for i in range(0, len(sample), batch)]
            start = time.process_time()
            for group in groups:
                codec.encode_many(group, PRICE, effort=effort)
            out[f"{effort}, {batch} at a time"] = 1e3 * (time.process_time() - start) / len(sample)
    encoded = codec.encode_many(sample, PRICE, effort="fast")
    pairs = [(x.tokens, (m.shape[0], m.shape[1])) for x, m in zip(encoded, sample, strict=True)]
    start = time.process_time()
    for pair in pairs:
        codec.decode_rle(*pair)
    out["decode to RLE"] = 1e3 * (time.process_time() - start) / len(sample)
    return out


def table(result: dict[str, Any]) -> str:
    """The result as people read it."""
    lines = [
        "  ".join(f"{key}={value}" for key, value in result["machine"].items()),
        f"{result['codec']} ({result['vocabulary']} tokens in all) on {result['masks']} masks of {result['data']}",
        f"{'at':>10s}{'tokens':>9s}{'IoU':>9s}",
        *(f"{row['at']:10g}{row['tokens']:9.1f}{row['iou']:9.4f}" for row in result["curve"]),
        f"{'budget':>10s}{'tokens':>9s}{'IoU':>9s}{'p10':>9s}{'boundary':>10s}{'vertices':>10s}{'rings':>7s}{'longest':>9s}",
    ]
    for budget, row in result["budgets"].items():
        lines.append(
            f"{budget:>10s}{row['tokens']:9.1f}{row['iou']:9.4f}{row['iou_p10']:9.4f}{row['boundary_iou']:10.4f}"
            f"{row['vertices']:10.1f}{row['rings']:7.2f}{row['most_tokens']:9d}"
        )
        for name, part in row["by_size"].items():
            lines.append(f"{name:>10s}{part['tokens']:9.1f}{part['iou']:9.4f}   ({part['masks']} masks)")
    lines += [f"{value:8.1f} ms a mask: {name}" for name, value in result.get("ms_a_mask", {}).items()]
    if result["curve_ms_a_mask"] is not None:
        lines.append(f"{result['curve_ms_a_mask']:8.1f} ms a mask: the whole curve")
    return "\n".join(lines)


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """IoU against tokens a mask, one line a result, one panel a data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        panels.setdefault(f"{result['data']}: {result['masks']:,} masks", []).append(result)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.6), squeeze=False)
    for axis, (title, mine) in zip(axes[0], panels.items(), strict=True):
        for result in mine:
            points = sorted({(row["tokens"], row["iou"]) for row in result["spread"]})
            style = {"linestyle": "--"} if "curves" in result["codec"] else {}
            style |= {"linestyle": ":", "color": "gray"} if "peucker" in result["codec"] else {}
            axis.plot(*zip(*points, strict=True), marker=".", label=result["codec"], **style)
        for budget, goal in ((45, 0.990), (35, 0.985)):
            axis.plot([budget], [goal], "k+", markersize=12)
            axis.annotate(
                f"goal: {goal:.3f} at {budget}", (budget, goal), (4, -12), textcoords="offset points", fontsize=8
            )
        axis.set(
            xlim=(8, 70), ylim=(0.955, 1.0005), xlabel="tokens a mask, all counted", ylabel="mean IoU", title=title
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
