"""`vlseg data info | check | convert` over every kind of data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.cli import main

HEIGHT, WIDTH = 40, 60
BOX = [[5, 5, 25, 5, 25, 30, 5, 30]]
OTHER = [[30, 5, 55, 5, 55, 30, 30, 30]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VLSEG_DATA", raising=False)


@pytest.fixture
def call(capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        code = main(["data", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RefCOCO with one image a split; the refs as JSON."""
    folder = tmp_path / "data" / "refcoco"
    (tmp_path / "data" / "train2014").mkdir(parents=True)
    folder.mkdir()
    images, annotations, refs = [], [], []
    for k, split in enumerate(("train", "val", "testA", "testB"), 1):
        name = f"COCO_train2014_{k:012d}.jpg"
        pixels = np.random.default_rng(k).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "train2014" / name)
        images.append({"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for place, polygon in enumerate((BOX, OTHER)):
            annotations.append({"id": 2 * k + place, "image_id": k, "category_id": 1, "segmentation": polygon})
        sentences = [
            {"sent_id": 10 * k + n, "sent": text, "raw": text} for n, text in enumerate(("left", "the left one"))
        ]
        refs.append({"ref_id": k, "ann_id": 2 * k, "image_id": k, "split": split, "sentences": sentences})
    categories = [{"id": 1, "name": "box"}]
    (folder / "refs(unc).json").write_text(json.dumps(refs))
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(whole))
    return tmp_path / "data"


def test_info(call, root: Path):
    code, out, err = call("info", "refcoco", "--root", root)
    assert (code, err) == (0, [])
    lines = out.splitlines()
    assert lines[:3] == ["images       1", "queries      2", "present      2"]
    assert "distractors  2" in lines
    assert "split        val" in lines
    assert any("4 of the official 50000 refs" in line for line in lines)
    code, out, err = call("info", f"refcoco?root={root}", "--split", "testB", "--json", "--fingerprint")
    found = json.loads(out)
    assert (code, found["split"], found["counts"]["queries"], found["problems"]) == (0, "testB", 2, 0)
    assert len(found["fingerprint"]) == 64
    # pictures are not needed for counting
    for path in (root / "train2014").iterdir():
        path.unlink()
    assert call("info", "refcoco", "--root", root)[0] == 0
    code, out, err = call("check", "refcoco", "--root", root)
    assert code == 2
    assert len(err) == 1
    assert "pictures are not there" in err[0]


def test_check(call, root: Path):
    assert call("check", "refcoco", "--root", root) == (0, "1 images, 0 broken; 0 records left out\n", [])
    path = root / "train2014" / "COCO_train2014_000000000002.jpg"
    Image.new("RGB", (10, 10)).save(path)
    code, out, err = call("check", "refcoco", "--root", root)
    assert (code, out) == (1, "1 images, 1 broken; 0 records left out\n")
    assert "instances.json: image 2: the annotations say size [40, 60], the upright image has [10, 10]" in err[0]
    assert call("check", "sprites?n=2&size=64x64") == (0, "2 images, 0 broken; 0 records left out\n", [])


def test_problems_are_named_and_counted(call, root: Path):
    path = root / "refcoco" / "refs(unc).json"
    refs = json.loads(path.read_text())
    path.write_text(json.dumps(refs + [{"ref_id": 100 + k} for k in range(25)]))
    code, out, err = call("info", "refcoco", "--root", root)
    assert code == 1
    assert len(err) == 21
    assert err[0].startswith("refs(unc).json: ref 100: ")
    assert err[-1] == "... and 5 more problems; `vlseg data check` names all"
    code, out, err = call("check", "refcoco", "--root", root)
    assert (code, out, len(err)) == (1, "1 images, 0 broken; 25 records left out\n", 25)
    code, out, err = call("convert", "refcoco", "--root", root, "--out", root / "out")
    assert (code, out) == (1, f"{root / 'out' / 'val.jsonl'}\n")
    assert sum(line.startswith("refs(unc).json") for line in err) == 25


def test_without_leaks(call, root: Path):
    path = root / "refcocog" / "refs(umd).json"
    path.parent.mkdir()
    refs = json.loads((root / "refcoco" / "refs(unc).json").read_text())
    path.write_text(json.dumps([{**ref, "split": "train"} for ref in refs]))
    (path.parent / "instances.json").write_bytes((root / "refcoco" / "instances.json").read_bytes())
    code, out, err = call("info", f"refcocog-umd?root={root}", "--split", "train", "--without-leaks")
    assert (code, err) == (0, [])
    assert out.splitlines()[:2] == ["images       1", "queries      2"]
    assert "leak filter: 3 images with 6 queries taken out, 1 images kept" in out
    assert "refcoco testA 1, refcoco testB 1, refcoco val 1" in out
    assert "not checked, as the files are not there: refcoco+ val" in out
    code, out, err = call("convert", "refcocog-umd", "--root", root, "--split", "train", "--without-leaks",
                          "--out", root / "out")  # fmt: skip
    assert code == 0
    assert len(Path(out.strip()).read_text().splitlines()) == 1


@pytest.mark.parametrize("to", ["jsonl", "parquet"])
def test_convert_and_look_again(call, root: Path, to: str):
    before = json.loads(call("info", "refcoco", "--root", root, "--json", "--fingerprint")[1])
    code, out, err = call("convert", "refcoco", "--root", root, "--out", root / "out", "--to", to)
    assert code == 0
    assert [line for line in err if not line.startswith("note:")] == []
    converted = out.strip()
    after = json.loads(call("info", converted, "--json", "--fingerprint")[1])
    assert after["fingerprint"] == before["fingerprint"]
    assert after["counts"] == before["counts"]
    assert call("check", converted)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info"], "required"),
        (["info", "refcoc"], "did you mean refcoco?"),
        (["info", "refcoco", "--splt", "val"], "no option --splt; did you mean --split?"),
        (["info", "refcoco", "--split", "tstA"], "did you mean testA?"),
        (["convert", "sprites?n=1"], "--out"),
        (["convert", "sprites?n=1", "--out", "x", "--to", "csv"], "csv"),
        (["convert", "sprites?n=1", "--out", "x", "--to", "parquet", "--copy-images"], "leave it out"),
        (["convrt", "x"], "did you mean convert?"),
    ],
)
def test_wrong_calls(call, arguments: list[str], says: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert says in err[0]


def test_help_names_every_data_set(call):
    from vlseg.data.registry import KNOWN

    for arguments in (["--help"], ["info", "--help"], ["convert", "--help"]):
        code, out, _ = call(*arguments)
        assert code == 0
        assert [name for name in KNOWN if name not in out] == []


def test_every_spec_of_the_page_can_be_opened():
    """docs/data.md is checked by its own commands; here, that it names every data set and every option."""
    from vlseg.data.registry import KNOWN

    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for known in KNOWN.values():
        assert f"`{known.name}" in page
        assert [option for option in known.options if f"`{option}" not in page] == []
