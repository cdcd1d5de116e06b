from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlseg.data.registry import KNOWN, open_dataset, parse_spec
from vlseg.types import VLSegError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("refcoco+", ("refcoco+", {})),
        ("refcoco?root=a+b&split=val", ("refcoco", {"root": "a+b", "split": "val"})),
        ("coco?root=../x%26y&absent=2", ("coco", {"root": "../x&y", "absent": "2"})),
        ("a/b.jsonl", ("a/b.jsonl", {})),
    ],
)
def test_specs(spec: str, expected):
    assert parse_spec(spec) == expected


@pytest.mark.parametrize(
    ("spec", "split", "says"),
    [
        ("", None, "no data set named"),
        ("refcoc", None, "did you mean refcoco?"),
        ("RefCOCO+", None, "did you mean refcoco+?"),
        ("refcocog", None, "refcocog-umd"),
        ("nothing/at/all", None, "there are refcoco"),
        ("refcoco?splt=val", None, "did you mean split?"),
        ("refcoco?text=raw&text=sent", None, "each key once"),
        ("refcoco?", None, "key=value"),
        ("refcoco?text", None, "key=value"),
        ("refcoco?text=", None, "key=value"),
        ("refcoco?text=loud", None, "text=loud is not one of sent, raw"),
        ("refcoco", "tstA", "did you mean testA?"),
        ("refcoco?split=val", "testA", "say one"),
        ("refcoco?absent=2", None, "no option 'absent'"),
        ("coco?absent=two", None, "absent=two must be a whole number"),
        ("sprites?n=0", None, "at least 1"),
        ("sprites?size=10x10", None, "size=10x10"),
        ("sprites?size=256", None, "size=256"),
        ("sprites?styles=loud", None, "train, plain, held_out"),
        ("x.jsonl", None, "cannot be read"),
        ("x.json", None, "no such file"),
    ],
)
def test_wrong_calls_are_one_line(tmp_path: Path, monkeypatch, spec: str, split: str | None, says: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VLSegError) as caught:
        open_dataset(spec, split)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in ("sprites", "geometry")])
def test_missing_files_say_which_belong_where(tmp_path: Path, name: str):
    with pytest.raises(VLSegError) as caught:
        open_dataset(name, root=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name}: {tmp_path}")
    assert "not there; put" in message
    assert "VLSEG_DATA" in message
    assert "\n" not in message


def test_where_named_data_is_looked_for(refcoco: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("refcoco")) == 1  # ./data
    monkeypatch.chdir("/")
    with pytest.raises(VLSegError, match="are not there"):
        open_dataset("refcoco")
    monkeypatch.setenv("VLSEG_DATA", str(refcoco))
    assert len(open_dataset("refcoco")) == 1
    monkeypatch.setenv("VLSEG_DATA", "/nowhere")
    assert len(open_dataset("refcoco", root=refcoco)) == 1
    assert len(open_dataset(f"refcoco?root={refcoco}", root=Path("/nowhere"))) == 1
    assert open_dataset(f"refcoco?root={refcoco}&split=testa").split == "testA"
    assert open_dataset("refcoco", "validation", refcoco).split == "val"


def test_folders_that_are_none(refcoco: Path, tmp_path: Path):
    with pytest.raises(VLSegError, match=r"for example refcoco\?root="):
        open_dataset(str(refcoco / "refcoco"))
    with pytest.raises(VLSegError, match=r"for example refcoco\?root="):
        open_dataset(str(refcoco))
    with pytest.raises(VLSegError, match="neither Parquet files"):
        open_dataset(str(refcoco / "train2014"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(VLSegError, match="not a file of data"):
        open_dataset(str(tmp_path / "notes.txt"))


def test_folders_of_jsonl(tmp_path: Path):
    def lines(name: str, count: int) -> None:
        line = json.dumps({"image": "a.png", "queries": [{"text": "a"}]}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(line * count)

    lines("train", 1)
    assert len(open_dataset(str(tmp_path))) == 1
    with pytest.raises(VLSegError, match="say which split; it has train"):
        open_dataset(str(tmp_path), "val")
    lines("val", 2)
    with pytest.raises(VLSegError, match="say which split; it has train, val"):
        open_dataset(str(tmp_path))
    assert (len(open_dataset(str(tmp_path), "val")), len(open_dataset(f"{tmp_path}?split=train"))) == (2, 1)
    lines("data", 3)
    assert len(open_dataset(str(tmp_path))) == 3
    with pytest.raises(VLSegError, match="no option 'root'"):
        open_dataset(f"{tmp_path}?root=x")


def test_the_registry_loads_nothing_heavy():
    code = (
        "import sys; import vlseg.data.registry; from vlseg.data.registry import open_dataset; "
        "open_dataset('sprites?n=1'); "
        "print([n for n in ('torch', 'pyarrow', 'datasets', 'transformers') if n in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
