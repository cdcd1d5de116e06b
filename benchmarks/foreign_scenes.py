"""Score a model on scenes that its own training world did not draw: other renderer, placement and wordings.

    python benchmarks/foreign_scenes.py [--model FOLDER] [--scenes 200] [--photos FOLDER] [--sheet FILE.png] [--json]

Only the names of things are shared with the training world. Glyphs come from NotoColorEmoji.ttf through Pillow
(Debian: fonts-noto-color-emoji), on painted or blurred photographic backgrounds; every query is checked against the
finished picture, and said only where the margin is clear. `--sheet` draws scenes with their queries and runs no model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from foreign_pictures import FONT, SIDE, FontError, Glyphs, Photos, Thing, cast, paint, painted, place, shares
from foreign_words import Query, Truths
from PIL import Image, ImageDraw

SEED, OBJECTS, QUERIES = 950_001, 6, 6


@dataclass
class Scene:
    """image (H, W, 3) uint8; ids (H, W) uint8: 0 is background, i is object i - 1."""

    image: np.ndarray
    ids: np.ndarray
    objects: list[Thing]
    queries: list[Query]
    background: str


def generate(
    count: int,
    seed: int = SEED,
    objects: int = OBJECTS,
    queries: int = QUERIES,
    font: str | None = None,
    photos: str | Path | None = None,
) -> Iterator[Scene]:
    """`count` scenes of 256 x 256 px; the same arguments, font and photographs give the same scenes.

    photos: a folder of photographs to cut backgrounds from; otherwise textures of scikit-image, if it is installed.
    """
    glyphs, album = Glyphs(font), Photos(photos)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        for _ in range(200):
            placed = place(cast(objects, glyphs, rng), glyphs, rng)
            if placed is not None:
                break
        else:
            raise ValueError(f"{objects} objects do not fit into a scene")
        ids, things, drawn = placed
        photographic = bool(album) and rng.random() < 0.5
        image = paint(album.draw(rng) if photographic else painted(rng), drawn, rng)
        for i, thing in enumerate(things):
            thing.colours = shares(image[ids == i + 1])
        chosen = Truths(things, rng).pick(queries)
        yield Scene(image, ids, things, chosen, "photographic" if photographic else "painted")


def sheet(scenes: Sequence[Scene], file: str, columns: int = 4) -> None:
    """A picture of scenes, targets numbered as in the queries below them."""
    width, height = SIDE + 16, SIDE + 14 * QUERIES + 22
    page = Image.new("RGB", (columns * width, -(-len(scenes) // columns) * height), "white")
    draw = ImageDraw.Draw(page)
    for n, scene in enumerate(scenes):
        x, y = n % columns * width + 8, n // columns * height + 8
        page.paste(Image.fromarray(scene.image), (x, y))
        for i, thing in enumerate(scene.objects):
            inside = scene.ids == i + 1
            padded = np.pad(inside, 1)
            core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
            edge = Image.fromarray((inside & ~core).astype(np.uint8) * 255)
            page.paste(Image.new("RGB", edge.size, "red"), (x, y), edge)
            at = x + thing.box[0], y + thing.box[1]
            draw.rectangle((*at, at[0] + 8, at[1] + 11), "black")
            draw.text((at[0] + 1, at[1]), str(i), "white")
        for k, query in enumerate(scene.queries):
            answer = ",".join(map(str, query.targets)) or "-"
            draw.text((x, y + SIDE + 4 + 14 * k), f"{answer}  {query.text}", "black" if query.targets else "red")
    page.save(file)


def measure(model: Any, processor: Any, scenes: Callable[[], Iterator[Scene]]) -> dict[str, Any]:
    """All tables as plain data."""
    from vlseg.evaluation.scenes import score_scenes
    from vlseg.metrics.bootstrap import with_intervals

    backgrounds: list[str] = []

    def noted() -> Iterator[Scene]:
        for scene in scenes():
            backgrounds.append(scene.background)
            yield scene

    cases = score_scenes(model, processor, noted())
    return {
        "scenes": len(backgrounds),
        "queries": len(cases),
        "overall": with_intervals(cases),
        "kinds": {k: with_intervals([c for c in cases if c.kind == k]) for k in sorted({c.kind for c in cases})},
        "backgrounds": {
            b: with_intervals([c for c in cases if backgrounds[int(c.image)] == b]) for b in sorted(set(backgrounds))
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""

    def cell(scores: dict[str, Any], name: str) -> str:
        entry = scores.get(name)
        return "" if entry is None else f"{entry['value']:.3f} ({entry['ci95'][0]:.3f}–{entry['ci95'][1]:.3f})"

    columns = ["mIoU", "cIoU", "P@0.5", "wrong-instance", "T-acc", "N-acc"]
    lines = ["| | cases | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    rows = {"every query": result["overall"], **result["kinds"]}
    rows |= {f"on {name} backgrounds": scores for name, scores in result["backgrounds"].items()}
    for name, scores in rows.items():
        cases = sum(scores[k]["cases"] for k in ("mIoU", "N-acc") if k in scores)
        lines.append(f"| {name} | {cases} | " + " | ".join(cell(scores, c) for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder (default: the embedded model)")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--objects", type=int, default=OBJECTS, help="objects in a scene")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--font", help=f"a colour bitmap font (default: the system's {FONT})")
    parser.add_argument("--photos", help="a folder of photographs for backgrounds (default: scikit-image's textures)")
    parser.add_argument("--sheet", metavar="FILE", help="draw the first 24 scenes with their queries, and stop")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    def scenes() -> Iterator[Scene]:
        return generate(args.scenes, args.seed, args.objects, font=args.font, photos=args.photos)

    try:
        Glyphs(args.font)
    except FontError as error:
        print(f"foreign_scenes: {error}", file=sys.stderr)
        sys.exit(2)
    if args.sheet:
        drawn = list(itertools.islice(scenes(), 24))
        sheet(drawn, args.sheet)
        print(json.dumps({"sheet": args.sheet, "scenes": len(drawn)}) if args.json else args.sheet)
        return

    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor
    from vlseg.systems.registry import EMBEDDED, WEIGHTS

    folder = Path(args.model or WEIGHTS / EMBEDDED)
    model = VLSegModel.from_pretrained(folder, dtype="float32").eval()
    processor = VLSegProcessor.from_pretrained(folder)
    start = time.perf_counter()
    result = {"model": args.model or EMBEDDED, "seed": args.seed, "presence": model.config.presence}
    result |= measure(model, processor, scenes)
    result["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
