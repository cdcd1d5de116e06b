"""The scores as torchmetrics: update per batch, on any number of ranks, and every case counts once.

What is gathered are the records of the cases, not averages: a sampler that pads its ranks with samples seen before, as
`DistributedSampler` does, changes nothing, and the value is the same bits on any number of ranks.

    scores = ReferringMetrics(["cIoU", "mIoU", "P@0.5"])
    scores.update(ids, logits > 0, masks)
    scores.compute()   # {"cIoU": tensor(0.81), ...}
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from vlseg.masks import rle as codec
from vlseg.metrics.case import RULES, Case, Rules, score_case
from vlseg.metrics.nontarget import Activation
from vlseg.metrics.referring import SCORES, value
from vlseg.types import RLE, Query, Status, VLSegError

Masks = Tensor | Sequence[RLE]

# id (2), absent, rejected, ignored, I, U, boundary (3), buffered (3), dilated (3), activation (4); see `_row`.
_COLUMNS = 20


class ReferringMetrics(Metric):
    """Scores of `vlseg.metrics.referring` as a dictionary of float64 scalars; NaN where no case counts for one.

    names: of ``SCORES``. rules: radius and ratio of the metrics of boundaries. Raises VLSegError for another name.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    records: list[Tensor]

    def __init__(self, names: Sequence[str] = ("cIoU", "mIoU", "gIoU"), rules: Rules = RULES, **options: Any):
        super().__init__(**options)
        for name in names:
            if name not in SCORES:
                raise VLSegError(f"no score {name!r}; there are {', '.join(SCORES)}")
        self.names = tuple(names)
        self.rules = rules if any(name.startswith(("boundary", "buffered")) for name in names) else None
        self.add_state("records", default=[], dist_reduce_fx="cat")

    def update(
        self,
        ids: Sequence[str | int],
        predictions: Masks,
        targets: Masks,
        absent: Sequence[bool] | Tensor | None = None,
        rejected: Sequence[bool] | Tensor | None = None,
        distractors: Sequence[Sequence[RLE]] | None = None,
        ignore: Masks | None = None,
    ) -> None:
        """Add N cases. ids: unique over the data set. predictions, targets, ignore: ``(N, H, W)`` bool or N RLEs.

        absent: nothing in the image matches; default: where the target is empty. rejected: the model said so; default:
        where the prediction is empty. A case whose id was there before is not counted again.
        """
        mine, truth = _rles(predictions), _rles(targets)
        if not len(ids) == len(mine) == len(truth):
            raise VLSegError(f"{len(ids)} ids, {len(mine)} predictions and {len(truth)} targets: one of each a case")
        gone = _flags(codec.areas(truth) == 0 if absent is None else absent, len(ids), "absent")
        no = _flags(codec.areas(mine) == 0 if rejected is None else rejected, len(ids), "rejected")
        others = [[] for _ in ids] if distractors is None else distractors
        hidden = [None for _ in ids] if ignore is None else _rles(ignore)
        rows = []
        for n, id in enumerate(ids):
            query = Query("", [] if gone[n] else [truth[n]], list(others[n]), ignore=hidden[n])
            size = (mine[n]["size"][0], mine[n]["size"][1])
            status: Status = "absent" if no[n] else "found"
            rows.append(_row(score_case(query, size, status, mine[n], id=str(id), image="", rules=self.rules)))
        self.records.append(torch.tensor(rows, dtype=torch.int64).reshape(-1, _COLUMNS).to(self.device))

    def sync(self, *args: Any, **options: Any) -> None:
        """See `Metric.sync`. A rank without cases sends no rows: torchmetrics would send a tensor of another type."""
        if not len(self.records):
            self.records = [torch.zeros((0, _COLUMNS), dtype=torch.int64, device=self.device)]
        super().sync(*args, **options)

    def compute(self) -> Any:
        """The scores over all cases of all ranks."""
        cases = self._cases()
        return {name: self._scalar(value(name, cases)) for name in self.names}

    def _cases(self) -> list[Case]:
        parts = [self.records] if isinstance(self.records, Tensor) else self.records  # one tensor after a gather
        rows = [row for part in parts for row in part.tolist()]
        first = {(row[0], row[1]): row for row in reversed(rows)}
        return [_case(first[key]) for key in sorted(first)]  # an order that does not depend on who saw a case

    def _scalar(self, score: float | None) -> Tensor:
        return torch.tensor(float("nan") if score is None else score, dtype=torch.float64, device=self.device)


class ReferringMetric(ReferringMetrics):
    """One score as a scalar, for loggers and `MetricCollection`."""

    def __init__(self, name: str = "cIoU", rules: Rules = RULES, **options: Any):
        super().__init__([name], rules, **options)

    def compute(self) -> Tensor:
        """The score over all cases of all ranks."""
        return self._scalar(value(self.names[0], self._cases()))


def _row(case: Case) -> list[int]:
    """A case as whole numbers: only tensors of one type can be gathered."""
    row = [*_digest(case.id), case.absent, case.status == "absent", case.ignored, case.intersection, case.union]
    for pair in (case.boundary, case.buffered, case.dilated):
        row += [pair is not None, *(pair or (0, 0))]
    a = case.activation
    row += [a is not None, *((_bits(a.peak), _bits(a.stray), a.wrong) if a else (0, 0, 0))]
    return [int(number) for number in row]


def _case(row: Sequence[int]) -> Case:
    pairs = [(row[i + 1], row[i + 2]) if row[i] else None for i in (7, 10, 13)]
    return Case(
        id=f"{row[0]}:{row[1]}",
        image="",
        absent=bool(row[2]),
        status="absent" if row[3] else "found",
        ignored=bool(row[4]),
        intersection=row[5],
        union=row[6],
        boundary=pairs[0],
        buffered=pairs[1],
        dilated=pairs[2],
        activation=Activation(_number(row[17]), _number(row[18]), bool(row[19])) if row[16] else None,
    )


def _digest(id: str) -> tuple[int, int]:
    """128 bits of SHA-256 as two signed 64-bit numbers: strings cannot be gathered."""
    digest = hashlib.sha256(id.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:16], "big", signed=True)


def _bits(number: float) -> int:
    return struct.unpack("<q", struct.pack("<d", number))[0]


def _number(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def _rles(masks: Masks) -> list[RLE]:
    if not isinstance(masks, Tensor):
        return list(masks)
    if masks.dtype.is_floating_point:
        raise VLSegError(f"masks must be bool or integer, got {masks.dtype}: threshold logits with > 0 first")
    return codec.encode_many(masks.detach().cpu().numpy())


def _flags(values: Any, count: int, name: str) -> list[bool]:
    flags = [bool(v) for v in values]
    if len(flags) != count:
        raise VLSegError(f"{name}: {len(flags)} flags for {count} cases")
    return flags
