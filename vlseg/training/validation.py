"""How a model in training does: scores on a data set or on scenes of the world, and a picture of its answers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vlseg.data.dataset import Dataset
from vlseg.data.images import open_image
from vlseg.evaluation.calibrate import best_threshold, platt
from vlseg.evaluation.predictor import SystemPredictor
from vlseg.evaluation.ranks import Ranks
from vlseg.evaluation.run import Settings, evaluate
from vlseg.evaluation.scenes import score_scenes
from vlseg.masks import lettering
from vlseg.masks import rle as codec
from vlseg.masks.drawing import overlay
from vlseg.masks.palette import color
from vlseg.masks.rle import decode_union
from vlseg.metrics.case import Case
from vlseg.metrics.referring import by_kind, summary
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.base import segment_of
from vlseg.systems.native import NativeSystem
from vlseg.training.config import DataSection
from vlseg.types import Answer, Query, Result, Sample, VLSegError
from vlseg.worlds.sprites import SpriteWorld

GRID = 6  # pictures of a grid
GRID_QUERIES = 5  # of each
GAP, LEGEND = 6, 300  # pixels between pictures, and for the words
ENOUGH = 20  # cases with a target, and without one, that a calibration needs


def score_world(model: VLSegModel, processor: VLSegProcessor, data: DataSection) -> list[Case]:
    """Cases of unseen scenes of the world."""
    world = SpriteWorld(styles="train")
    size = (data.val_size[0], data.val_size[1])
    scenes = (world.scene(data.val_seed, i, size, data.queries) for i in range(data.val_scenes))
    return score_scenes(model, processor, scenes)


def score_dataset(system: NativeSystem, data: Dataset, limit: int | None, ranks: Ranks, folder: Path) -> list[Case]:
    """Cases of a data set's first `limit` pictures; [] on all ranks but the main one.

    folder: where several ranks put together what they have found; it is removed again.
    """
    several = ranks.world > 1
    if several:
        if ranks.main:
            shutil.rmtree(folder, ignore_errors=True)
        ranks.wait()
    outcome = evaluate(data, SystemPredictor(system), Settings(limit=limit), folder if several else None, {}, ranks)
    if several and ranks.main:
        shutil.rmtree(folder, ignore_errors=True)
    return [] if outcome is None else [record.case for record in outcome.records]


def scores_of(cases: Sequence[Case]) -> dict[str, float]:
    """All scores, and the mIoU of each kind of expression, where the data tell kinds."""
    kinds = by_kind([case for case in cases if case.kind])
    return {**summary(cases), **{f"mIoU/{kind}": s["mIoU"] for kind, s in kinds.items() if "mIoU" in s}}


def calibrated(cases: Sequence[Case], presence: dict[str, float]) -> dict[str, float] | None:
    """Scale, bias and threshold of the presence score that fit these cases; None where they are too few.

    presence: with which the cases were scored.
    """
    scored = [case for case in cases if case.score is not None and 0 < case.score < 1]
    score = np.array([case.score for case in scored], float)
    present = np.array([not case.absent for case in scored], bool)
    if present.sum() < ENOUGH or (~present).sum() < ENOUGH:
        return None
    evidence = (np.log(score / (1 - score)) - presence["bias"]) / presence["scale"]
    scale, bias = platt(evidence, present)
    if scale <= 0:  # the model cannot tell yet; a negative scale would turn its answers round
        return None
    return {
        "scale": scale,
        "bias": bias,
        "threshold": best_threshold(1 / (1 + np.exp(-scale * evidence - bias)), present),
    }


def answer_grid(system: NativeSystem, data: Dataset, height: int = 240) -> Image.Image | None:
    """The first pictures of a data set, a row each: the truth, the answers of the system, and what was asked.

    height: of every picture, in pixels. None where no picture can be read.
    """
    rows: list[Image.Image] = []
    for i in range(len(data)):
        if len(rows) == GRID:
            break
        try:
            sample = data[i]
            queries = [query for query in sample.queries if query.masks is not None][:GRID_QUERIES]
            if queries:
                rows.append(_row(system, sample, queries, height))
        except VLSegError:
            continue  # the scores name what cannot be read
    if not rows:
        return None
    sheet = Image.new("RGB", (max(row.width for row in rows), len(rows) * (height + GAP)), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (height + GAP)))
    return sheet


def _row(system: NativeSystem, sample: Sample, queries: Sequence[Query], height: int) -> Image.Image:
    picture, name = open_image(sample.image)
    whole = (picture.height, picture.width)
    width = min(max(1, round(picture.width * height / picture.height)), 3 * height)
    truth = [_truth(query, whole) for query in queries]
    found = system.segment(picture, [query.text for query in queries])
    row = Image.new("RGB", (2 * (width + GAP) + LEGEND, height), "white")
    for column, answers in enumerate((truth, found)):
        drawn = overlay(picture, Result(name, whole, system.name, answers), labels=False, captions=False)
        row.paste(drawn.resize((width, height), Image.Resampling.LANCZOS), (column * (width + GAP), 0))
    draw = ImageDraw.Draw(row)
    left, font = 2 * (width + GAP) + 4, lettering.font_for("Ag", 12)
    draw.text((left, 2), "left: truth, right: answer", font=font, fill="grey")
    for number, (query, one, other) in enumerate(zip(queries, truth, found, strict=True)):
        y = 24 + number * 36
        draw.rectangle((left, y + 2, left + 10, y + 12), fill=color(number))
        draw.text((left + 16, y), lettering.cut(query.text, font, LEGEND - 24), font=font, fill="black")
        draw.text((left + 16, y + 15), _verdict(one, other), font=font, fill="grey")
    return row


def _verdict(truth: Answer, answer: Answer) -> str:
    score = "" if answer.score is None else f" {answer.score:.2f}"
    if truth.status == "absent":
        return f"not there; answer: {answer.status}{score}"
    if answer.status != "found":
        return f"answer: {answer.status}{score}"
    overlap = codec.iou([truth.segments[0].rle], [codec.encode(answer.mask)])[0, 0]
    return f"answer: found{score}, IoU {overlap:.2f}"


def _truth(query: Query, size: tuple[int, int]) -> Answer:
    segment = segment_of(decode_union(query.masks or [], size), 1.0)
    if segment is None:
        return Answer(query.text, "absent", 0.0, size)
    return Answer(query.text, "found", 1.0, size, segments=[segment])
