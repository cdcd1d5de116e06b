"""Where the demo may lie, what it may import, and its examples."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from vlseg.demo.examples import examples
from vlseg.demo.words import read_queries

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("layout", ["wheel", "checkout", "neither"])
def test_the_verb_finds_it(tmp_path, layout):
    for name in ("__init__.py", "version.py", "types.py", "cli"):
        source, copy = ROOT / "vlseg" / name, tmp_path / "vlseg" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    if layout != "neither":
        shutil.copytree(ROOT / "demo", tmp_path / ("vlseg/demo" if layout == "wheel" else "demo"))
    code = "from vlseg.cli.demo import package; package(); import vlseg.demo.words as w; print(w.__name__, w.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    if layout == "neither":
        assert "the demo is not in this installation" in done.stderr
    else:
        name, file = done.stdout.split()
        assert name == "vlseg.demo.words"
        assert Path(file).is_relative_to(tmp_path / ("vlseg" if layout == "wheel" else "demo"))


def test_imports_go_one_way():
    spec = importlib.util.spec_from_file_location("layers", ROOT / "tests" / "test_layers.py")
    assert spec is not None
    assert spec.loader is not None
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    files = sorted((ROOT / "demo").glob("*.py"))
    assert len(files) > 8
    for file in files:
        module = "vlseg.demo" if file.stem == "__init__" else f"vlseg.demo.{file.stem}"
        assert layers.breaches(file.read_text(encoding="utf-8"), module, file.stem == "__init__") == []


def test_examples_are_whole():
    found = examples()
    assert found
    for file, text in found:
        with Image.open(file) as image:
            image.load()
        assert read_queries(text)


def test_nothing_is_asked_of_other_hosts():
    """No address of another host in what the page is made of; the XML namespace is a name, and is not fetched."""
    for file in sorted((ROOT / "demo").rglob("*")):
        if file.suffix in (".js", ".css", ".html", ".py"):
            text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "://" not in text, file.name
