from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.cli import main
from vlseg.cli.outputs import base_names, mask_names, slug
from vlseg.systems import registry
from vlseg.types import Answer, Result


@pytest.fixture
def run(tiny_folder: Path, segmenter, capsys, monkeypatch: pytest.MonkeyPatch):
    """run(*arguments) -> (exit code, stdout, lines of stderr) of `vlseg segment` with the tiny checkpoint."""
    load = registry.load_system

    def load_once(model, device, dtype):
        ready = (str(model), device, dtype) == (str(tiny_folder), "cpu", None)
        return segmenter.system if ready else load(model, device, dtype)

    monkeypatch.setattr("vlseg.segmenter.load_system", load_once)

    def call(*arguments, model: Path | str | None = tiny_folder) -> tuple[int, str, list[str]]:
        options = [] if model is None else ["--model", str(model)]
        options += [] if "--device" in arguments else ["--device", "cpu"]
        code = main(["segment", *map(str, arguments), *options])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err.splitlines()

    return call


@pytest.fixture
def photo(tmp_path: Path, picture) -> Path:
    picture().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def refused(result: tuple[int, str, list[str]], says: str, code: int = 2) -> None:
    assert result[0] == code
    assert result[1] == ""
    assert len(result[2]) == 1, result[2]
    assert says in result[2][0]


def test_table(run, photo, queries):
    code, out, err = run(photo, *queries)
    assert (code, err) == (0, [])
    lines = out.splitlines()
    assert lines[0].split() == ["query", "status", "score", "area", "box", "x,y,w,h"]
    assert len(lines) == 1 + len(queries)
    assert "found" in out
    assert "absent" in out
    assert [p.name for p in photo.parent.iterdir()] == ["photo.png"]


def test_json_is_the_result(run, photo, queries, segmenter, assert_foreground):
    code, out, err = run("--json", photo, *queries)
    assert (code, err) == (0, [])
    result = Result.from_dict(json.loads(out))
    assert_foreground(result)
    assert [a.segments for a in result] == [
        [type(s)(**s.to_dict()) for s in a.segments] for a in segmenter(photo, queries)
    ]
    assert result.image == str(photo)


def test_thresholds_are_used(run, photo, queries):
    _, out, _ = run(photo, *queries, "--json", "--presence-threshold", "0", "--mask-threshold", "0.6")
    strict = json.loads(out)
    _, out, _ = run(photo, *queries, "--json", "--presence-threshold", "0")
    loose = json.loads(out)
    assert {a["status"] for a in strict["answers"]} == {"found"}
    for a, b in zip(strict["answers"], loose["answers"], strict=True):
        assert a["segments"][0]["area"] < b["segments"][0]["area"]
    _, out, _ = run(photo, *queries, "--json", "--presence-threshold", "1")
    assert {a["status"] for a in json.loads(out)["answers"]} == {"absent"}


def test_out_writes_all(run, photo, queries, tmp_path):
    out = tmp_path / "deep" / "out"
    code, _, err = run(photo, *queries, "--out", out)
    assert (code, err) == (0, [])
    names = [f"photo.{k}.{slug(q)}.mask.png" for k, q in enumerate(queries, 1)]
    assert sorted(p.name for p in out.iterdir()) == sorted(["photo.json", "photo.overlay.png", "photo.svg", *names])
    result = Result.from_dict(json.loads((out / "photo.json").read_text()))
    for answer, name in zip(result, names, strict=True):
        assert (np.asarray(Image.open(out / name)) == answer.mask * 255).all()
    assert Image.open(out / "photo.overlay.png").size == (160, 120)
    # other words: the masks of the first run go
    assert run(photo, "red", "--out", out)[0] == 0
    assert [p.name for p in out.glob("*.mask.png")] == ["photo.1.red.mask.png"]


def test_quiet(run, photo, queries, tmp_path):
    assert run(photo, *queries, "--quiet", "--out", tmp_path / "o") == (0, "", [])


def test_ugly_inputs(run, tmp_path, picture):
    picture(0, 400, 400).save(tmp_path / "photo.jpg")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    refused(run(tmp_path / "foto.jpg", "red"), "did you mean")
    refused(run(tmp_path / "text.jpg", "red"), "not an image")
    refused(run(tmp_path / "cut.jpg", "red"), "broken")
    refused(run(tmp_path / "zero.jpg", "red"), "empty")
    refused(run(tmp_path / "empty", "red"), "no image in this folder")
    refused(run(str(tmp_path / "*.xyz"), "red"), "no file matches")
    refused(run("http://127.0.0.1:9/a.png", "red"), "network")
    refused(run(tmp_path / "photo.jpg", "red", "--max-pixels", "1k"), "--max-pixels")
    refused(run(tmp_path / "photo.jpg", "red", "--max-pixels", "lots"), "--max-pixels lots")


def test_ugly_pictures_are_answered(run, tmp_path, picture, queries):
    folder = tmp_path / "in"
    folder.mkdir()
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(9600, dtype=np.uint16).reshape(80, 120) * 6).save(folder / "deep.png")
    picture().quantize(8).save(folder / "palette.png", transparency=0)
    picture().save(folder / "film.gif", save_all=True, append_images=[picture(1)])
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (20000, 200), "red").save(folder / "long.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    picture().save(folder / "turned.png", exif=exif)
    code, out, err = run(folder, *queries, "--json", "--presence-threshold", "0")
    sizes = {Path(r["image"]).stem: r["size"] for r in map(json.loads, out.splitlines())}
    assert sizes == {
        "cmyk": [120, 160],
        "deep": [80, 120],
        "palette": [120, 160],
        "film": [120, 160],
        "one": [1, 1],
        "long": [200, 20000],
        "turned": [160, 120],
    }
    # a mask without a pixel is said to have failed, never passed off as found
    failed = [(r, a) for r in map(json.loads, out.splitlines()) for a in r["answers"] if a["status"] == "failed"]
    assert len(err) == len(failed)
    assert code == (1 if failed else 0)


def test_wrong_queries(run, photo):
    refused(run(photo, ""), "query 1 is empty")
    refused(run(photo, "red", "  "), "query 2 is empty")
    refused(run(photo), "QUERY")
    code, out, err = run(photo, "x" * 10_000)
    assert code == 1
    assert len(err) == 1
    assert "too long" in err[0]
    assert len(err[0]) < 300
    code, out, err = run(photo, "red " * 500, "red", "--presence-threshold", "0", "--json")
    assert [a["status"] for a in json.loads(out)["answers"]] == ["failed", "found"]
    assert (code, len(err)) == (1, 1)


@pytest.mark.parametrize("text", ["[SEG]", "<image>", "[PAD]"])
def test_typed_control_tokens(run, photo, text):
    code, out, _ = run(photo, text, "--json", "--presence-threshold", "0")
    assert code == 0
    assert json.loads(out)["answers"][0]["text"] == text


def test_wrong_calls(run, photo, tmp_path, tiny_folder):
    refused(run(photo, "red", "--jsn"), "did you mean --json?")
    refused(run(photo, "red", "--mode", "ring"), "--mode")
    refused(run(photo, "red", "--mode", "path"), "has no path mode")
    refused(run(photo, "red", "--refine", "vlseg=nowhere"), "no config.json in nowhere")
    refused(run(photo, "red", "--refine", "sam"), "known: none, vlseg, vlseg=FOLDER, sam2")
    refused(run(photo, "red", "--refine", "sam2=nowhere"), "no config.json in nowhere")
    refused(run(photo, "red", "--presence-threshold", "2"), "0..1")
    refused(run(photo, "red", "--mask-threshold", "x"), "not a number")
    refused(run(photo, "red", "--mask-threshold", "1"), "between 0 and 1")
    refused(run(photo, "red", "--dtype", "int3"), "--dtype int3")
    refused(run(photo, "red", "--device", "cuda:77"), "this machine has")
    refused(run(photo, "red", "--out", ""), "--out is empty")
    refused(run(photo, "red", model="vlseg-mni"), "did you mean vlseg-mini?")
    refused(run(photo, "red", model=tmp_path), "no config.json")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors").write_bytes(b"x")
    refused(run(photo, "red", model=broken), "cannot be loaded")


def test_unwritable_out_is_told_before_the_model_is_loaded(run, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("vlseg.segmenter.load_system", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    refused(run(photo, "red", "--out", tmp_path / "file"), "it is a file")
    refused(run(photo, "red", "--out", tmp_path / "file" / "below"), "cannot be written to")
    if os.path.isdir("/proc"):
        refused(run(photo, "red", "--out", "/proc/vlseg"), "cannot be written to")


def test_words_that_look_like_options(run, photo, tiny_folder, capsys):
    code, out, _ = run("--json", photo, "red", "--presence-threshold", "0")
    code, out2, _ = run(photo, "--json", "--presence-threshold", "0", "red")
    assert code == 0
    assert json.loads(out)["answers"] == json.loads(out2)["answers"]
    refused(run(photo, "-red"), "write -- before them")
    options = ["--model", str(tiny_folder), "--device", "cpu", "--json"]
    assert main(["segment", *options, "--", str(photo), "-red", "--blue"]) == 0
    assert [a["text"] for a in json.loads(capsys.readouterr().out)["answers"]] == ["-red", "--blue"]


@pytest.fixture
def folder(tmp_path: Path, picture) -> Path:
    out = tmp_path / "in"
    out.mkdir()
    picture(0).save(out / "a.png")
    picture(1).save(out / "a.bmp")
    picture(2).save(out / "b.png")
    (out / "broken.png").write_bytes(b"not a picture")
    (out / "notes.txt").write_text("not meant")
    return out


def test_folder_skips_names_goes_on_and_resumes(run, folder, tmp_path, queries, monkeypatch):
    out = tmp_path / "out"
    code, stdout, err = run(folder, *queries, "--out", out)
    assert code == 1
    assert len(err) == 1
    assert "broken.png" in err[0]
    assert sorted(p.name for p in out.glob("*.json")) == ["a.bmp.json", "a.png.json", "b.json"]
    assert json.loads((out / "a.bmp.json").read_text())["image"] == str(folder / "a.bmp")
    assert [p.name for p in out.glob(".*")] == [".made-by"]
    stamps = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "b.json").unlink()
    code, again, err = run(folder, *queries, "--out", out)
    assert code == 1
    assert len(err) == 2
    assert "2 of 4 images were done already" in err[1]
    assert {p for p, t in stamps.items() if p.stat().st_mtime_ns != t and not p.name.startswith("b.")} == set()
    assert again == stdout
    # another question, or another threshold, is another answer
    assert len(run(folder, "red", "--out", out)[2]) == 1
    assert len(run(folder, "red", "--out", out, "--presence-threshold", "0.9")[2]) == 1
    # weights that have been replaced since answer anew
    same = (folder, "red", "--out", out, "--presence-threshold", "0.9")
    for files in ([["model.safetensors", 1, 2]], [["model.safetensors", 1, 3]]):
        monkeypatch.setattr("vlseg.cli.model_key._files", lambda place, files=files: files if place else [])
        assert len(run(*same)[2]) == 1
    assert "3 of 4 images were done already" in run(*same)[2][1]
    # a picture that has changed is run again
    os.utime(folder / "b.png", (2**31, 2**31))
    assert "2 of 4" in run(folder, "red", "--out", out, "--presence-threshold", "0.9")[2][1]


def test_glob_and_json_lines(run, folder, queries):
    code, out, err = run(str(folder / "[ab].*"), *queries, "--json")
    assert (code, err) == (0, [])
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == ["a.bmp", "a.png", "b.png"]


def test_out_may_not_be_the_folder_of_the_images(run, folder):
    refused(run(folder, "red", "--out", folder), "name another")


def test_a_name_with_glob_characters_is_a_file(run, tmp_path, picture):
    picture().save(tmp_path / "a[1].png")
    assert run(tmp_path / "a[1].png", "red")[0] == 0


def test_interrupted_between_images(run, folder, tmp_path, queries, monkeypatch):
    from vlseg.cli.outputs import OutputFolder

    write, out = OutputFolder.write, tmp_path / "out"

    def stop_at_the_second(self, base, result):
        if base == "a.png":
            raise KeyboardInterrupt
        return write(self, base, result)

    monkeypatch.setattr(OutputFolder, "write", stop_at_the_second)
    code, _, err = run(folder, *queries, "--out", out)
    assert code == 130
    assert len(err) == 1
    assert "interrupted after 1 of 4 images; the same command goes on" in err[0]
    assert [p.name for p in out.glob("*.json")] == ["a.bmp.json"]


def test_a_write_cut_short_leaves_nothing(run, photo, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlseg.data.files.os.replace", stop)
    assert run(photo, "red", "--out", tmp_path / "out")[0] == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_line(run, photo, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlseg.data.files.os.replace", full)
    refused(run(photo, "red", "--out", tmp_path / "out"), "No space left")


def test_names():
    assert base_names(["x/a.jpg", "x/b.jpg"]) == ["a", "b"]
    assert base_names(["a.jpg", "A.png", "b.png"]) == ["a.jpg", "A.png", "b"]
    assert base_names(["x/a.jpg", "y/a.jpg"]) == ["a.jpg", "a.jpg-2"]
    assert base_names(["http://host/p%20q.jpg?size=3", "http://host/"]) == ["p q", "image"]
    assert len(base_names(["ü" * 120 + ".jpg"])[0].encode()) <= 120
    assert slug("The red  Mug!") == "the-red-mug"
    assert slug("красная кружка") == "красная-кружка"
    assert slug("../../x") == "x"
    assert slug("?!") == ""
    answers = [
        Answer("?!", "absent", 0.1, (1, 1)),
        Answer("a", "failed", None, (1, 1), "x"),
        Answer("b", "found", 1, (1, 1)),
    ]
    assert mask_names("p", answers) == {0: "p.1.mask.png", 2: "p.3.b.mask.png"}
