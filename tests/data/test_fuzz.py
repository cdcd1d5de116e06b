"""Annotation files of noise: every one opens with its problems counted, or ends in one line that names the file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from originals import HEIGHT, WIDTH, instances, python2_pickle, refs, write_refcoco
from pycocotools import mask as coco

from vlseg.data.registry import open_dataset
from vlseg.masks import rle as codec
from vlseg.types import VLSegError

FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

numbers = st.integers(-5, 700) | st.floats(-5, 700) | st.sampled_from([float("nan"), float("inf"), 1e300, 2**70, -1])
noise = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=4) | st.just("é\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
polygons = st.lists(st.lists(numbers, max_size=12), max_size=3)
rles = st.fixed_dictionaries({
    "size": st.just([HEIGHT, WIDTH]) | st.lists(st.integers(-1, 70), max_size=3),
    "counts": st.text("0123456789PQRo`", max_size=12) | st.lists(st.integers(-3, 4000), max_size=5),
})  # fmt: skip
segmentations = polygons | rles | noise


def settle(open_it) -> Any:
    """A data set whose every sample can be asked for, or None after one line of error; anything else is a failure."""
    try:
        dataset = open_it()
    except VLSegError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return None
    for problem in dataset.problems:
        assert problem.where
        assert problem.what
        assert "\n" not in problem.where + problem.what
    ids = set()
    for i in range(len(dataset)):
        try:
            sample = dataset[i]
        except VLSegError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        for query in sample.queries:
            assert query.id not in ids
            ids.add(query.id)
            assert query.text.strip()
            for rle in [*(query.masks or []), *query.distractors]:
                assert codec.validate(rle)
                if sample.size is not None and not str(dataset.source).endswith(".jsonl"):
                    assert rle["size"] == list(sample.size)
    return dataset


@FUZZ
@given(data=st.data())
def test_instances_of_noise(tmp_path: Path, data):
    content = instances()
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["segmentation", "annotation", "image", "key", "category", "list"]))
        entries = content["images" if kind == "image" else "categories" if kind == "category" else "annotations"]
        place = data.draw(st.integers(0, 14)) % max(1, len(entries)) if isinstance(entries, list) else 0
        if not isinstance(entries, list) or not entries:
            continue
        if kind == "segmentation" and isinstance(entries[place], dict):
            entries[place]["segmentation"] = data.draw(segmentations)
        elif kind == "key" and isinstance(entries[place], dict):
            key = data.draw(st.sampled_from([*entries[place]] or ["id"]))
            entries[place].pop(key, None) if data.draw(st.booleans()) else entries[place].update(
                {key: data.draw(noise)}
            )
        elif kind == "list":
            content[data.draw(st.sampled_from(["images", "annotations", "categories"]))] = data.draw(noise)
        else:
            entries[place] = data.draw(noise)
    root = write_refcoco(tmp_path / "data") if not (tmp_path / "data").is_dir() else tmp_path / "data"
    path = root / "refcoco" / "instances.json"
    text = json.dumps(content).encode("utf-8", "replace")
    path.write_bytes(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.integers(0, 9)) == 0 else text)
    settle(lambda: open_dataset("refcoco", "val", root, pictures=False))
    settle(lambda: open_dataset(str(path), pictures=False))


@FUZZ
@given(data=st.data())
def test_refs_of_noise(tmp_path: Path, data):
    content: list[Any] = refs()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 4))
        kind = data.draw(st.sampled_from(["ref", "key", "sentence", "twice"]))
        if kind == "ref":
            content[place] = data.draw(noise)
        elif kind == "twice":
            content.append(content[place])
        elif isinstance(content[place], dict):
            key = data.draw(st.sampled_from(["ref_id", "ann_id", "image_id", "split", "sentences"]))
            content[place][key] = data.draw(noise | st.lists(noise, max_size=2))
    root = tmp_path / "data"
    for folder, name, spec in (("refcoco", "refs(unc).json", "refcoco"), ("grefcoco", "grefs(unc).json", "grefcoco")):
        if not (root / folder).is_dir():
            write_refcoco(root, folder, name)
        (root / folder / name).write_text(json.dumps(content))
        settle(lambda spec=spec: open_dataset(spec, "val", root, pictures=False))
    with contextlib.suppress(TypeError, UnicodeEncodeError, OverflowError):
        (root / "refcoco" / "refs(unc).p").write_bytes(python2_pickle(content))
        settle(lambda: open_dataset("refcoco", "val", root, pictures=False))
    (root / "refcoco" / "refs(unc).p").unlink(missing_ok=True)


line = st.fixed_dictionaries(
    {"image": st.just("a.png") | noise, "queries": st.lists(st.fixed_dictionaries(
        {"text": st.just("a") | noise}, optional={"masks": st.lists(segmentations, max_size=2) | noise,
        "distractors": noise, "kind": noise, "ignore": segmentations, "id": noise}), max_size=2) | noise},
    optional={"id": noise, "size": st.just([HEIGHT, WIDTH]) | noise, "meta": noise},
)  # fmt: skip


@FUZZ
@given(lines=st.lists(line | noise, min_size=1, max_size=3))
def test_lines_of_noise(tmp_path: Path, lines):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    dataset = settle(lambda: open_dataset(str(path)))
    if dataset is not None:
        lost = sum(p.where.startswith(f"{path}:") for p in dataset.problems)
        assert len(dataset) + lost >= len(lines) - sum("occurs before" in p.what for p in dataset.problems)


@FUZZ
@given(tasks=st.lists(st.fixed_dictionaries(
    {"task_id": st.text(max_size=2) | noise, "image_id": st.just(1) | noise, "phrase": st.just("a") | noise,
     "Polygons": st.lists(st.lists(st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=5), max_size=2),
                          max_size=2) | noise},
    optional={"phrase_structure": noise},
) | noise, max_size=3))  # fmt: skip
def test_phrases_of_noise(tmp_path: Path, tasks):
    folder = tmp_path / "phrasecut"
    folder.mkdir(exist_ok=True)
    sizes = [{"image_id": 1, "height": HEIGHT, "width": WIDTH}]
    (folder / "image_data_split.json").write_text(json.dumps(sizes))
    (folder / "refer_val.json").write_text(json.dumps(tasks))
    settle(lambda: open_dataset("phrasecut", "val", tmp_path, pictures=False))


@FUZZ
@given(segmentation=st.lists(st.lists(st.floats(0, 64), min_size=6, max_size=12).filter(lambda p: len(p) % 2 == 0),
                             min_size=1, max_size=3))  # fmt: skip
def test_sound_polygons_are_never_lost(tmp_path: Path, segmentation):
    """The raw path through the file and the index gives what pycocotools makes of the numbers."""
    root = tmp_path / "data"
    if not root.is_dir():
        write_refcoco(root)
    content = instances()
    content["annotations"][0]["segmentation"] = segmentation
    (root / "refcoco" / "instances.json").write_text(json.dumps(content))
    dataset = open_dataset("refcoco", "val", root)
    assert dataset.problems == []
    planes = coco.decode(coco.frPyObjects(segmentation, HEIGHT, WIDTH))
    assert np.array_equal(codec.decode(dataset[0].queries[0].masks[0]), planes.any(axis=2))


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([], "an RLE or a list of polygons"),
        (None, "an RLE or a list of polygons"),
        ([[]], "0 coordinates"),
        ([[1, 2, 3, 4]], "4 coordinates"),
        ([[1, 2, 3, 4, 5, 6, 7]], "odd number"),
        ([[1, 2, 3, 4, 5, "6"]], "no number"),
        ([[1, 2, 3, 4, 5, 1e9]], "beyond a million"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no number"),
        ([[[1, 2], [3, 4], [5, 6]]], "3 coordinates"),
        ([{"x": 1}], "must be a list of numbers"),
        ({"size": [HEIGHT, WIDTH]}, "an RLE is"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "the RLE has size [64, 48], the image [48, 64]"),
        ({"size": [96, 128], "counts": [96 * 128]}, "the RLE has size [96, 128]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5]}, "RLE runs add up to 5"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "RLE counts"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, segmentation: Any, says: str):
    content = instances()
    content["annotations"][3]["segmentation"] = segmentation
    root = write_refcoco(tmp_path / "data")
    (root / "refcoco" / "instances.json").write_text(json.dumps(content))
    dataset = open_dataset("refcoco", "val", root)
    problems = {p.where: p.what for p in dataset.problems}
    assert says in problems["instances.json: annotation 14"]
    assert problems["refs(unc).p: ref 3"] == "a target has no usable mask"
    assert len(problems) == 2
    assert len(dataset[0].queries) == 3


def test_a_flat_polygon_is_one_polygon(tmp_path: Path):
    content = instances()
    content["annotations"][3]["segmentation"] = content["annotations"][3]["segmentation"][0]
    root = write_refcoco(tmp_path / "data")
    before = open_dataset("refcoco", "val", root).fingerprint
    (root / "refcoco" / "instances.json").write_text(json.dumps(content))
    assert open_dataset("refcoco", "val", root).fingerprint == before


def test_truncation_at_every_point(tmp_path: Path):
    root = write_refcoco(tmp_path / "data")
    path = root / "refcoco" / "instances.json"
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(VLSegError, match="not JSON"):
            open_dataset("refcoco", "val", root)
