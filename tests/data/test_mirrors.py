"""The Parquet layouts of Hub mirrors, written here with the columns and types that their cards list."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from originals import HEIGHT, WIDTH, instances, picture, refs
from PIL import Image

from vlseg.data.index import IndexedDataset
from vlseg.data.jsonl import check_sample
from vlseg.data.parquet import ParquetDataset, split_of
from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError

BY_ID = {a["id"]: a for a in instances()["annotations"]}


def jpeg(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]], group: int = 2, schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)


def jxu124(ref: dict[str, Any]) -> dict[str, Any]:
    annotation, k = BY_ID[ref["ann_id"]], ref["image_id"]
    info = next(i for i in instances()["images"] if i["id"] == k)
    x, y, w, h = annotation["bbox"]
    return {"sent_ids": ref["sent_ids"], "file_name": ref["file_name"], "ann_id": ref["ann_id"],
            "ref_id": ref["ref_id"], "image_id": k, "split": ref["split"], "sentences": ref["sentences"],
            "category_id": ref["category_id"], "raw_anns": json.dumps(annotation), "raw_image_info": json.dumps(info),
            "raw_sentences": json.dumps(ref["sentences"]), "image_path": f"coco/train2014/{info['file_name']}",
            "bbox": [x, y, x + w, y + h], "captions": [s["sent"] for s in ref["sentences"]],
            "global_image_id": f"coco.{k}", "anns_id": f"refcoco.{ref['ann_id']}"}  # fmt: skip


def test_refs_without_pixels(tmp_path: Path):
    names = {"val": "validation", "testA": "test", "train": "train"}
    for split, name in names.items():
        rows = [jxu124(ref) for ref in refs() if ref["split"] == split]
        write(tmp_path / "refcoco" / "data" / f"{name}-00000-of-00001-94431d5f4bd5b93f.parquet", rows)
    picture(tmp_path / "coco" / "train2014" / "COCO_train2014_000000000001.jpg")
    mirror = open_dataset("refcoco", "val", tmp_path)
    assert isinstance(mirror, IndexedDataset)
    assert (mirror.split, len(mirror), mirror.problems) == ("val", 1, [])
    sample = mirror[0]
    assert sample.image == tmp_path / "coco" / "train2014" / "COCO_train2014_000000000001.jpg"
    assert [q.id for q in sample.queries] == ["refcoco:1:100", "refcoco:1:101", "refcoco:3:300", "refcoco:5:500"]
    for query, id in zip(sample.queries, (11, 11, 14, 12), strict=True):
        assert query.masks == [codec.from_coco(BY_ID[id]["segmentation"], HEIGHT, WIDTH)]
    assert sample.queries[0].distractors == sample.queries[3].masks  # the third person is referred to by nobody
    assert any("fewer distractors" in note for note in mirror.notes)
    assert any("3 refs, officially 3811" in note for note in mirror.notes)
    assert len(open_dataset("refcoco", "testA", tmp_path, pictures=False)[0].queries) == 3
    with pytest.raises(VLSegError, match=r"no split testB; .* has test, train, validation"):
        open_dataset("refcoco", "testB", tmp_path, pictures=False)
    by_path = open_dataset(str(tmp_path / "refcoco"), "validation", pictures=False)
    assert by_path.coco_ids() == [1]


def test_an_image_a_row_with_its_refs(tmp_path: Path):
    val = [ref for ref in refs() if ref["split"] == "val"]
    info = instances()["images"][0]
    entries = [{"ann_info": BY_ID[r["ann_id"]], "ref_info": {**r, "category_id": r["category_id"]}} for r in val]
    row = {"ref_list": entries, "image_info": info, "image": {"bytes": jpeg(1), "path": "1.jpg"}}
    write(tmp_path / "refcoco" / "data" / "refcoco_unc_val-00000-of-00001-abcdef.parquet", [row])
    dataset = open_dataset("refcoco", "val", tmp_path)
    assert isinstance(dataset, ParquetDataset)
    sample = dataset[0]
    assert sample.image.size == (WIDTH, HEIGHT)
    assert check_sample(sample) == []
    assert [q.id for q in sample.queries] == ["refcoco:1:100", "refcoco:1:101", "refcoco:3:300", "refcoco:5:500"]
    assert len(sample.queries[0].distractors) == 1


def lmms(ref: dict[str, Any], **changes: Any) -> dict[str, Any]:
    segmentation = BY_ID[ref["ann_id"]]["segmentation"][0]
    row = {"question_id": str(ref["ref_id"]), "image": {"bytes": jpeg(ref["image_id"]), "path": None},
           "question": "Please carefully observe the area.", "answer": [s["sent"] for s in ref["sentences"]],
           "segmentation": segmentation, "bbox": [1.0, 2.0, 3.0, 4.0], "iscrowd": 0,
           "file_name": ref["file_name"]}  # fmt: skip
    return row | changes


def test_rows_with_one_flat_polygon(tmp_path: Path):
    content = [ref for ref in refs() if ref["split"] != "train"]
    rows = [lmms(ref) for ref in content] + [lmms(content[0], question_id="9", segmentation=[1.0, 2, 3, 4, 5])]
    write(tmp_path / "data" / "val-00000-of-00001.parquet", rows)
    dataset = open_dataset("refcoco", "val", tmp_path)
    assert isinstance(dataset, ParquetDataset)
    assert [s.id for s in (dataset[0], dataset[1])] == ["1", "3"]
    assert dataset.coco_ids() == [1, 3]
    sample = dataset[0]
    assert [q.id for q in sample.queries] == ["refcoco:1:0", "refcoco:1:1", "refcoco:3:0", "refcoco:5:0"]
    assert sample.queries[0].masks == [codec.from_coco(BY_ID[11]["segmentation"], HEIGHT, WIDTH)]
    assert check_sample(sample) == []
    assert any("not RefCOCO's" in note for note in dataset.notes)
    assert [(p.where, p.what) for p in dataset.problems] == [
        ("val-00000-of-00001.parquet: row 4", "polygon 1: 5 coordinates; a polygon has at least 3 points; left out")
    ]
    assert dataset.labels(1).image == f"{tmp_path / 'data' / 'val-00000-of-00001.parquet'}#2"


def test_rows_with_masks_of_booleans(tmp_path: Path):
    masks = [codec.decode(codec.from_coco(BY_ID[id]["segmentation"], HEIGHT, WIDTH)) for id in (11, 12)]
    rows = [
        {"image": {"bytes": jpeg(7), "path": "7.jpg"}, "text": text, "mask": masks[k].tolist(), "image_id": "7",
         "ann_id": f"7_{k}", "img_height": HEIGHT, "img_width": WIDTH}
        for k, text in ((0, "what to sit on"), (1, "what to drink from"), (1, " "))
    ]  # fmt: skip
    write(tmp_path / "ReasonSeg_val" / "data" / "test-00000-of-00001.parquet", rows)
    dataset = open_dataset("reasonseg", "val", tmp_path)
    assert (len(dataset), dataset.split) == (1, "val")
    sample = dataset[0]
    assert sample.size == (HEIGHT, WIDTH)
    assert [q.text for q in sample.queries] == ["what to sit on", "what to drink from"]
    for query, mask in zip(sample.queries, masks, strict=True):
        assert 0.05 < mask.mean() < 0.95
        assert np.array_equal(codec.decode(query.masks[0]), mask)
    assert len(dataset.problems) == 1
    assert "no words" in dataset.problems[0].what
    assert len({q.id for q in sample.queries}) == 2


@pytest.mark.parametrize("stored", ["list of structs", "struct of lists"])
def test_refcoco_m(tmp_path: Path, stored: str):
    def rle(id: int) -> dict[str, Any]:
        return dict(codec.from_coco(BY_ID[id]["segmentation"], HEIGHT, WIDTH))

    objects = [
        {"id": 5 + k, "image_id": 1, "category": "person" if k < 2 else "dog", "sentences": said, "mask": rle(id)}
        for k, (id, said) in enumerate([(11, ["left man", "man"]), (12, ["middle"]), (14, ["dog"])])
    ]
    objects.append({**objects[0], "id": 9, "mask": {"size": [HEIGHT, WIDTH], "counts": "nonsense"}})
    samples: Any = objects
    if stored == "struct of lists":
        samples = {key: [entry[key] for entry in objects] for key in objects[0]}
    row = {"image": {"bytes": jpeg(1), "path": "x.jpg"}, "image_id": 1, "file_name": "x.jpg", "samples": samples}
    write(tmp_path / "refcoco-m" / "data" / "validation-00000-of-00001.parquet", [row])
    dataset = open_dataset("refcoco-m", root=tmp_path)
    assert (dataset.name, dataset.split, len(dataset)) == ("refcoco-m", "val", 1)
    sample = dataset[0]
    assert [q.id for q in sample.queries] == ["refcoco-m:5:0", "refcoco-m:5:1", "refcoco-m:6:0", "refcoco-m:7:0"]
    assert sample.queries[0].masks == [rle(11)]
    assert sample.queries[0].distractors == [rle(12)]
    assert sample.queries[3].distractors == []
    assert [p.where for p in dataset.problems] == ["validation-00000-of-00001.parquet: row 0"]
    assert "officially 1190" in dataset.notes[0]
    assert check_sample(sample) == []


def test_pictures_of_any_row_group(tmp_path: Path):
    content = [{**ref, "image_id": k, "file_name": f"COCO_train2014_{k:012d}_{k}.jpg"} for k, ref in
               enumerate(refs() * 3, 1)]  # fmt: skip
    for ref in content:
        ref["ref_id"] = ref["image_id"]
    rows = [lmms(ref) for ref in content]
    write(tmp_path / "data" / "val-00000-of-00002.parquet", rows[:8], group=3)
    write(tmp_path / "data" / "val-00001-of-00002.parquet", rows[8:], group=2)
    dataset = open_dataset("refcoco", "val", tmp_path)
    assert len(dataset) == 15
    again = pickle.loads(pickle.dumps(dataset))
    for i in (14, 0, 7, 8, 3, 14, 1):
        expected = np.asarray(Image.open(io.BytesIO(jpeg(i + 1))))
        assert np.array_equal(np.asarray(dataset[i].image), expected)
        assert np.array_equal(np.asarray(again[i].image), expected)


def test_broken_files_and_unknown_columns(tmp_path: Path):
    path = tmp_path / "data" / "val-00000-of-00001.parquet"
    write(path, [{"a": 1}])
    with pytest.raises(VLSegError, match="columns a are no layout that is known"):
        open_dataset(str(tmp_path))
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(VLSegError, match="not a Parquet file"):
        open_dataset(str(tmp_path))
    row = jxu124(refs()[0])
    write(path, [row, {**row, "raw_anns": "{"}, {**row, "raw_image_info": "{}"}, {**row, "raw_anns": "[]"},
                 {**row, "raw_image_info": '{"file_name": "a", "height": "x", "width": 3}'},
                 {**row, "raw_anns": None}])  # fmt: skip
    dataset = open_dataset("refcoco", "val", tmp_path, pictures=False)
    assert [p.where.rsplit(" ", 1)[1] for p in dataset.problems] == ["1", "2", "3", "4", "5"]
    assert len(dataset[0].queries) == 2


def test_a_broken_picture_is_told_with_its_row(tmp_path: Path):
    rows = [lmms(refs()[0]) | {"image": {"bytes": b"no picture", "path": "a.jpg"}},
            lmms(refs()[3]) | {"image": {"bytes": None, "path": "a.jpg"}}]  # fmt: skip
    write(tmp_path / "data" / "val-00000-of-00001.parquet", rows)
    dataset = open_dataset("refcoco", "val", tmp_path)
    with pytest.raises(VLSegError, match="row 0: the picture is broken"):
        dataset[0]
    with pytest.raises(VLSegError, match="row 1: holds no picture"):
        dataset[1]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/testA-00000-of-00001.parquet", "testA"),
        ("data/validation-00000-of-00002-bfeafdc84ca37aa2.parquet", "validation"),
        ("default/train/0000.parquet", "train"),
        ("val.parquet", "val"),
    ],
)
def test_splits_in_file_names(name: str, split: str):
    assert split_of(Path(name)) == split
