"""Scenes on disk: the JSONL of contract 4.4."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.masks.rle import decode
from vlseg.types import VLSegError
from vlseg.worlds.render import render_dataset


def test_a_data_set_reads_back_and_is_the_same_each_time(tmp_path: Path) -> None:
    paths = [render_dataset("sprites", tmp_path / name, 6, 1) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    rows = [json.loads(row) for row in paths[0].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6
    for row in rows:
        picture = Image.open(tmp_path / "a" / row["image"])
        other = Image.open(tmp_path / "b" / row["image"])
        assert np.array_equal(np.asarray(picture), np.asarray(other))
        assert row["queries"]
        for query in row["queries"]:
            assert set(query) == {"text", "masks", "distractors", "kind"}
            for rle in query["masks"] + query["distractors"]:
                assert decode(rle).shape == (picture.height, picture.width)
                assert decode(rle).any()
    assert not list(tmp_path.rglob(".part-*"))


def test_fixed_size_and_jpeg(tmp_path: Path) -> None:
    path = render_dataset("sprites", tmp_path, 2, 3, size=(96, 128), queries=3, styles="plain", image_format="jpg")
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    assert row["image"] == "images/000001.jpg"
    assert Image.open(tmp_path / row["image"]).size == (128, 96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"world_name": "moon"}, "no world"), ({"n": 0}, "at least 1"), ({"styles": "x"}, "no styles"),
     ({"image_format": "gif"}, "neither"), ({"seed": -1}, "negative"), ({"size": (4, 4)}, "at least 32")],
)  # fmt: skip
def test_bad_input_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    arguments = {"world_name": "sprites", "out": tmp_path, "n": 1, "seed": 1, **changes}
    with pytest.raises(VLSegError, match=message):
        render_dataset(**arguments)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(VLSegError, match="cannot write"):
        render_dataset("sprites", tmp_path / "file" / "deeper", 1, 1)
