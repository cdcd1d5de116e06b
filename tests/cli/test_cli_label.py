"""`vlseg label` as it is called, and what comes of it further on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.cli import main
from vlseg.masks import rle as codec


@pytest.fixture(scope="module")
def other_folder(tiny_folder, tmp_path_factory) -> Path:
    """The tiny checkpoint with another bias, so that the two agree in most pixels and not in all."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("mask_head.bias.bias"))
    weights[name] = weights[name] + 0.2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def call(capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        code = main(["label", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err.splitlines()

    return run


@pytest.fixture
def photos(tmp_path, picture, queries) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    (tmp_path / "words.txt").write_text("\n".join([f"{queries[0]} | {queries[1]}", *queries[2:]]) + "\n")
    return folder


def test_labels_are_data_and_exports(call, photos, tiny_folder, other_folder, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"no picture")
    arguments = (photos, "--model", tiny_folder, "--against", other_folder, "--queries", tmp_path / "words.txt",
                 "--out", tmp_path / "out", "--device", "cpu")  # fmt: skip
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert len(err) == 2
    assert "broken.png" in err[0]
    assert "4 images, " in err[1]
    lines = [json.loads(line) for line in (tmp_path / "out" / "labels.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0.png", "1.png", "2.png"]
    found = [q for line in lines for q in line["queries"] if q.get("masks")]
    shares = [codec.decode_union(q["masks"], (120, 160)).mean() for q in found]
    assert shares
    assert all(0.05 < share < 0.95 for share in shares)
    assert any("ignore" in query for query in found)
    (photos / "broken.png").unlink()
    assert main(["data", "check", str(tmp_path / "out" / "labels.jsonl")]) == 0
    assert "3 lines, 0 broken" in capsys.readouterr().out
    assert main(["export", "coco", str(tmp_path / "out" / "labels.jsonl"), "--out", str(tmp_path / "coco")]) == 0
    coco = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert len(coco["images"]) == 3
    assert len(coco["annotations"]) == sum(len(q["masks"]) for q in found)
    ranking = [json.loads(line) for line in (tmp_path / "out" / "ranking.jsonl").read_text().splitlines()]
    assert len(ranking) == 3 * 4
    assert all(row["paraphrases"] is not None for row in ranking if row["query"] == 1)
    assert all(row["paraphrases"] is None for row in ranking if row["query"] == 2)
    for path in (tmp_path / "out" / "maps").iterdir():
        with Image.open(path) as image:
            assert set(np.unique(np.asarray(image))) <= {0, 1, 255}


def test_wrong_calls_are_one_line(call, photos, tiny_folder, tmp_path):
    words, out = tmp_path / "words.txt", tmp_path / "out"
    (tmp_path / "none.txt").write_text("\n")
    for arguments, says in (
        ([photos, "--out", out], "--queries"),
        ([photos, "--queries", words], "--out"),
        ([photos, "--queries", tmp_path / "gone", "--out", out], "no such file"),
        ([photos, "--queries", tmp_path / "none.txt", "--out", out], "holds no query"),
        ([tmp_path / "gone", "--queries", words, "--out", out], "no such image"),
        ([photos, "--queries", words, "--out", out, "--model", "clipsegg"], "did you mean clipseg?"),
        ([photos, "--queries", words, "--out", out, "--against", "vlseg-mini"], "is the model itself"),
        ([photos, "--queries", words, "--out", out, "--agree", "2"], "must lie in 0..1"),
        ([photos, "--queries", words, "--out", photos], "is the folder of the images"),
    ):
        code, stdout, err = call(*arguments)
        assert (code, stdout, len(err)) == (2, "", 1), (arguments, err)
        assert says in err[0]
    assert not out.exists()
