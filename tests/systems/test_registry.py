from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlseg.systems import registry
from vlseg.systems.registry import load_system, resolve
from vlseg.types import VLSegError


def fails(call, *args) -> str:
    with pytest.raises(VLSegError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder(tiny_folder: Path):
    source = resolve(tiny_folder)
    assert (source.name, source.kind, source.location) == (str(tiny_folder), "folder", str(tiny_folder))


def test_unknown_names_the_nearest():
    assert "did you mean vlseg-mini?" in fails(resolve, "vlseg-mni")
    assert "known: vlseg-mini" in fails(resolve, "qqq")
    assert "no such folder" in fails(resolve, "./runs/final")


def test_folders_that_are_no_checkpoint(tmp_path: Path):
    assert "no config.json" in fails(resolve, tmp_path)
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text("{}")
    assert str(tmp_path / "final") in fails(resolve, tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file" in fails(resolve, tmp_path / "file")


def test_embedded(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    assert "vlseg train configs/mini.yaml" in fails(resolve, None)
    shutil.copytree(tiny_folder, tmp_path / "vlseg-mini")
    assert resolve(None) == resolve("vlseg-mini")
    assert resolve(None).name == "vlseg-mini"


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = fails(load_system, "someone/some-model")
    assert "cannot be reached" in text
    assert "local folder" in text


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b'{"model_type": "bert"}', "model type 'bert'"),
        ("model.safetensors", b"abc", "cannot be loaded"),
        ("model.safetensors", None, "cannot be loaded"),
        ("vlseg_processor.json", None, "vlseg_processor.json"),
    ],
)
def test_broken_checkpoints(tiny_folder: Path, tmp_path: Path, capfd, file: str, content: bytes | None, says: str):
    folder = tmp_path / "c"
    shutil.copytree(tiny_folder, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assert says in fails(load_system, folder)
    assert capfd.readouterr().err == ""


def test_missing_weights_are_not_made_up(tiny_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "c"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(key for key in weights if key.startswith("mask_head.")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of its weights" in fails(load_system, folder)


def test_loading_is_quiet(tiny_folder: Path, capfd):
    system = load_system(tiny_folder, "cpu")
    assert system.name == str(tiny_folder)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert json.loads((tiny_folder / "config.json").read_text())["model_type"] == "vlseg"
