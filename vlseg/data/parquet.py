"""Parquet folders: which files belong to which split, pictures that lie inside the files, and vlseg's own layout.

vlseg's own layout (`vlseg data convert --to parquet`) has the columns image, id, size, meta, queries: a line of JSONL
with the picture in it, which `datasets.load_dataset(FOLDER)` reads too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vlseg.data.images import upright_extent
from vlseg.data.index import Builder, Index, IndexedDataset
from vlseg.data.jsonl import to_record
from vlseg.data.reading import brief, parse_json, paused_gc
from vlseg.data.records import Record, distinct, to_sample
from vlseg.data.request import MissingFilesError, Request
from vlseg.masks import rle as codec
from vlseg.types import RLE, Sample, VLSegError

if TYPE_CHECKING:
    import pyarrow as pa

# The Hub's spelling for ours, and the other way round.
ALIASES = {"val": "validation", "validation": "val"}
OWN = {"image", "id", "size", "meta", "queries"}


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder in the places that the Hub uses, by name."""
    patterns = ("*.parquet", "data/*.parquet", "*/[0-9]*.parquet", "default/*/*.parquet")
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def split_of(file: Path) -> str:
    """The split that a file name tells: "testA" of data/testA-00000-of-00001.parquet, "train" of train/0000.parquet."""
    shard = re.fullmatch(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?", file.stem)
    if shard:
        return shard[1]
    return file.parent.name if re.fullmatch(r"[\d_-]+", file.stem) else file.stem


def files_of(name: str, folder: Path, split: str, aliases: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """The split as the files call it, and its files; "" means the only one. Raises MissingFilesError."""
    by_split: dict[str, list[Path]] = {}
    for file in parquet_files(folder):
        by_split.setdefault(split_of(file), []).append(file)
    for candidate in (split, ALIASES.get(split, split), *aliases):
        if candidate in by_split:
            return candidate, by_split[candidate]
    if not split and len(by_split) == 1:
        return next(iter(by_split.items()))
    asked = f"no split {split}" if split else "say which split"
    raise MissingFilesError(f"{name}: {asked}; {folder} has {', '.join(sorted(by_split)) or 'no Parquet file'}")


def columns_of(file: Path) -> set[str]:
    """The names of a Parquet file's columns. Raises VLSegError where it is none."""
    import pyarrow.parquet as pq

    try:
        return set(pq.read_schema(file).names)
    except Exception as error:  # pyarrow's own errors, OSError, ValueError
        raise VLSegError(f"{file}: not a Parquet file ({' '.join(str(error).split())[:120]})") from error


def rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 0, row) of a file, with these columns only. Raises VLSegError."""
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=1024, columns=list(columns)):
                with paused_gc():
                    table = batch.to_pylist()
                for row in table:
                    yield number, row
                    number += 1
    except VLSegError:
        raise
    except Exception as error:
        raise VLSegError(f"{file}: cannot be read ({' '.join(str(error).split())[:120]})") from error


class RowReader:
    """Single cells of large columns. The last row group is kept, so going through in order reads each group once."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self._starts: dict[int, np.ndarray] = {}
        self._last: tuple[tuple[int, int, str], pa.ChunkedArray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_starts": {}, "_last": None}

    def cell(self, file: int, row: int, column: str) -> Any:
        """The Arrow scalar of a cell. Raises VLSegError."""
        try:
            starts = self._starts.get(file)
            if starts is None:
                starts = self._starts[file] = self._groups(file)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            last = self._last
            if last is None or last[0] != (file, group, column):
                last = self._last = ((file, group, column), self._column(file, group, column))
            return last[1][row - int(starts[group])]
        except Exception as error:  # pyarrow's own errors, OSError, KeyError
            what = " ".join(str(error).split())[:120]
            raise VLSegError(f"{self.files[file]}: row {row}: cannot be read ({what})") from error

    def _groups(self, file: int) -> np.ndarray:
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(self.files[file])
        return np.cumsum([0, *(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))])

    def _column(self, file: int, group: int, column: str) -> pa.ChunkedArray:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.files[file]) as parquet:
            return parquet.read_row_group(group, columns=[column]).column(column)


class ParquetDataset(IndexedDataset):
    """A data set whose pictures lie in Parquet files.

    A record's image is "FILE#ROW"; a mask {"cell": [file, row]} is a nested list of booleans in column "mask".
    """

    def __init__(self, name: str, split: str, index: Index, files: Sequence[Path], source: str):
        super().__init__(name, split, index, Path(), source)
        self.files = list(files)
        self._reader = RowReader(files)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        picture = self.picture(record)
        sample = self._sample(record)
        sample.image = picture
        return sample

    def labels(self, index: int) -> Sample:
        """The sample without pixels; the header of the picture is read only where polygons need its size."""
        return self._sample(self.records[index])

    def picture_bytes(self, record: Record) -> bytes:
        """The picture's file as it is stored. Raises VLSegError."""
        file, row = _place(record["image"])
        cell = self._reader.cell(file, row, "image").as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise VLSegError(f"{self.files[file]}: row {row}: holds no picture, only {brief(cell)}")
        return data

    def picture(self, record: Record) -> Image.Image:
        """The picture; its pixels are decoded when they are used. Raises VLSegError."""
        try:
            return Image.open(io.BytesIO(self.picture_bytes(record)))
        except (OSError, SyntaxError, ValueError) as error:
            file, row = _place(record["image"])
            raise VLSegError(f"{self.files[file]}: row {row}: the picture is broken ({error})") from error

    def _sample(self, record: Record) -> Sample:
        if record["size"] is None and any(isinstance(mask, list) for mask in record["masks"]):
            record["size"] = upright_extent(self.picture_bytes(record), f"{self.source}: {record['image']}")
        record["masks"] = [self._mask(mask) for mask in record["masks"]]
        sample = to_sample(record, self.folder, self.source)
        file, row = _place(record["image"])
        sample.image = f"{self.files[file]}#{row}"
        return sample

    def _mask(self, mask: Any) -> Any:
        if not (isinstance(mask, dict) and "cell" in mask):
            return mask
        file, row = mask["cell"]
        return _mask_of_cell(self._reader.cell(file, row, "mask"), f"{self.files[file]}: row {row}")


def _place(image: str) -> tuple[int, int]:
    file, row = image.split("#")
    return int(file), int(row)


def _mask_of_cell(cell: Any, where: str) -> RLE:
    lines = cell.values
    if lines is None or not len(lines) or len(lines.flatten()) % len(lines):
        raise VLSegError(f"{where}: the mask is no rectangle of booleans")
    flat = lines.flatten().to_numpy(zero_copy_only=False)
    return codec.encode(flat.reshape(len(lines), -1).astype(bool))


def open_own(request: Request, folder: Path, files: list[Path], split: str) -> ParquetDataset:
    """A folder that `vlseg data convert --to parquet` wrote."""
    builder = Builder()
    records = (
        record
        for number, file in enumerate(files)
        for row, values in rows(file, ["id", "size", "meta", "queries"])
        if (record := _own_record(number, row, values, file, builder)) is not None
    )
    for record in distinct(records, builder.problem, folder.name):
        builder.add(record, f"{folder.name}: {record['id']}")
    return ParquetDataset(request.name, split, builder.index(), files, str(folder))


def _own_record(number: int, row: int, values: dict[str, Any], file: Path, builder: Builder) -> Record | None:
    where = f"{file.name}: row {row}"
    try:
        meta = parse_json((values["meta"] or "{}").encode(), f"{where}: meta")
        line = {key: value for key, value in values.items() if value is not None} | {"image": "-", "meta": meta}
        line["queries"] = [_without_nulls(query) for query in values["queries"] or []]
        record = to_record(line, where, f"{file.stem}-{row}")
    except (VLSegError, TypeError, AttributeError) as error:
        builder.problem(where, str(error).removeprefix(f"{where}: "))
        return None
    record["image"] = f"{number}#{row}"
    return record


def _without_nulls(query: Any) -> Any:
    if not isinstance(query, dict):
        return query
    return {key: value for key, value in query.items() if value is not None and not (key == "id" and value == "")}
