"""What counts as Results, and what is said of the rest."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from results_made import make_results, write_lines

from vlseg.export.kinds import Options, export_results
from vlseg.export.source import Results
from vlseg.masks import rle as codec
from vlseg.types import VLSegError


@pytest.fixture
def made(tmp_path):
    return make_results(tmp_path / "pictures")


def plain(results: Results) -> list[dict]:
    return [item.result.to_dict() for item in results]


def test_a_file_lines_and_a_folder_are_the_same(made, tmp_path):
    lines = write_lines(made, tmp_path / "results.jsonl")
    expected = [result.to_dict() for result in made]
    assert plain(Results(lines)) == expected
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, result in enumerate(made):
        (folder / f"{number}.json").write_text(result.to_json(indent=1))
    (folder / "other.json").write_text('{"steps": 3}')
    (folder / ".hidden.json").write_text("{")
    found = Results(folder)
    assert plain(found) == expected
    assert plain(found) == expected  # and again
    assert (len(found), found.problems) == (3, [])
    assert [item.base for item in found] == ["photo 0", "photo 1", "photo 2"]
    assert [str(item.picture) for item in found] == [result.image for result in made]
    assert plain(Results(folder / "1.json")) == expected[1:2]


def test_shards_in_folders_below(made, tmp_path):
    (tmp_path / "out" / "shards").mkdir(parents=True)
    for number, result in enumerate(made):
        write_lines([result], tmp_path / "out" / "shards" / f"{number:05d}.jsonl")
    assert plain(Results(tmp_path / "out")) == [result.to_dict() for result in made]


def test_parquet_shards_of_bulk_runs(made, tmp_path):
    from vlseg.bulk.job import Answered
    from vlseg.bulk.output import Output

    output = Output(tmp_path / "out", "parquet", 2)
    output.inner.mkdir(parents=True)
    output.write(0, Answered([result.to_dict() for result in made[:2]]))
    output.write(1, Answered([made[2].to_dict()]))
    found = Results(tmp_path / "out")
    assert plain(found) == [result.to_dict() for result in made]
    assert found.problems == []
    (tmp_path / "out" / "results-00002.parquet").write_bytes(b"PAR1")
    assert "results-00002.parquet: cannot be read" in Results(tmp_path / "out").problems[0]


def test_broken_entries_are_named_and_the_others_stay(made, tmp_path):
    good, wrong_size, wrong_status, overlong = (result.to_dict() for result in [*made, made[0]])
    wrong_size["answers"][1]["segments"][0]["rle"] = codec.encode(np.ones((3, 3), bool))
    wrong_status["answers"][0]["status"] = "maybe"
    overlong["image"] = "other.png"
    overlong["answers"][0]["segments"][0]["rle"]["counts"] = "zz"
    entries = [good, wrong_size, "{", wrong_status, overlong, good, {"image": "x.png"}, 7]
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries))
    found = Results(file)
    assert len(found) == 1
    says = ["answer 2, segment 1: size [3, 3]", "not JSON", "status 'maybe'", "answer 1, segment 1",
            "occurs before; the second is left out", "KeyError 'size'", "not a vlseg Result"]  # fmt: skip
    assert len(found.problems) == len(says)
    for number, (problem, text) in enumerate(zip(found.problems, says, strict=True), 2):
        assert problem.startswith(f"{file}:{number}: ")
        assert text in problem


def test_boxes_and_areas_come_from_the_runs(made, tmp_path):
    data = made[0].to_dict()
    expected = json.loads(json.dumps(data))
    for answer in data["answers"]:
        for segment in answer["segments"]:
            segment.update(area=1, bbox=[0, 0, 1, 1])
    file = tmp_path / "one.json"
    file.write_text(json.dumps(data))
    assert plain(Results(file)) == [expected]


def test_min_score(made, tmp_path):
    found = Results(write_lines(made, tmp_path / "r.jsonl"), min_score=0.65)
    assert [[s.score for a in item.result.answers for s in a.segments] for item in found] == [[0.9, 0.8, 0.7, 0.8]] * 3


def test_labelled_lines_are_results(made, tmp_path):
    mask = made[0].answers[0].segments[0].rle
    line = {"image": "pictures/photo 0.png", "queries": [
        {"text": "the ring", "masks": [mask], "ignore": mask}, {"text": "the zebra", "masks": []}, {"text": "unknown"}
    ]}  # fmt: skip
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(line))
    (item,) = Results(file)
    assert item.result.image == made[0].image
    assert [(a.text, a.status) for a in item.result.answers] == [("the ring", "found"), ("the zebra", "absent")]
    assert np.array_equal(item.result[0].mask, made[0].answers[0].mask)
    assert 0.05 < item.result[0].mask.mean() < 0.95
    svg = export_results("svg", Results(file), tmp_path / "svg") / "photo 0.svg"
    assert made[0].answers[0].segments[0].path in svg.read_text()


def test_names_are_unique_whatever_the_case(made, tmp_path):
    rows = []
    for image in ("a/x.png", "b/X.jpg", "c/x-2.png", "d/.x", "e/x"):
        rows.append({**made[0].to_dict(), "image": image})
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bases = [item.base for item in Results(file)]
    assert bases == ["x", "X-2", "x-2-2", "x-3", "x-4"]


def test_nothing_to_export_is_one_line(tmp_path):
    for name, text, says in (
        ("a.jsonl", "", "holds no Result"),
        ("b.json", "[]", "holds no Result"),
        ("c.json", "{", "cannot be read"),
        ("d.json", '{"steps": 3}', "not a vlseg Result"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(VLSegError, match=says):
            Results(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VLSegError, match=r"no \.json, \.jsonl"):
        Results(tmp_path / "empty")
    with pytest.raises(VLSegError, match="no such file"):
        Results(tmp_path / "gone")


def test_pictures_are_copied_upright(made, tmp_path):
    """A photograph that its file shows turned: the copy has the size that the masks have."""
    result = made[0]
    height, width = result.size
    exif = Image.Exif()
    exif[274] = 6
    turned = tmp_path / "turned.jpg"
    Image.new("RGB", (height, width), (200, 30, 30)).save(turned, exif=exif)
    rows = [{**result.to_dict(), "image": str(turned)}, {**result.to_dict(), "image": "gone.jpg"}, made[1].to_dict()]
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = Results(file)
    export_results("coco", results, tmp_path / "out", Options(copy_images=True))
    with Image.open(tmp_path / "out" / "images" / "turned.jpg") as picture:
        assert picture.size == (width, height)
        assert picture.getexif().get(274, 1) == 1
    assert (tmp_path / "out" / "images" / "photo 1.png").read_bytes() == (tmp_path / made[1].image).read_bytes()
    assert len(results.problems) == 1
    assert results.problems[0].startswith("gone.jpg: not copied: no such file here")
    moved = Results(file, images=tmp_path)
    (tmp_path / "gone.jpg").write_bytes(turned.read_bytes())
    export_results("coco", moved, tmp_path / "again", Options(copy_images=True))
    assert moved.problems == []
