"""Write the embedded model's card and its failure gallery from what was measured.

    python benchmarks/card.py --run runs/mini [--model FOLDER]

Reads `scores.json` (made by `embedded.py --card`) and the run's `config.yaml` and `metrics.jsonl`; writes `README.md`
beside the weights and `docs/images/mini-failures.jpg`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from embedded import SEEDS, SIZE, scenes, table
from PIL import Image, ImageDraw, ImageFont
from timing import machine

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "docs" / "images" / "mini-failures.jpg"

CARD = """---
license: apache-2.0
library_name: vlseg
tags: [referring-segmentation, vision-language]
---

# vlseg-mini

The model that vlseg carries inside the package: words in, masks out, on a machine without network or GPU. It is the
native architecture of vlseg in a tiny configuration ({parameters:.1f} M parameters, {megabytes:.1f} MB):
transformers' `FastVlmForConditionalGeneration` with a ConvNeXt-atto tower and a Qwen2 decoder reads the picture and all
queries in one packed row; an `open_clip` ConvNeXt-atto tower gives the pixels; the state that predicts [SEG] or [REJ]
becomes the mask.

**It knows drawn sprites, not photographs.** It was trained from scratch on `vlseg data render sprites` scenes: the
colour glyphs of Noto Color Emoji on painted, textured and photographic backgrounds, restyled, lit, blurred and
compressed. For photographs name a pretrained system or a checkpoint of your own.

{status}

## Training

| | |
|---|---|
| command | `vlseg train configs/mini.yaml` (the values are in `config.yaml` of the run) |
| data | procedural scenes, seed {seed}, nothing else |
| seen | {mosaics:,} mosaics in the warm-up of the towers, then {seen:,} expressions in {steps:,} steps |
| hardware | {cpu}, {cores} cores, no GPU, bf16; {hours:.1f} hours after the warm-up |
| input | a picture is resized to about {area:,} pixels |
| weights | moving average (decay {ema}), stored as float16 |

## Scores

{scenes} unseen scenes of {size} px (seed {test_seed}), 8 expressions each, free-running, at the scene's own size,
logit > 0, 95 % intervals by bootstrap over images. T-acc: share of present targets that were not rejected. N-acc: share
of absent ones that were. The presence threshold {threshold} was fitted on other scenes (seed {calibration_seed}).

{table}

The lower table switches parts off ({parts} other scenes, masks judged without rejection).

Made by `python benchmarks/embedded.py --calibrate {calibrated} --scenes {scenes} --parts {parts} --card`, then
`python benchmarks/card.py`.

## Failures

![worst cases](../../../docs/images/mini-failures.jpg)

The worst of the first 60 test scenes, one a scene; green: the truth, red: the answer.

## Limits

- Photographs, real objects, people and text are outside of what it has seen.
- About {nouns} nouns; other words are spelled out and mostly rejected.
- Objects under {small} px at {size} px are below what a stride-4 map can draw.
- One mask an expression; "all the dogs" is one mask that holds all of them.
"""


def standing(steps: int, planned: int, miou: float) -> str:
    """What a reader must know first: how far the run has come."""
    if steps >= planned:
        return f"The run is complete ({steps:,} steps)."
    return (
        f"**These are early weights**: the run stands at step {steps:,} of {planned:,}, and many answers are still "
        f"wrong (mIoU {miou:.2f} where 0.85 is the goal)."
    )


def history(run: Path, last: int | None) -> dict[str, Any]:
    """Expressions, steps and hours of a run, from its metrics, up to step `last`."""
    seen = steps = 0
    hours = 0.0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "expr_per_s" in record and (last is None or record["step"] <= last):
            hours += (record["seen"] - seen) / record["expr_per_s"] / 3600
            seen, steps = record["seen"], record["step"]
    return {"seen": seen, "steps": steps, "hours": hours}


def outlined(image: np.ndarray, masks: list[tuple[np.ndarray, str]]) -> Image.Image:
    """The picture with the outlines of masks drawn on it."""
    from vlseg.masks.outline import outline

    picture = Image.fromarray(image).resize((image.shape[1] * 2, image.shape[0] * 2))
    draw = ImageDraw.Draw(picture)
    for mask, color in masks:
        for ring in outline(mask):
            points = [(float(x) * 2, float(y) * 2) for x, y in ring]
            draw.line([*points, points[0]], fill=color, width=3)
    return picture


def gallery(model: Any, processor: Any, path: Path, count: int = 12) -> None:
    """The worst case of each of the worst scenes, outlined."""
    import torch

    from vlseg.evaluation.scenes import score_scenes
    from vlseg.worlds.sprites import SpriteWorld

    pictures = list(scenes(SpriteWorld(styles="train"), SEEDS["scenes"], 60))
    cases = score_scenes(model, processor, pictures)
    worst: dict[str, tuple[float, int]] = {}
    start: dict[str, int] = {}
    for i, case in enumerate(cases):
        start.setdefault(case.image, i)
        if case.extent >= 24 and (case.image not in worst or case.iou < worst[case.image][0]):
            worst[case.image] = (case.iou, i - start[case.image])
    font = ImageFont.load_default(15)
    tile = SIZE[0] * 2
    sheet = Image.new("RGB", (4 * (tile + 8), -(-count // 4) * (tile + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (image, (iou, k)) in enumerate(sorted(worst.items(), key=lambda item: item[1])[:count]):
        scene = pictures[int(image)]
        query = scene.queries[k]
        pixels = processor.pixel_values(Image.fromarray(scene.image))
        with torch.no_grad():
            output = model(pixel_values=pixels, **processor.pack([[query.text]]).tensors())
        answer = processor.masks(output, 0, scene.ids.shape, 1)[0]
        truth = np.isin(scene.ids, [t + 1 for t in query.targets])
        x, y = n % 4 * (tile + 8), n // 4 * (tile + 30)
        sheet.paste(outlined(scene.image, [(truth, "#00c853"), (answer, "#ff1744")]), (x, y))
        draw.text((x + 4, y + tile + 4), f"{query.text[:52]}  IoU {iou:.2f}", fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(path, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--step", type=int, help="the step that the weights are of (default: the last)")
    parser.add_argument("--model", type=Path, help="a checkpoint folder (default: the embedded model)")
    args = parser.parse_args()

    from vlseg.config import load
    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor
    from vlseg.systems.registry import EMBEDDED, WEIGHTS
    from vlseg.training.config import TrainConfig

    folder = args.model or WEIGHTS / EMBEDDED
    scores = json.loads((folder / "scores.json").read_text())
    model = VLSegModel.from_pretrained(folder, dtype="float32").eval()
    config = load(TrainConfig, args.run / "config.yaml")
    here, done = machine(), history(args.run, args.step)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        megabytes=sum(f.stat().st_size for f in folder.iterdir()) / 1e6,
        seed=config.data.seed,
        ema=config.optim.ema,
        cpu=here["cpu"],
        cores=here["cores"],
        scenes=scores["scenes"],
        size=f"{SIZE[0]} x {SIZE[1]}",
        test_seed=SEEDS["scenes"],
        calibration_seed=SEEDS["calibration"],
        threshold=scores["presence"]["threshold"],
        table=table(scores),
        parts=scores["parts"]["scenes"],
        calibrated=scores["calibration_scenes"],
        area=model.config.image["area"],
        nouns=model.config.head["nouns"],
        small=24,
        mosaics=config.warmup.steps * config.warmup.images,
        status=standing(done["steps"], config.steps, scores["overall"]["mIoU"]["value"]),
        **done,
    )
    (folder / "README.md").write_text(card)
    gallery(model, VLSegProcessor.from_pretrained(folder), GALLERY)


if __name__ == "__main__":
    main()
