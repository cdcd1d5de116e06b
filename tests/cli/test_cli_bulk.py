"""`vlseg segment` in bulk and in tiles, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.bulk.output import read_results
from vlseg.cli import main
from vlseg.types import Result


@pytest.fixture
def photos(tmp_path: Path, picture) -> Path:
    """Six pictures, the fourth cut off."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(6):
        picture(seed).save(folder / f"{seed}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:100])
    return folder


@pytest.fixture
def run(tiny_folder: Path, capsys):
    """run(*arguments) -> (exit code, stdout, lines of stderr) of `vlseg segment` with the tiny checkpoint."""

    def call(*arguments) -> tuple[int, str, list[str]]:
        code = main(["segment", *map(str, arguments), "--model", str(tiny_folder), "--device", "cpu"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err.splitlines()

    return call


def refused(result: tuple[int, str, list[str]], says: str) -> None:
    code, out, err = result
    assert (code, out, len(err)) == (2, "", 1), result
    assert says in err[0]


def test_bulk(run, photos, queries, segmenter, tmp_path, assert_foreground):
    (tmp_path / "words.txt").write_text("\n".join(queries))
    arguments = (photos, "--queries", tmp_path / "words.txt", "--out", tmp_path / "out", "--shard-size", 4)
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert "3.png" in err[0]
    assert "6 images in" in err[1]
    results = [Result.from_dict(data) for data in read_results(tmp_path / "out")]
    assert [Path(result.image).stem for result in results] == ["0", "1", "2", "4", "5"]
    expected = segmenter(photos / "4.png", queries)
    assert_foreground(expected)
    assert [a.status for a in results[3]] == [a.status for a in expected]
    for answer, other in zip(results[3], expected, strict=True):
        assert np.array_equal(answer.mask, other.mask)
    assert results[3].protocol == expected.protocol
    code, _, err = run(*arguments)
    assert code == 1
    assert "0 images; 6 were done before; 1 images failed" in err[1]
    refused(run(*arguments, "--presence-threshold", "0.3"), "another thresholds")


def test_bulk_to_parquet_with_words(run, photos, tmp_path):
    code, _, _ = run(photos, "red", "--engine", "local", "--format", "parquet", "--out", tmp_path / "out", "--quiet")
    assert code == 1
    assert [a["text"] for result in read_results(tmp_path / "out") for a in result["answers"]] == ["red"] * 5


def test_bulk_calls_that_are_wrong(run, photos, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("red")
    refused(run(photos, "--queries", words), "--out is missing")
    refused(run(photos, "--queries", words, "red", "--out", tmp_path / "o"), "give one of them")
    refused(run(photos, "--queries", words, "--json", "--out", tmp_path / "o"), "--json")
    refused(run(photos, "--queries", tmp_path / "none", "--out", tmp_path / "o"), "no such file")
    refused(run(photos, "--queries", words, "--out", photos), "is the folder of the images")
    refused(run(photos, "--queries", words, "--out", tmp_path / "o", "--batch", "0"), "must be at least 1")
    refused(run(photos, "--queries", words, "--out", tmp_path / "o", "--split", "val"), "only for Parquet")
    refused(run("http://127.0.0.1:9/a.png", "--queries", words, "--out", tmp_path / "o"), "a bulk run reads")
    refused(run(photos, "--engine", "local", "--out", tmp_path / "o"), "no query")
    refused(run(photos), "QUERY is missing")
    assert not (tmp_path / "o").exists()


def test_tiles(run, tmp_path, picture, queries):
    picture(0, 300, 420).save(tmp_path / "large.png")
    code, out, err = run(tmp_path / "large.png", *queries, "--tile-size", 128, "--json")
    assert (code, err) == (0, [])
    result = Result.from_dict(json.loads(out))
    assert "in tiles of 128 px (scope whole)" in result.protocol
    assert result.size == (300, 420)
    refused(run(tmp_path / "large.png", "red", "--tile-size", 10), "must be at least 64")
    refused(run(tmp_path / "large.png", "red", "--tile-scope", "any"), "add --tile")


def test_an_image_that_is_too_large_names_both_options(run, tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    refused(run(tmp_path / "large.png", "red", "--max-pixels", "100k"), "add --tile")
    refused(run(tmp_path / "large.png", "red", "--max-pixels", "100k", "--tile"), "raise it with --max-pixels 1M")


def test_a_large_overlay_is_made_smaller(run, tmp_path, picture, queries, monkeypatch):
    monkeypatch.setattr("vlseg.cli.outputs.OVERLAY_PIXELS", 5000)
    picture(0).save(tmp_path / "photo.png")
    assert run(tmp_path / "photo.png", *queries, "--out", tmp_path / "out", "--quiet")[0] == 0
    assert Image.open(tmp_path / "out" / "photo.overlay.png").size == (82, 61)
