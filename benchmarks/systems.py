"""Every system by name: what it can do, whether its masks are those of its own library, what sharing an image gains.

    python benchmarks/systems.py                  the table
    python benchmarks/systems.py --docs           also writes docs/systems.md
    python benchmarks/systems.py --json           one JSON object
    python benchmarks/systems.py --docs --results FILE    the page again, from an earlier JSON object

Parity and speed come from random small checkpoints of the real classes, saved to disk and loaded from there: vlseg
against `benchmarks/plain_systems.py`, one call a text. CLIPSeg is also timed at its real shape.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_systems import LOWERED, OVERLAP, PLAIN, Plain
from timing import machine, paired, ratio

from vlseg.masks.rle import decode
from vlseg.systems.closed_specimens import LABELS, write_eomt, write_mask2former, write_oneformer
from vlseg.systems.presets import PRESETS, Preset
from vlseg.systems.quiet import quiet_loading
from vlseg.systems.registry import load_system
from vlseg.systems.specimens import QUERIES, pictures, write_clipseg, write_specimen

CLOSED = {"eomt": write_eomt, "mask2former": write_mask2former, "oneformer": write_oneformer}
CLASSES = [*LABELS[:7], LABELS[0]]  # eight queries of a closed vocabulary
DOCS = Path(__file__).resolve().parents[1] / "docs" / "systems.md"


def parity(system: Any, plain: Plain, threshold: float, several: bool, closed: bool) -> dict[str, Any]:
    """Masks compared, how many are equal bit for bit, and the lowest IoU; both images, all queries, in one batch.

    closed: queries are the names of classes, and a random picture need not show them all. Raises AssertionError where
    numbers of masks differ, where a mask of the library that is compared has less than 5 or more than 95 % foreground,
    and where a query (closed: an image) has fewer than two masks, one for systems that give one: empty equals empty
    would prove nothing. With classes, masks outside 5-95 % must be equal too but are not counted.
    """
    images, texts = pictures(), CLASSES if closed else QUERIES
    answers = system.segment_batch(images, [texts] * len(images), presence_threshold=threshold)
    compared = equal = 0
    lowest = 1.0
    for image, row in zip(images, answers, strict=True):
        counted = 0
        for text, answer in zip(texts, row, strict=True):
            wanted = [mask for mask, _ in plain(image, text, threshold) if not closed or mask.any()]
            assert closed or len(wanted) >= (2 if several else 1), f"{text}: {len(wanted)} masks"
            given = [decode(segment.rle) for segment in answer.segments]
            assert len(given) == len(wanted), f"{text}: {len(given)} masks, not {len(wanted)}"
            for mask in wanted:
                best = max(float((mask & own).sum() / (mask | own).sum()) for own in given)
                lowest = min(lowest, best)
                whole = bool(0.05 <= mask.mean() <= 0.95)
                assert closed or whole, f"{text}: {mask.mean():.0%} foreground"
                counted += whole
                equal += whole and any(np.array_equal(mask, own) for own in given)
        assert counted >= 2, f"{counted} masks in an image"
        compared += counted
    return {"compared": compared, "equal": equal, "lowest_iou": lowest}


def speed(system: Any, plain: Plain, threshold: float, rounds: int, texts: Sequence[str] = QUERIES) -> dict[str, float]:
    """CPU seconds of eight queries on one image, and how many times longer the plain loop takes."""
    image = pictures()[0]

    def shared() -> None:
        if hasattr(system, "texts"):
            system.texts.clear()  # texts seen before would be free
        system.segment(image, texts, presence_threshold=threshold)

    def loop() -> None:
        for text in texts:
            plain(image, text, threshold)

    seconds = paired({"vlseg": shared, "loop": loop}, rounds, time.process_time)
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    return {**middle, "times": ratio(seconds["loop"], seconds["vlseg"])}


def two_a_query(plain: Plain, threshold: float) -> float:
    """A threshold above which about two instances a query are left. At the lowest, of a random detector, all are, and
    the outlines of hundreds of masks, which the loop does not draw, would be what is timed."""
    scores = sorted((score for text in QUERIES for _, score in plain(pictures()[0], text, threshold)), reverse=True)
    return scores[2 * len(QUERIES)]


def measure(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Parity and speed of one system."""
    closed = name in CLOSED
    with quiet_loading():
        if closed:
            folders = [folder / "0"]
            folder.mkdir()
            CLOSED[name](folders[0])
        else:
            folders = write_specimen(name, folder)
        plain = PLAIN[name](folders)
    system: Any = load_system(f"{name}={','.join(map(str, folders))}", "cpu")
    if closed:
        system.keeps = OVERLAP
    threshold = LOWERED.get(name, system.presence_threshold)
    with torch.inference_mode():
        found = parity(system, plain, threshold, PRESETS[name].instances, closed)
        timed = two_a_query(plain, threshold) if name in LOWERED and not closed else threshold
        times = speed(system, plain, timed, rounds, CLASSES if closed else QUERIES)
        return {**found, **times, "protocol": system.protocol}


def real_clipseg(folder: Path, rounds: int) -> dict[str, float]:
    """CLIPSeg, ViT-B/16 at 352 pixels, random weights."""
    with quiet_loading():
        write_clipseg(folder, real_shape=True)
        plain = PLAIN["clipseg"]([folder])
    with torch.inference_mode():
        return speed(load_system(f"clipseg={folder}", "cpu"), plain, 0.5, rounds)


def row(preset: Preset, found: dict[str, Any] | None) -> list[str]:
    """The cells of one system."""
    size = f"{preset.parameters} M" if preset.parameters else "yours"
    licence = (preset.licence or "yours") + (" (gated)" if preset.gated else "")
    cells = [preset.name, preset.queries, "several" if preset.instances else "one"]
    cells += [preset.absent or "no", "yes" if preset.boxes else "no", licence, size]
    if found is None:
        return [*cells, "own tests", "–"]
    return [*cells, f"{found['equal']} of {found['compared']} equal", f"{found['times']:.1f} ×"]


HEAD = ["system", "queries", "instances", "absent", "boxes", "licence", "size", "parity", "8 queries"]


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    rows = [HEAD, ["---"] * len(HEAD), *(row(preset, found.get(name)) for name, preset in PRESETS.items())]
    return [f"| {' | '.join(cells)} |" for cells in rows]


INTRODUCTION = """# Systems

Other people's models behind the interface of our own: `vlseg segment photo.jpg 'a dog' --model clipseg`.
This page is written by `python benchmarks/systems.py --docs`.
"""
NOTES = """
- *absent*: what says that nothing in the image fits the words; `--presence-threshold` is compared with it.
- *boxes*: a box stands between words and mask.
- *size*: parameters of all checkpoints that are fetched, in millions.
- *parity*: masks equal, bit for bit, to what the model's own library gives, one call a text, for random small
  checkpoints of the real class loaded from disk; two images, eight queries, each mask 5–95 % foreground and at least
  two a query where a system gives several (of a closed vocabulary, whose queries are class names: two an image).
  For `open_clip` the other side is MaskCLIP written out on the library's own ViT. *own tests*: compared in
  `tests/systems/test_closed_nets.py` and `tests/systems/test_open_clip.py`.
- *8 queries*: CPU time of that loop over eight texts, divided by that of one call of vlseg, run lengths and outlines
  of its masks included. It depends on how large the image encoder is beside the rest, and these encoders are tiny:
  read it as what is shared, not as a promise. Detectors are timed where about two instances a query are left.
"""
WEIGHTS = """
## Where the weights come from

The first use fetches them from the Hugging Face Hub; `HF_HUB_OFFLINE=1` is honoured. Any part may be a folder of your
own: `--model clipseg=FOLDER`, `--model grounded-sam2=DETECTOR,SAM2`; a folder alone is opened by what its
`config.json` says it is. `vlseg info models` prints this list. Licences are those of the weights as their owners name
them on the Hub; read them there before you rely on them.

| system | part | checkpoint | revision | licence | gated |
| --- | --- | --- | --- | --- | --- |"""
MORE = """
PaliGemma's masks need Google's file `vae-oid.npz`: `--model paligemma=FOLDER,vae-oid.npz`, or put it into the folder.
Without it the answer is the box, and the protocol of every result says so.

## Any open_clip model, nothing trained

`open_clip` likens every patch to the words of the query and to words for background (MaskCLIP): a ViT's last attention
lets each patch look at itself alone; of a ConvNeXt or ResNet each place of the last map is read. Name a folder as the
Hub has them (`open_clip_config.json` and weights), or an architecture and its checkpoint, a file or one of open_clip's
tags: `--model open_clip=ViT-L-14,weights.safetensors`, `--model open_clip=convnext_base_w,laion2b_s13b_b82k`.
`open_clip-clusters` decides by clusters of alike patches instead of patch by patch. Masks are coarse: add a refiner.

## Sharper masks

`--refine sam2` (or `sam2=FOLDER`) gives each found segment of any system to SAM 2, as a box with a coarse mask; a
segment that fills its box is taken for a box alone. Status and scores stay as they were. The same option of
`vlseg serve` refines every answer of a server; in Python it is `Segmenter(model, refine="sam2")`.
`--refine vlseg` is vlseg's own refiner, which knows drawn scenes, not photographs (docs/paths.md, "Refiner").

## The same images again

`--cache DIR` (`Segmenter(model, cache=DIR)`) keeps what a system makes of an image on disk: the next questions about
it, in another process too, do not run the image encoder. An entry is known by the pixels, the model's files, the number
type and the versions of the libraries, so that another checkpoint never reads it. `--cache-size GB` bounds the folder;
the least recently used entries go first. A damaged entry is told once and made anew. Tiles are kept as images of their
own; what a refiner sees is not kept.
"""


def page(result: dict[str, Any]) -> str:
    """docs/systems.md."""
    found, real = result["systems"], result["clipseg_real_shape"]
    lines = [INTRODUCTION, *table(found), NOTES]
    lines.append(
        f"CLIPSeg at its real shape (ViT-B/16, 352 pixels, CLIP's own tokenizer, random weights): eight queries "
        f"{real['vlseg']:.2f} s against {real['loop']:.2f} s of the loop, **{real['times']:.1f} ×**.\n\n"
        f"Measured on one thread of: {result['machine']['cpu']}."
    )
    lines.append(WEIGHTS)
    for preset in PRESETS.values():
        for part in preset.parts:
            role = f"{part.role} (optional)" if part.optional else part.role
            cells = [preset.name, role, part.id or "of your own", part.revision if part.hub else "–"]
            cells += [part.licence or "yours", "yes" if part.gated else "no"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What the scores mean", "", "Scores of different systems are not comparable.", ""]
    lines += [f"- `{name}`: {one['protocol']}" for name, one in found.items()]
    lines.append(MORE)
    return "\n".join(lines)


def run(systems: Sequence[str], rounds: int) -> dict[str, Any]:
    """All measurements, on one thread."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "systems": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in systems:
            print(name, file=sys.stderr)
            result["systems"][name] = measure(name, Path(folder) / name, rounds)
        real = Path(folder) / "real"
        real.mkdir()
        print("clipseg, real shape", file=sys.stderr)
        result["clipseg_real_shape"] = real_clipseg(real, rounds)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run all, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed repetitions (default 3)")
    parser.add_argument("--systems", nargs="+", default=list(PLAIN), choices=list(PLAIN), help="only these")
    parser.add_argument("--docs", action="store_true", help="write docs/systems.md; needs all systems")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument("--results", metavar="FILE", help="measure nothing; take what --json gave")
    args = parser.parse_args(argv)
    if args.docs and args.systems != list(PLAIN):
        parser.error("--docs needs all systems")
    result = json.loads(Path(args.results).read_text()) if args.results else run(args.systems, args.rounds)
    if args.docs:
        DOCS.write_text(page(result), encoding="utf-8")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(table(result["systems"])))
        print(f"clipseg, real shape: {result['clipseg_real_shape']['times']:.1f} times faster than the loop")


if __name__ == "__main__":
    main()
