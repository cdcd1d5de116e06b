"""`vlseg export` as it is called."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.cli import main
from vlseg.cli.export import MODELS, RESULTS

FIRST = {"coco": "annotations.json", "yolo": "data.yaml", "labelstudio": "tasks.json", "cvat": "annotations.xml",
         "png": "labels.json", "svg": ""}  # fmt: skip


@pytest.fixture
def call(capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        code = main(["export", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


@pytest.fixture(scope="module")
def masks(segmenter, picture, queries, assert_foreground, tmp_path_factory) -> Path:
    """A folder as `vlseg segment --out` leaves it."""
    from vlseg.cli.outputs import OutputFolder

    folder = tmp_path_factory.mktemp("masks")
    for number in range(2):
        picture(number).save(folder / f"{number}.jpg")
        result = segmenter(str(folder / f"{number}.jpg"), queries)
        assert_foreground(result)
        OutputFolder(str(folder)).write(str(number), result)
    return folder


@pytest.mark.parametrize("kind", RESULTS)
def test_every_kind_of_a_folder_of_results(call, masks, tmp_path, kind):
    code, out, err = call(kind, masks, "--out", tmp_path / "out")
    assert (code, err) == (0, [])
    first = Path(out.strip())
    assert first == tmp_path / "out" / FIRST[kind] if FIRST[kind] else first == tmp_path / "out"
    assert first.exists()


def test_coco_is_read_back_as_a_data_set(call, masks, tmp_path):
    """The way back: what other tools export as COCO is data for `vlseg train` and `vlseg eval`."""
    from vlseg.data.registry import open_dataset
    from vlseg.types import Result

    assert call("coco", masks, "--copy-images", "--out", tmp_path / "out")[0] == 0
    (tmp_path / "out" / "instances.json").write_bytes((tmp_path / "out" / "annotations.json").read_bytes())
    data = open_dataset(f"coco?root={tmp_path / 'out'}")
    assert len(data) == 2
    for number in range(2):
        answers = Result.from_dict(json.loads((masks / f"{number}.json").read_text())).answers
        found = {answer.text: answer.mask for answer in answers if answer.status == "found"}
        queries = {query.text: query.masks for query in data[number].queries}
        assert set(queries) == set(found)
        from vlseg.masks.rle import decode_union

        assert all(np.array_equal(decode_union(rles, answers[0].size), found[t]) for t, rles in queries.items())


def test_what_is_broken_is_named_and_ends_in_1(call, masks, tmp_path):
    (tmp_path / "r.jsonl").write_text((masks / "0.json").read_text().replace("\n", "") + "\n{\n")
    code, out, err = call("coco", tmp_path / "r.jsonl", "--out", tmp_path / "out")
    assert code == 1
    assert Path(out.strip()).exists()
    assert len(err) == 1
    assert "r.jsonl:2: not JSON" in err[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["coco", "gone", "--out", "o"], "gone: no such file or folder"),
        (["cocoo", "gone", "--out", "o"], "did you mean coco?"),
        (["coco", "gone"], "--out"),
        (["coco", "gone", "x", "--out", "o"], "x: coco takes one SOURCE"),
        (["png", "{masks}", "--as", "polygons", "--out", "o"], "png has masks"),
        (["coco", "{masks}", "--tolerance", "wide", "--out", "o"], "--tolerance wide: not a number"),
        (["coco", "{masks}", "--min-score", "2", "--out", "o"], "must lie in 0..1"),
        (["coco", "{masks}", "--images", "gone", "--out", "o"], "--images gone: no such folder"),
        (["merged", "run", "--as", "masks", "--out", "o"], "--as: only for Results"),
        (["merged", "run", "dtype", "--out", "o"], "key=value"),
    ],
)
def test_wrong_calls_are_one_line(call, masks, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*(a.replace("{masks}", str(masks)) for a in arguments))
    assert (code, out, len(err)) == (2, "", 1)
    assert says in err[0]


def test_kinds_of_models_are_handed_on(call, monkeypatch, tmp_path):
    import types

    seen = []

    def export_model(kind, source, out, **options):
        seen.append((kind, source, out, options))
        return Path(out)

    monkeypatch.setitem(sys.modules, "vlseg.export.models", types.SimpleNamespace(export_model=export_model))
    out = str(tmp_path / "o")
    assert call("int4", "run", "where=[decoder]", "group=64", "--out", out) == (0, f"{out}\n", [])
    assert seen == [("int4", "run", out, {"where": ["decoder"], "group": 64})]


def test_the_kinds_are_those_that_the_room_has():
    from vlseg.export.kinds import KINDS

    assert set(KINDS) == set(RESULTS)
    models = pytest.importorskip("vlseg.export.models")
    assert set(models.KINDS) == set(MODELS)


def test_help(call):
    code, out, err = call("--help")
    assert (code, err) == (0, [])
    assert all(kind in out for kind in (*RESULTS, *MODELS))


def test_pictures_drawn_on_are_left_alone(call, masks, tmp_path):
    """The source folder gets nothing new."""
    before = sorted(path.name for path in masks.iterdir())
    assert call("png", masks, "--out", tmp_path / "out")[0] == 0
    assert sorted(path.name for path in masks.iterdir()) == before
    with Image.open(tmp_path / "out" / "masks" / "0.png") as picture:
        assert picture.size == (160, 120)
