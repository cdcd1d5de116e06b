"""`Case`: what one (image, expression) came to, in pixels. Every score is a function of such records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlseg.masks import rle as codec
from vlseg.metrics.boundary import DILATION_RATIO, boundary_overlap
from vlseg.metrics.buffered import RADIUS, buffered_overlaps
from vlseg.metrics.nontarget import Activation, activation
from vlseg.metrics.overlap import complement, intersections
from vlseg.types import RLE, Query, Status, VLSegError

Pair = tuple[int, int]  # numerator and denominator in pixels


@dataclass(slots=True)
class Case:
    """One (image, expression) and its answer P against the truth G; ignored pixels are in no count.

    id: unique within its data set. absent: nothing in the image matches. status: the answer's. score: its probability
    of a referent. intersection, union, predicted, area: pixels of P ∩ G, P ∪ G, P, G; P is empty unless "found".
    boundary, buffered, dilated: Boundary IoU and Buffered IoU A and B of a target as pairs; None where nobody asked.
    distractors: how many there are; activation: of the distractors, where a target and a distractor are there. extent:
    longer side, in pixels, of the box of the smallest target. ignored: some pixels do not count.
    """

    id: str
    image: str
    text: str = ""
    kind: str = ""
    absent: bool = False
    status: Status = "found"
    score: float | None = None
    reason: str | None = None
    intersection: int = 0
    union: int = 0
    predicted: int = 0
    area: int = 0
    extent: float = 0.0
    boundary: Pair | None = None
    buffered: Pair | None = None
    dilated: Pair | None = None
    distractors: int = 0
    activation: Activation | None = None
    ignored: bool = False

    @property
    def found(self) -> bool:
        """The answer is "found"."""
        return self.status == "found"

    @property
    def iou(self) -> float:
        """I / U by ReLA's rules (`refer_evaluation.py`), and LISA's where pixels are ignored.

        Nothing matches: 1 for the answer "absent", else 0. A target: I / U, and 0 where it was called absent or U = 0.
        Where every pixel of prediction and truth is ignored, 1 (LISA). A failed answer is 0, always.
        """
        if self.absent and self.status == "absent":
            return 1.0
        return self.ratio((self.intersection, self.union))

    def ratio(self, pair: Pair) -> float:
        """A pair of pixels as a score of this case: 0 / 0 is 0, and 1 where everything is ignored."""
        if self.ignored and self.union == 0 and self.status != "failed":
            return 1.0
        return pair[0] / pair[1] if pair[1] else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """The inverse of `to_dict`, also after JSON has made lists of the pairs."""
        values = dict(data)
        for name in ("boundary", "buffered", "dilated"):
            values[name] = values[name] and tuple(values[name])
        if values["activation"] is not None:
            values["activation"] = Activation(**values["activation"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the tolerant metrics forgive. boundary_ratio: of the image's diagonal; radius: of the buffer in pixels."""

    boundary_ratio: float = DILATION_RATIO
    radius: int = RADIUS


RULES = Rules()


def score_case(
    query: Query,
    size: tuple[int, int],
    status: Status,
    prediction: RLE | None,
    score: float | None = None,
    *,
    id: str,
    image: str,
    reason: str | None = None,
    rules: Rules | None = RULES,
) -> Case:
    """Score one answer. size: (height, width) of the image; prediction: the answer's mask, used only where "found".

    rules: of the metrics that look at boundaries; None leaves them out, and saves the decoding of the masks.

    Raises VLSegError for a query without labels and for masks of another size than the image.
    """
    if query.masks is None:
        raise VLSegError(f"{id}: the query is unlabelled, there is nothing to score against")
    truth = query.masks[0] if len(query.masks) == 1 else codec.union(query.masks, size)
    found = prediction if status == "found" and prediction is not None else codec.empty(size)
    counted = None if query.ignore is None else complement(query.ignore)
    mine, target = _cut(found, counted), _cut(truth, counted)
    both = int(intersections([mine], [target])[0])
    predicted, area = map(int, codec.areas([mine, target]))
    boxes = codec.bboxes(query.masks)
    case = Case(
        id=id,
        image=image,
        text=query.text,
        kind=query.kind or "",
        absent=not query.masks,
        status=status,
        score=score,
        reason=reason,
        intersection=both,
        union=predicted + area - both,
        predicted=predicted,
        area=area,
        extent=float(boxes[:, 2:].max(1).min()) if len(boxes) else 0.0,
        distractors=len(query.distractors),
        ignored=counted is not None,
    )
    if not case.absent and query.distractors:
        case.activation = activation(mine, target, [_cut(d, counted) for d in query.distractors])
    if rules is not None and not case.absent:
        case.boundary = case.buffered = case.dilated = (0, 0)
        if case.found:
            valid = None if counted is None else codec.decode(counted)
            p, t = codec.decode(found), codec.decode(truth)
            case.boundary = boundary_overlap(p, t, rules.boundary_ratio, valid)
            case.buffered, case.dilated = buffered_overlaps(p, t, rules.radius, valid)
    return case


def _cut(rle: RLE, counted: RLE | None) -> RLE:
    return rle if counted is None else codec.merge([rle, counted], intersect=True)
