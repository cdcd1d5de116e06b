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

from embedded import SEEDS, SIZE, SMALL, table, unseen
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
points at image tokens of the decoder, and becomes the mask.

**It knows drawn sprites, not photographs.** It was trained from scratch on `vlseg data render sprites` scenes: the
colour glyphs of Noto Color Emoji on painted, textured and photographic backgrounds, restyled, lit, blurred and
compressed. For photographs name a pretrained system or a checkpoint of your own.

{status}

## Training

| | |
|---|---|
| data | procedural scenes, nothing else |
| hardware | 2 CPU cores, no GPU, bf16; scored on {cpu}, {cores} cores |
| input | a picture is resized to about {area:,} pixels |
| weights | {kept}; stored as float16 |

The weights came about in parts, each going on from the one before:

| part | steps | seen | seed | hours | on |
|---|---|---|---|---|---|
{parts_done}

Hours are those of two cores that had other work besides; "–": not written down.

`configs/mini.yaml` is the recipe for doing it in one run (`vlseg train configs/mini.yaml`); that run has not been made
to its end.

## Scores

{scenes} unseen scenes of {size} px (seed {test_seed}), 8 expressions each, free-running, at the scene's own size,
logit > 0, 95 % intervals by bootstrap over images. mIoU, P@0.5 and boundary-IoU are over the expressions that have a
target; cIoU counts also what was drawn where nothing matches (ReLA's rule). T-acc: share of targets that were found.
N-acc: share of expressions without a target that were rejected. The presence threshold {threshold} was fitted on other
scenes (seed {calibration_seed}).

{table}

The lower table switches parts off ({parts} other scenes, masks judged without rejection).

Made by `python benchmarks/embedded.py --calibrate {calibrated} --scenes {scenes} --parts {parts} --card`, then
`python benchmarks/card.py`.

## Failures

![worst cases](../../../docs/images/mini-failures.jpg)

The worst of 60 test scenes, one a scene, judged without rejection; green: the truth, orange: the answer.

## Limits

- Photographs, real objects, people and text are outside of what it has seen.
- About {nouns} nouns; other words are spelled out and mostly rejected.
- Objects under {small} px at {size} px are below what a stride-4 map can draw.
- One mask an expression; "all the dogs" is one mask that holds all of them.
- Path mode (`--mode path`): the path begins with the box of the query's mask, and its rings are rough (docs/paths.md).
"""


def standing(miou: float, goal: float = 0.85) -> str:
    """What a reader must know first: how good it is."""
    if miou >= goal:
        return f"On unseen scenes of its world its mIoU is {miou:.2f}."
    return f"**These are early weights**: many answers are still wrong (mIoU {miou:.2f} where {goal} is the goal)."


def parts_done(folder: Path) -> str:
    """The rows of `history.json`: what was trained, for how long."""
    rows = json.loads((folder / "history.json").read_text())

    def line(row: dict[str, Any]) -> str:
        facts = [row["what"], f"{row['steps']:,}", row["seen"], row.get("seed", "–"), row.get("hours", "–"), row["on"]]
        return f"| {' | '.join(map(str, facts))} |"

    return "\n".join(map(line, rows))


def kept(folder: Path, ema: float) -> str:
    """Which weights of the last part the folder holds: averages, or what `history.json` says instead."""
    last = json.loads((folder / "history.json").read_text())[-1]
    return str(last.get("kept", f"moving average (decay {ema} in the last part)"))


def gallery(system: Any, path: Path, count: int = 12) -> None:
    """The worst answer of each of the worst scenes, drawn as in the gallery of `vlseg eval`."""
    from vlseg.evaluation.gallery import picture
    from vlseg.evaluation.predictor import SystemPredictor
    from vlseg.evaluation.run import evaluate

    data = unseen("scenes", count=60)
    outcome = evaluate(data, SystemPredictor(system, presence_threshold=0.0))
    assert outcome is not None  # one process
    large = [r for r in outcome.records if not r.case.absent and r.case.extent >= SMALL]
    worst: dict[int, Any] = {}
    for record in sorted(large, key=lambda r: r.case.iou):
        worst.setdefault(record.sample, record)
    font = ImageFont.load_default(15)
    tile = SIZE[0] * 2
    sheet = Image.new("RGB", (4 * (tile + 8), -(-count // 4) * (tile + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for n, record in enumerate(list(worst.values())[:count]):
        scene = Image.fromarray(data[record.sample].image)
        x, y = n % 4 * (tile + 8), n // 4 * (tile + 30)
        sheet.paste(picture(scene, record, side=SIZE[0]).resize((tile, tile), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 4, y + tile + 4), f"{record.case.text[:52]}  IoU {record.case.iou:.2f}", fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(path, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a checkpoint folder (default: the embedded model)")
    args = parser.parse_args()

    from vlseg.config import load
    from vlseg.systems.quiet import quiet_loading
    from vlseg.systems.registry import EMBEDDED, WEIGHTS
    from vlseg.training.config import TrainConfig

    with quiet_loading():
        from vlseg.systems.native import NativeSystem

    folder = args.model or WEIGHTS / EMBEDDED
    scores = json.loads((folder / "scores.json").read_text())
    system = NativeSystem.from_pretrained(folder, dtype="float32")
    model = system.model
    config = load(TrainConfig, args.run / "config.yaml")
    here = machine()
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        megabytes=sum(f.stat().st_size for f in folder.iterdir()) / 1e6,
        kept=kept(folder, config.optim.ema),
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
        small=SMALL,
        status=standing(scores["overall"]["mIoU"]["value"]),
        parts_done=parts_done(folder),
    )
    (folder / "README.md").write_text(card)
    gallery(system, GALLERY)


if __name__ == "__main__":
    main()
