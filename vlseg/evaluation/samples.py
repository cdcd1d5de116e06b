"""`samples.parquet`: a row a case with its masks and all that was counted, so that any score can be had again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlseg.data.files import write_whole
from vlseg.evaluation.batch import Record
from vlseg.metrics.case import Case
from vlseg.metrics.nontarget import Activation
from vlseg.types import RLE, VLSegError

NAME = "samples.parquet"

# Columns in order, and their Arrow types. The first ones are fields of `Case`.
_CASE = {
    "id": "string",
    "image": "string",
    "text": "string",
    "kind": "string",
    "absent": "bool_",
    "status": "string",
    "score": "float64",
    "reason": "string",
    "intersection": "int64",
    "union": "int64",
    "predicted": "int64",
    "area": "int64",
    "extent": "float64",
    "ignored": "bool_",
    "distractors": "int64",
}
_PAIRS = ("boundary", "buffered", "dilated")
_COLUMNS = {
    **_CASE,
    **{f"{name}_{part}": "int64" for name in _PAIRS for part in ("above", "below")},
    "nta_peak": "float64",
    "nta_stray": "float64",
    "nta_wrong": "bool_",
    "iou": "float64",
    "crashed": "bool_",
    "sample": "int64",
    "height": "int64",
    "width": "int64",
    "prediction": "string",
    "truth": "string",
}


def write_samples(folder: Path, records: Sequence[Record]) -> Path:
    """Write the records of a run, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_row(record) for record in records], schema=schema), buffer)
    write_whole(folder / NAME, buffer.getvalue())
    return folder / NAME


def read_samples(folder: Path) -> list[Record]:
    """The records of a report, in order. Raises VLSegError where they are missing or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / NAME
    try:
        return [_record(row) for row in pq.read_table(file).to_pylist()]
    except FileNotFoundError as error:
        raise VLSegError(f"{file}: not there; name the folder that `vlseg eval --out` has written") from error
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise VLSegError(f"{file}: not the samples of a report ({' '.join(str(error).split())})") from error


def _row(record: Record) -> dict[str, Any]:
    case, activation = record.case, record.case.activation
    row: dict[str, Any] = {name: getattr(case, name) for name in _CASE}
    for name in _PAIRS:
        row[f"{name}_above"], row[f"{name}_below"] = getattr(case, name) or (None, None)
    if activation is not None:
        row |= {"nta_peak": activation.peak, "nta_stray": activation.stray, "nta_wrong": activation.wrong}
    row |= {"iou": case.iou, "crashed": record.crashed, "sample": record.sample}
    row["height"], row["width"] = record.truth["size"]
    return row | {"prediction": record.prediction["counts"], "truth": record.truth["counts"]}


def _record(row: dict[str, Any]) -> Record:
    case = Case(**{name: row[name] for name in _CASE})
    for name in _PAIRS:
        if row[f"{name}_above"] is not None:
            setattr(case, name, (row[f"{name}_above"], row[f"{name}_below"]))
    if row["nta_peak"] is not None:
        case.activation = Activation(row["nta_peak"], row["nta_stray"], row["nta_wrong"])
    prediction, truth = (RLE(size=[row["height"], row["width"]], counts=row[name]) for name in ("prediction", "truth"))
    return Record(case, row["sample"], prediction, truth, row["crashed"])
