from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.cli import main
from vlseg.cli.train import find_config
from vlseg.systems.quiet import quiet_loading
from vlseg.types import VLSegError
from vlseg.version import __version__


@pytest.fixture
def call(capsys):
    def run(*arguments) -> tuple[int, str, list[str]]:
        code = main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def refused(result, says: str) -> None:
    assert result[0] == 2
    assert result[1] == ""
    assert len(result[2]) == 1, result[2]
    assert says in result[2][0]


def test_help_and_version(call):
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = call(*arguments)
        assert (code, err) == (0, [])
        for verb in ("segment", "train", "data", "info"):
            assert verb in out
    assert call("--version") == (0, f"vlseg {__version__}\n", [])
    for verb in ("segment", "train", "info"):
        code, out, err = call(verb, "--help")
        assert (code, err) == (0, [])
        assert f"usage: vlseg {verb}" in out
    assert call("data", "--help")[0] == 0
    assert "--seed" in call("data", "render", "--help")[1]


def test_unknown_verbs_and_options(call):
    refused(call("segmnt", "a.jpg"), "did you mean segment?")
    refused(call("xyz"), "there are segment")
    refused(call("--modle"), "no option '--modle'")
    refused(call("train"), "CONFIG")
    refused(call("train", "mini", "--lanch", "ddp"), "no option --lanch")
    refused(call("data"), "render, info, check")
    refused(call("data", "chek", "x"), "did you mean check?")
    refused(call("data", "render", "sprites"), "--out")
    refused(call("info", "modls"), "models")


def test_debug_shows_the_traceback(capsys):
    assert main(["segment", "missing.jpg", "red", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_one_line_and_1(capsys, monkeypatch):
    def bug(argv):
        raise ValueError("two\nlines")

    monkeypatch.setattr("vlseg.cli.info.run", bug)
    assert main(["info"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "ValueError: two lines" in err


def test_info(call):
    code, out, _ = call("info")
    assert code == 0
    assert f"vlseg {__version__}" in out
    assert "torch " in out
    assert "CPU:" in out
    code, out, _ = call("info", "models")
    assert "clipseg: " in out
    assert "CIDAS/clipseg-rd64-refined" in out
    assert "sam3: " in out
    assert code == 0
    assert "vlseg-mini" in out


def test_render_info_check(call, tmp_path: Path):
    out = tmp_path / "d"
    code, stdout, err = call("data", "render", "sprites", "--out", out, "--n", 2, "--seed", 3, "--size", "64x96",
                             "--queries", 4)  # fmt: skip
    assert (code, stdout, err) == (0, f"{out / 'data.jsonl'}\n", [])
    assert Image.open(out / "images" / "000000.png").size == (96, 64)
    code, stdout, err = call("data", "info", out / "data.jsonl")
    assert (code, err) == (0, [])
    assert stdout.splitlines()[:2] == ["images       2", "queries      8"]
    assert call("data", "check", out / "data.jsonl") == (0, "2 lines, 0 broken\n", [])
    refused(call("data", "render", "sprits", "--out", out, "--n", 2, "--seed", 3), "sprits")
    refused(call("data", "render", "sprites", "--out", out, "--n", "two", "--seed", 3), "--n two")
    refused(call("data", "render", "sprites", "--out", out, "--n", 2, "--seed", 3, "--size", "big"), "--size big")


def test_check_names_every_broken_line(call, tmp_path: Path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    lines = [
        json.dumps({"image": "a.png", "queries": [{"text": "x", "masks": []}]}),
        "{",
        json.dumps({"image": "a.png", "queries": [{"text": "x", "mask": []}]}),
        json.dumps({"image": "gone.png", "queries": []}),
        json.dumps({"image": "a.png", "queries": [{"text": "x", "masks": [{"size": [2, 2], "counts": [1, 3]}]}]}),
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(lines))
    code, out, err = call("data", "check", path)
    assert code == 1
    assert out == "5 lines, 4 broken\n"
    assert [line.split(":")[1] for line in err] == ["2", "3", "4", "5"]
    code, out, err = call("data", "info", path)
    assert code == 1
    assert len(err) == 2
    assert out.startswith("images       3")
    refused(call("data", "check", tmp_path / "none.jsonl"), "cannot be read")
    (tmp_path / "empty.jsonl").write_text("\n")
    refused(call("data", "check", tmp_path / "empty.jsonl"), "no line")


def test_train_finds_configs(call, tmp_path: Path):
    assert find_config("mini").resolve() == find_config("configs/mini.yaml").resolve()
    with pytest.raises(VLSegError, match=r"did you mean mini\?"):
        find_config("minni")
    refused(call("train", "mini", "optim.lrr=1"), "did you mean optim.lr?")
    refused(call("train", "mini", "steps=many"), "steps")
    refused(call("train", tmp_path / "a.yaml"), "no such config")


def test_train_hands_the_config_on(call, tmp_path: Path, monkeypatch):
    with quiet_loading():  # what libraries say when they are first imported is not what this is about
        import vlseg.training.loop  # noqa: F401
    seen = []
    monkeypatch.setattr("vlseg.training.loop.train", seen.append)
    assert call("train", "mini", "steps=3", f"out={tmp_path}") == (0, "", [])
    assert (seen[0].steps, seen[0].out) == (3, str(tmp_path))


def test_train_interrupted(call, monkeypatch):
    def stop(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlseg.training.loop.train", stop)
    assert call("train", "mini") == (130, "", ["vlseg: interrupted"])

    from vlseg.training.loop import Stopped

    def stop_after_saving(config):  # as the loop does: it takes the signal over, saves, says so itself
        signal.signal(signal.SIGINT, lambda *_: None)
        raise Stopped

    monkeypatch.setattr("vlseg.training.loop.train", stop_after_saving)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert call("train", "mini") == (130, "", [])
    finally:
        signal.signal(signal.SIGINT, before)
