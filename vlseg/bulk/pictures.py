"""Where the pictures of a bulk run come from: files, Parquet files, a dataset that was saved to disk.

Each source has names, in a fixed order, and opens the picture of a position; it can be pickled, and opens its files
where it is used.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vlseg.data.images import open_image, printable
from vlseg.data.parquet import RowReader, columns_of, parquet_files
from vlseg.data.reading import brief
from vlseg.types import VLSegError

COLUMN = "image"
_SAVED = ("state.json", "dataset_dict.json")  # what `datasets.save_to_disk` leaves


class Pictures(Protocol):
    """names: one a picture, unique, as results are named."""

    names: Sequence[str]

    def source(self, index: int) -> Any:
        """What `vlseg.data.images.open_image` takes for the picture of a position. Raises VLSegError."""
        ...


class FilePictures:
    """Files, by their paths."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)
        self.names: Sequence[str] = [printable(path) for path in self.paths]

    def source(self, index: int) -> Any:
        """The path."""
        return self.paths[index]


class ParquetPictures:
    """The rows of Parquet files whose column "image" holds pictures (bytes, or a struct of bytes and path) or paths.

    A picture's name is its path where all rows have one of their own, else FILE#ROW. Paths without bytes are relative
    to the file. Raises VLSegError where a file cannot be read or has no such column.
    """

    def __init__(self, files: Sequence[Path]):
        import pyarrow.parquet as pq

        for file in files:
            if COLUMN not in columns_of(file):
                raise VLSegError(
                    f"{file}: no column {COLUMN!r}; it has {', '.join(sorted(columns_of(file)))}: rename the column "
                    "with the pictures"
                )
        self.files = list(files)
        self._reader = RowReader(self.files)
        counts = [pq.read_metadata(file).num_rows for file in self.files]
        self.places = [(number, row) for number, count in enumerate(counts) for row in range(count)]
        paths = [path for file in self.files for path in _paths(file)]
        if len(set(paths)) == len(self.places) and None not in paths:
            self.names: Sequence[str] = [str(path) for path in paths]
        else:
            self.names = [f"{self.files[number].name}#{row}" for number, row in self.places]

    def source(self, index: int) -> Any:
        """The picture's own bytes as a PIL image, or its path."""
        number, row = self.places[index]
        cell = self._reader.cell(number, row, COLUMN).as_py()
        return _of_cell(cell, self.files[number].parent, f"{self.files[number]}: row {row}")


class SavedPictures:
    """The rows of a dataset that `datasets` saved to disk, by its column "image"; see `ParquetPictures`.

    split: of a dataset with several. Raises VLSegError where it cannot be read, or lacks the split or the column.
    """

    def __init__(self, folder: Path, split: str | None = None):
        self.folder, self.split = folder, split
        self._rows: Any = None
        rows = self._open()
        paths = self._paths(rows)
        if len(set(paths)) == len(paths) and None not in paths:
            self.names: Sequence[str] = [str(path) for path in paths]
        else:
            self.names = [f"{folder.name}#{row}" for row in range(len(rows))]

    def source(self, index: int) -> Any:
        """The picture's own bytes as a PIL image, or its path."""
        return _of_cell(self._open()[index][COLUMN], self.folder, f"{self.folder}: row {index}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def _open(self) -> Any:
        if self._rows is None:
            import datasets

            try:
                data = datasets.load_from_disk(str(self.folder))
            except Exception as error:  # datasets' own errors, pyarrow's, OSError
                what = " ".join(str(error).split())[:120]
                raise VLSegError(f"{self.folder}: not a dataset that can be read ({what})") from error
            if isinstance(data, datasets.DatasetDict):
                if self.split is None and len(data) > 1:
                    raise VLSegError(f"{self.folder}: say which split with --split; it has {', '.join(data)}")
                split = self.split or next(iter(data))
                if split not in data:
                    raise VLSegError(f"{self.folder}: no split {split!r}; it has {', '.join(data)}")
                data = data[split]
            if COLUMN not in data.column_names:
                raise VLSegError(f"{self.folder}: no column {COLUMN!r}; it has {', '.join(data.column_names)}")
            data = data.select_columns([COLUMN])
            if isinstance(data.features[COLUMN], datasets.Image):
                data = data.cast_column(COLUMN, datasets.Image(decode=False))
            self._rows = data
        return self._rows

    @staticmethod
    def _paths(rows: Any) -> list[str | None]:
        """The path of every row's picture, None where there is none; the pictures are not decoded."""
        import pyarrow as pa

        arrow, paths = rows.with_format("arrow"), []
        for start in range(0, len(rows), 1000):
            for cells in arrow[start : start + 1000].column(COLUMN).chunks:
                if pa.types.is_struct(cells.type) and "path" in [field.name for field in cells.type]:
                    paths += cells.field("path").to_pylist()
                else:
                    paths += [None] * len(cells)
        return paths


def is_table(path: str) -> bool:
    """Whether a path is one that `open_tables` reads: a .parquet file, a folder of them, a dataset saved to disk."""
    place = Path(path)
    if place.is_dir():
        return any((place / name).is_file() for name in _SAVED) or bool(parquet_files(place))
    return place.suffix == ".parquet" and place.is_file()


def open_tables(path: str, split: str | None = None) -> Pictures:
    """The pictures of a path that `is_table`. split: of files and datasets that have several. Raises VLSegError."""
    place = Path(path)
    if place.is_dir() and any((place / name).is_file() for name in _SAVED):
        return SavedPictures(place, split)
    if place.is_file():
        return ParquetPictures([place])
    from vlseg.data.parquet import files_of

    if split is None:
        return ParquetPictures(parquet_files(place))
    return ParquetPictures(files_of(str(place), place, split)[1])


def _paths(file: Path) -> list[str | None]:
    """The path of every row's picture, None where there is none; the pictures themselves are not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pq.read_schema(file).field(COLUMN).type
    if pa.types.is_struct(kind) and "path" in [field.name for field in kind]:
        with pq.ParquetFile(file) as parquet:
            column = parquet.read(columns=[f"{COLUMN}.path"]).column(COLUMN)
        return [path for chunk in column.chunks for path in chunk.field("path").to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        paths: list[str | None] = pq.read_table(file, columns=[COLUMN]).column(COLUMN).to_pylist()
        return paths
    return [None] * pq.read_metadata(file).num_rows


def _of_cell(cell: Any, folder: Path, where: str) -> Any:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
    if isinstance(data, bytes):
        from PIL import Image

        try:
            return Image.open(io.BytesIO(data))
        except (OSError, SyntaxError, ValueError) as error:
            raise VLSegError(f"{where}: the picture is broken ({error})") from error
    if not isinstance(path, str):
        raise VLSegError(f"{where}: holds no picture, only {brief(cell)}")
    return path if "://" in path else str(folder / path)


def open_picture(pictures: Pictures, index: int, max_pixels: int) -> Any:
    """The picture of a position, RGB and upright. Raises VLSegError, naming it."""
    name = pictures.names[index]
    try:
        return open_image(pictures.source(index), max_pixels)[0]
    except VLSegError as error:
        text = str(error)
        raise VLSegError(text if name in text else f"{name}: {text}") from error
