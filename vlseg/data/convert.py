"""Any data set to JSONL (`vlseg/data/jsonl.py`) or to Parquet that `datasets.load_dataset` reads, streaming too.

Ids of samples and queries go along, so a converted data set has the fingerprint of its source.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlseg.data.dataset import Dataset, Problem
from vlseg.data.files import whole_file, writable_folder, write_whole
from vlseg.data.images import upright_extent
from vlseg.data.jsonl import query_to_dict, sample_to_dict
from vlseg.data.parquet import ParquetDataset, parquet_files, split_of
from vlseg.types import Sample, VLSegError

# Samples in a Parquet file, and in a row group: what a reader has to load for one picture.
SHARD, ROW_GROUP = 500, 50
Progress = Callable[[range], Any]


def to_jsonl(
    dataset: Dataset, out: Path, copy_pictures: bool = False, progress: Progress = iter
) -> tuple[Path, list[Problem]]:
    """Write OUT/SPLIT.jsonl, or OUT/data.jsonl without a split; returns its path and the samples that failed.

    Pictures that are files stay where they are and are named by relative paths, unless `copy_pictures`; pictures in
    memory or in Parquet files go to OUT/images. Raises VLSegError where the folder cannot be written.
    """
    folder = writable_folder(out)
    path, failed = folder / f"{_file_name(dataset.split) or 'data'}.jsonl", []
    taken: set[str] = set()
    with whole_file(path) as file:
        for index in progress(range(len(dataset))):
            try:
                sample = dataset[index]
                if copy_pictures or not _is_file(dataset, sample):
                    sample.image = _save(dataset, index, sample, folder / "images", taken)
                line = json.dumps(sample_to_dict(sample, folder), ensure_ascii=False) + "\n"
            except VLSegError as error:
                failed.append(Problem(f"sample {index}", str(error)))
                continue
            file.write(line.encode("utf-8"))
    return path, failed


def to_parquet(dataset: Dataset, out: Path, progress: Progress = iter) -> tuple[Path, list[Problem]]:
    """Write OUT/data/SPLIT-*.parquet with the pictures inside; returns OUT and the samples that failed.

    Columns: image, id, size, meta (JSON text), queries; a data set without a split becomes "train", as on the Hub.
    Files are renamed into place when all are there. Raises VLSegError where OUT already holds this split.
    """
    import datasets

    folder = writable_folder(out / "data")
    split = _file_name(dataset.split) or "train"
    there = [file for file in parquet_files(out) if split_of(file) == split]
    if there:
        raise VLSegError(f"{there[0]}: is there already; delete the split {split}, or name another folder")
    features = datasets.Features(_features(datasets))
    shards = max(1, -(-len(dataset) // SHARD))
    failed: list[Problem] = []
    order = progress(range(len(dataset)))
    parts = [folder / f".part-{os.getpid()}-{k}" for k in range(shards)]
    try:
        steps = iter(order)
        for k, part in enumerate(parts):
            rows = list(_rows(dataset, min(SHARD, len(dataset) - k * SHARD), steps, failed))
            _quietly(datasets, rows, features, part)
        for k, part in enumerate(parts):
            os.replace(part, folder / f"{split}-{k:05d}-of-{shards:05d}.parquet")
    except OSError as error:
        raise VLSegError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return out, failed


def _rows(dataset: Dataset, number: int, steps: Iterator[int], failed: list[Problem]) -> Iterator[dict[str, Any]]:
    for _ in range(number):
        index = next(steps)
        try:
            sample = dataset[index]
            data, suffix = _picture_file(dataset, index, sample)
            size = sample.size or upright_extent(data, f"sample {sample.id}")
        except VLSegError as error:
            failed.append(Problem(f"sample {index}", str(error)))
            continue
        queries = [_query(query_to_dict(query)) for query in sample.queries]
        yield {
            "image": {"bytes": data, "path": f"{_file_name(sample.id) or index}{suffix}"},
            "id": sample.id,
            "size": list(size),
            "meta": json.dumps(sample.meta, ensure_ascii=False),
            "queries": queries,
        }


def _query(data: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"id": "", "kind": None, "masks": None, "distractors": [], "ignore": None}
    return empty | data


def _features(datasets: Any) -> dict[str, Any]:
    text, size = datasets.Value("string"), datasets.List(datasets.Value("int32"))
    rle = {"size": size, "counts": text}
    query = {"text": text, "id": text, "kind": text, "masks": datasets.List(rle), "distractors": datasets.List(rle),
             "ignore": rle}  # fmt: skip
    return {"image": datasets.Image(), "id": text, "size": size, "meta": text, "queries": datasets.List(query)}


def _quietly(datasets: Any, rows: list[dict[str, Any]], features: Any, path: Path) -> None:
    """One file, without the progress bars of `datasets`."""
    was = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(path), batch_size=ROW_GROUP)
    finally:
        if was:
            datasets.enable_progress_bars()


def _is_file(dataset: Dataset, sample: Sample) -> bool:
    return isinstance(sample.image, str | Path) and not isinstance(_source(dataset), ParquetDataset)


def _source(dataset: Dataset) -> Dataset:
    return getattr(dataset, "dataset", dataset)


def _picture_file(dataset: Dataset, index: int, sample: Sample) -> tuple[bytes, str]:
    """(bytes, suffix) of the picture's file: as it is where there is one, else PNG. Raises VLSegError."""
    source = _source(dataset)
    if isinstance(source, ParquetDataset):
        position = getattr(dataset, "positions", range(len(dataset)))[index]
        data = source.picture_bytes(source.records[position])
        return data, _suffix(data)
    if isinstance(sample.image, str | Path):
        path = Path(sample.image)
        try:
            return path.read_bytes(), path.suffix.lower()
        except OSError as error:
            raise VLSegError(f"{path}: cannot be read ({error.strerror or error})") from error
    picture = Image.fromarray(sample.image) if isinstance(sample.image, np.ndarray) else sample.image
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue(), ".png"


def _suffix(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind = (picture.format or "png").lower()
    except (OSError, SyntaxError, ValueError) as error:
        raise VLSegError(f"the picture is broken ({error})") from error
    return ".jpg" if kind == "jpeg" else f".{kind}"


def _save(dataset: Dataset, index: int, sample: Sample, folder: Path, taken: set[str]) -> Path:
    data, suffix = _picture_file(dataset, index, sample)
    writable_folder(folder)
    stem = _file_name(sample.id) or str(index)
    name, number = f"{stem}{suffix}", 2
    while name.lower() in taken:
        name, number = f"{stem}-{number}{suffix}", number + 1
    taken.add(name.lower())
    write_whole(folder / name, data)
    return folder / name


def _file_name(text: str) -> str:
    """Text as part of a file name; may be empty."""
    return re.sub(r"[^\w+.-]+", "_", text)[:100].strip("._")
