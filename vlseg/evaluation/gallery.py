"""`gallery.html`: the worst, middling and rejected cases of a run as one page that needs nothing else.

Pictures are scaled down and inside the page; the truth is a green line, the answer orange. Masks are drawn
whole, also where their pixels are ignored.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlseg.data.dataset import Dataset
from vlseg.data.files import write_whole
from vlseg.data.images import open_image
from vlseg.evaluation.batch import Record
from vlseg.masks import rle as codec
from vlseg.masks.outline import outline
from vlseg.masks.resize import resize_mask
from vlseg.types import VLSegError

NAME = "gallery.html"
SIDE = 300  # longest side of a picture in pixels
EACH = 12  # cases a group
TRUTH, ANSWER, RIM = (0, 230, 90), (255, 109, 0), (20, 20, 20)
FILL = 0.4  # share of the answer's colour inside of it

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; max-width: 1340px; }}
h1 {{ font-size: 1.3rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .6rem; }}
.cases {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({side}px, 1fr)); gap: 14px; }}
figure {{ margin: 0; }} img {{ max-width: 100%; display: block; border-radius: 4px; }}
figcaption {{ padding-top: 4px; overflow-wrap: anywhere; }}
.id {{ opacity: .65; font-size: .85em; }}
.truth {{ color: rgb{truth}; }} .answer {{ color: rgb{answer}; }} .red {{ color: #d50000; font-weight: bold; }}
</style></head><body>
<h1>{title}</h1>
{warnings}<p>{scores}</p>
<p><b class="truth">green line</b>: the truth; <b class="answer">orange</b>: the answer.</p>
{groups}
</body></html>
"""


def choose(records: Sequence[Record], each: int = EACH) -> dict[str, list[Record]]:
    """The cases that a person should see first, by group: one an image within a group, each in one group only."""
    found = [r for r in records if r.case.found and not r.case.absent]
    by_iou = sorted(found, key=lambda r: r.case.iou)
    middle = sorted(by_iou, key=lambda r: abs(r.case.iou - float(np.median([r.case.iou for r in by_iou]))))
    rejected = [r for r in records if not r.case.absent and r.case.status == "absent"]
    alarms = [r for r in records if r.case.absent and r.case.found]
    failed = [r for r in records if r.case.status == "failed"]
    groups = {
        "Worst": by_iou,
        "Wrong instance: a distractor was taken for the target": sorted(
            (r for r in found if r.case.activation and r.case.activation.wrong), key=lambda r: r.case.iou
        ),
        "Median": middle,
        "Rejected though there": sorted(rejected, key=lambda r: _score(r)),
        "Found though not there": sorted(alarms, key=lambda r: -_score(r)),
        "Failed": failed,
    }
    shown: set[str] = set()
    chosen = {}
    for title, cases in groups.items():
        picked = _one_an_image([record for record in cases if record.case.id not in shown], each)
        shown |= {record.case.id for record in picked}
        if picked:
            chosen[title] = picked
    return chosen


def write_gallery(folder: Path, records: Sequence[Record], dataset: Dataset, report: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all. A picture that cannot be read is said to be so in its place."""
    groups = []
    for title, chosen in choose(records).items():
        figures = "\n".join(_figure(record, dataset) for record in chosen)
        groups.append(f'<h2>{html.escape(title)}</h2>\n<div class="cases">\n{figures}\n</div>')
    protocol, metrics = report["protocol"], report["metrics"]
    shown = [f"{name} {metrics[name]['value']:.3f}" for name in ("mIoU", "cIoU", "P@0.5", "N-acc") if name in metrics]
    warnings = [f'<p class="red">Not by the protocol: {html.escape(text)}</p>\n' for text in protocol["deviations"]]
    page = PAGE.format(
        title=html.escape(f"{protocol['model']} on {protocol['data']} {protocol['split']}".strip()),
        side=SIDE,
        truth=TRUTH,
        answer=ANSWER,
        warnings="".join(warnings),
        scores=html.escape(f"{report['cases']} cases; {', '.join(shown)}"),
        groups="\n".join(groups),
    )
    write_whole(folder / NAME, page)
    return folder / NAME


def picture(image: Image.Image, record: Record, side: int = SIDE) -> Image.Image:
    """The image scaled down to at most `side` pixels, with answer and truth drawn on it."""
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    small = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR), np.float32)
    # "area" would lose what is thinner than half a pixel of the small picture
    inside = resize_mask(codec.decode(record.prediction), size, "nearest")[..., None]
    blended = np.where(inside, (1 - FILL) * small + FILL * np.array(ANSWER, np.float32), small)
    drawn = Image.fromarray(np.rint(blended).astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for mask, color in ((record.prediction, ANSWER), (record.truth, TRUTH)):
        rings = [ring * (size[1] / image.width, size[0] / image.height) for ring in outline(codec.decode(mask))]
        for paint, width in ((RIM, 4), (color, 2)):  # the dark rim keeps a line apart from a background of its colour
            for ring in rings:
                draw.line([*map(tuple, ring), tuple(ring[0])], fill=paint, width=width)
    return drawn


def _figure(record: Record, dataset: Dataset) -> str:
    case = record.case
    try:
        image, _ = open_image(dataset[record.sample].image)
        if [image.height, image.width] != record.truth["size"]:
            raise VLSegError(f"the picture is {image.height} x {image.width}, the masks are not")
        buffer = io.BytesIO()
        picture(image, record).save(buffer, "JPEG", quality=80)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        shown = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    except VLSegError as error:
        shown = f'<p class="red">{html.escape(str(error))}</p>'
    facts = [case.status, f"IoU {case.iou:.2f}"]
    if case.score is not None:
        facts.append(f"score {case.score:.2f}")
    if case.reason:
        facts.append(case.reason)
    words, details = html.escape(case.text), html.escape("; ".join(facts))
    caption = f'<b>{words}</b><br>{details}<br><span class="id">{html.escape(case.id)}</span>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _score(record: Record) -> float:
    return -1.0 if record.case.score is None else record.case.score


def _one_an_image(records: Sequence[Record], count: int) -> list[Record]:
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(record.case.image, record)
    return list(first.values())[:count]
