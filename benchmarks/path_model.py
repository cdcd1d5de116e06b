"""What path mode of a model is worth on unseen scenes, beside mask mode, and where it loses: box or rings.

    python benchmarks/path_model.py --model FOLDER [--scenes 100] [--size 256] [--write docs/paths.md] [--json]

Rejection is off, so that a score is that of a mask; only queries with a target count. The model writes each path three
times: all of it; its rings alone, in the box of what mask mode found; and in the true box. The two boxes themselves, as
masks, say what the rings add. Intervals: 95 % by bootstrap over images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SEED = 960_001  # training uses seeds below 1000
BATCH = 8
MARKS = ("<!-- path_model: begin -->", "<!-- path_model: end -->")
ROWS = (
    "mask mode",
    "path mode",
    "rings in mask mode's box",
    "rings in the true box",
    "mask mode's box",
    "the true box",
)


def box_of(codec: Any, mask: np.ndarray) -> list[int]:
    """The tokens of the box around a mask; of the whole image where it is empty."""
    from vlseg.masks.grid import box_bins

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    extent = (0, 0, mask.shape[1], mask.shape[0])
    if len(rows):
        extent = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    bins = box_bins(extent, (mask.shape[0], mask.shape[1]), codec.box_bins)
    return [codec.vocabulary.first["box"] + i for i in bins]


def batches(scenes: int, size: int) -> Iterator[list[Any]]:
    """Unseen scenes, some at a time."""
    from vlseg.worlds.sprites import SpriteWorld

    world = SpriteWorld(styles="train")
    for start in range(0, scenes, BATCH):
        yield [world.scene(SEED, i, (size, size), 8) for i in range(start, min(start + BATCH, scenes))]


def answers(system: Any, scenes: list[Any]) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
    """(image, truth, masks by row of the table) of every query with a target."""
    import torch
    from PIL import Image
    from transformers import DynamicCache

    from vlseg.models.packing import pack_queries
    from vlseg.models.path_decoding import decode_paths
    from vlseg.models.path_head import codec_of

    model, processor, codec = system.model, system.processor, codec_of(system.model.config)
    size = scenes[0].ids.shape
    packed = pack_queries([[processor.query_ids(q.text) for q in s.queries] for s in scenes], processor.pad_id)
    query = packed.tensors()
    places = [(b, k) for b, s in enumerate(scenes) for k, q in enumerate(s.queries) if q.targets]
    wanted = torch.zeros_like(packed.valid)
    for b, k in places:
        wanted[b, k] = True
    truth = {(b, k): np.isin(scenes[b].ids, [t + 1 for t in scenes[b].queries[k].targets]) for b, k in places}
    with torch.no_grad():
        features = system.features([Image.fromarray(scene.image) for scene in scenes])
        output = model(image_features=features, **query)
        masks = [processor.masks(output, b, size, len(scene.queries)) for b, scene in enumerate(scenes)]
        found = {(b, k): masks[b][k] for b, k in places}
        boxes = {row: {at: box_of(codec, mask) for at, mask in known.items()} for row, known in
                 (("mask mode's box", found), ("the true box", truth))}  # fmt: skip
        written = {}
        for row, begins in (("path mode", {}), ("rings in mask mode's box", boxes["mask mode's box"]),
                            ("rings in the true box", boxes["the true box"])):  # fmt: skip
            cache = DynamicCache()
            model(image_features=features, cache=cache, **query)
            written[row] = decode_paths(model, features, query, cache, wanted, begins=begins)
    end = codec.vocabulary.first["end"]
    for at in places:
        drawn = {"mask mode": found[at]}
        drawn |= {row: codec.decode(paths[at], size) for row, paths in written.items()}
        drawn |= {row: codec.decode([*known[at], end], size) for row, known in boxes.items()}
        yield at[0], truth[at], drawn


def measure(system: Any, scenes: int, size: int) -> dict[str, Any]:
    """The table as plain data."""
    from vlseg.metrics.bootstrap import interval
    from vlseg.metrics.boundary import boundary_overlap

    terms: dict[str, dict[str, list[tuple[str, float, float]]]] = {
        row: {"mIoU": [], "boundary IoU": [], "P@0.5": []} for row in ROWS
    }
    for number, some in enumerate(batches(scenes, size)):
        for b, truth, drawn in answers(system, some):
            image = str(number * BATCH + b)
            for row, mask in drawn.items():
                overlap = np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)
                both, either = boundary_overlap(mask, truth)
                terms[row]["mIoU"].append((image, overlap, 1.0))
                terms[row]["boundary IoU"].append((image, both / max(1, either), 1.0))
                terms[row]["P@0.5"].append((image, float(overlap > 0.5), 1.0))
    result: dict[str, Any] = {"model": system.name, "scenes": scenes, "size": size}
    result["cases"] = len(terms["mask mode"]["mIoU"])
    result["rows"] = {}
    for row, scores in terms.items():
        values = {name: interval(some) for name, some in scores.items()}
        result["rows"][row] = {name: {"value": value, "ci95": list(ends)} for name, (value, ends) in values.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    names = list(next(iter(result["rows"].values())))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for row, scores in result["rows"].items():
        cells = [f"{e['value']:.3f} ({e['ci95'][0]:.3f}–{e['ci95'][1]:.3f})" for e in scores.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    cases = f"{result['cases']} queries with a target in {result['scenes']} unseen scenes of {result['size']} px"
    return "\n".join([*lines, "", f"{cases}, rejection off."])


def write(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put a table between its marks in a page. Raises SystemExit where the page has none."""
    from vlseg.data.files import write_whole

    before, begin, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise SystemExit(f"{page}: has no {marks[0]} ... {marks[1]}")
    write_whole(page, f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder with path mode (default: the embedded model)")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--size", type=int, default=256, help="side of the scenes in pixels")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table between its marks in this page")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from vlseg.systems.native import NativeSystem
        from vlseg.systems.registry import EMBEDDED, WEIGHTS

    system = NativeSystem.from_pretrained(
        Path(args.model or WEIGHTS / EMBEDDED), dtype="float32", name=args.model or EMBEDDED
    )
    start = time.process_time()
    result = measure(system, args.scenes, args.size)
    result["CPU minutes"] = round((time.process_time() - start) / 60, 1)
    if args.write:
        write(args.write, table(result))
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
