"""Path mode of the native model: scores decide which queries are answered, the model writes a path for each of them.

A checkpoint may say `paths.box = "mask"` in its config: then a path begins with the box of the query's mask, and the
model writes the rings in it. Where the mask has no pixel there is no such box, and the model writes its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from transformers import DynamicCache

from vlseg.masks import rle as codec
from vlseg.masks.grid import box_bins
from vlseg.masks.path_codec import PathCodec
from vlseg.models.configuration import VLSegConfig
from vlseg.models.path_decoding import stream_paths
from vlseg.models.path_head import codec_of
from vlseg.models.processing import presence_scores
from vlseg.systems.base import EncodedImage, PartialAnswer, failed
from vlseg.systems.passes import plan
from vlseg.types import Answer, Segment

if TYPE_CHECKING:
    from vlseg.systems.native import NativeSystem

LEAST_PIECE = 0.1  # of the largest piece of a mask: what is smaller does not widen the box


@torch.inference_mode()
def stream_answers(
    system: NativeSystem,
    images: Sequence[Image.Image | EncodedImage],
    texts: Sequence[Sequence[str]],
    threshold: float,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: int | None = None,
) -> Iterator[tuple[int, PartialAnswer]]:
    """(image, what has come of an answer) for images of one input size. A query that is absent or cannot be asked is
    done at once; the others come ring by ring. seed: the k-th query of an image draws with seed + k.

    Raises VLSegError for a model without path mode.
    """
    model, paths = system.model, codec_of(system.model.config)
    sizes = [image.size if isinstance(image, EncodedImage) else (image.height, image.width) for image in images]
    unreadable, rounds = plan(texts, system.processor)
    for b, k, reason in unreadable:
        yield b, PartialAnswer(k, failed(texts[b][k], reason, sizes[b]), True)
    features = system.features(list(images)) if rounds else None
    for chunks in rounds:
        tensors, cache = system.tensors(chunks), DynamicCache()
        output = model(image_features=features, cache=cache, **tensors)
        scores = presence_scores(output.evidence, model.config.presence).cpu().numpy()
        wanted = np.zeros(scores.shape, bool)
        for b, chunk in enumerate(chunks):
            for slot, (k, _) in enumerate(chunk):
                score, text = float(scores[b, slot]), texts[b][k]
                wanted[b, slot] = np.isfinite(score) and score >= threshold
                if not np.isfinite(score):
                    reason = "the model gives no number for this query"
                    yield b, PartialAnswer(k, failed(text, reason, sizes[b]), True)
                elif not wanted[b, slot]:
                    yield b, PartialAnswer(k, Answer(text, "absent", score, sizes[b]), True)
        seeds = [[seed + k for k, _ in chunk] for chunk in chunks]
        assert features is not None
        begins = mask_boxes(output.mask_logits, wanted, paths) if boxed_by_mask(model.config) else None
        for piece in stream_paths(
            model,
            features,
            tensors,
            cache,
            torch.from_numpy(wanted),
            max_tokens=max_tokens,
            temperature=temperature,
            seeds=seeds,
            begins=begins,
        ):
            b, (k, _) = piece.image, chunks[piece.image][piece.query]
            answer = path_answer(texts[b][k], float(scores[b, piece.query]), piece.tokens, paths, sizes[b])
            yield b, PartialAnswer(k, answer, piece.done)


def boxed_by_mask(config: VLSegConfig) -> bool:
    """Whether paths of such a model begin with the box of the mask."""
    return bool(config.paths) and config.paths.get("box") == "mask"


def mask_boxes(logits: torch.Tensor, wanted: np.ndarray, paths: PathCodec) -> dict[tuple[int, int], list[int]]:
    """By (image, query) of those wanted the tokens of the box around the mask; nothing where the mask is empty.

    logits: (B, K, h, w); they are read at four times their resolution, as masks are.
    """
    boxes = {}
    first = paths.vocabulary.first["box"]
    for b, k in np.argwhere(wanted).tolist():
        fine = F.interpolate(logits[b, k][None, None].float(), scale_factor=4, mode="bilinear")[0, 0]
        pieces, count = ndimage.label((fine > 0).cpu().numpy())
        if count:
            areas = np.bincount(pieces.ravel())
            areas[0] = 0
            rows, columns = np.nonzero((areas >= LEAST_PIECE * areas.max())[pieces])
            extent = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            boxes[b, k] = [first + number for number in box_bins(extent, pieces.shape, paths.box_bins)]
    return boxes


def write_answers(
    system: NativeSystem, images: Sequence[Image.Image | EncodedImage], texts: Sequence[Sequence[str]], threshold: float
) -> list[list[Answer]]:
    """The answers of `stream_answers` with the likeliest tokens, when all has come."""
    answers: list[dict[int, Answer]] = [{} for _ in texts]
    for b, part in stream_answers(system, images, texts, threshold):
        answers[b][part.index] = part.answer
    return [[row[k] for k in sorted(row)] for row in answers]


def path_answer(text: str, score: float, tokens: Sequence[int], paths: PathCodec, size: tuple[int, int]) -> Answer:
    """A path as an answer at `size` (height, width): the path as written, and its exact raster."""
    rle = paths.decode_rle(tokens, size)
    area = codec.area(rle)
    if not area:
        return Answer(text, "failed", score, size, f"score {score:.2f} says present, but the path encloses no pixel")
    segment = Segment(score, codec.bbox(rle), area, rle, paths.svg(tokens, size), "path")
    return Answer(text, "found", score, size, segments=[segment])
