"""The config engine: YAML, overrides, types, and messages that say where and what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlseg.config import describe, dump_yaml, from_dict, load, to_dict
from vlseg.types import VLSegError


@dataclass
class Optim:
    lr: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    name: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self):
        if self.lr < 0:
            raise ValueError(f"lr = {self.lr} is negative")


@dataclass
class Source:
    path: Path
    weight: float = 1.0


@dataclass
class Run:
    out: Path = Path("runs")
    steps: int = 10
    flag: bool = False
    title: str = ""
    limit: float | None = None
    optim: Optim = field(default_factory=lambda: Optim(name="sgd"))
    warm: Optim | None = None
    names: list[str] = field(default_factory=list)
    mix: dict[str, float] = field(default_factory=lambda: {"a": 1.0})
    sources: list[Source] = field(default_factory=list)
    sizes: tuple[int, ...] = ()
    auto: float | Literal["auto"] = "auto"
    loose: str | list[Source] = "x"
    extra: Any = None


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_file_and_overrides_in_order(tmp_path: Path):
    path = write(
        tmp_path,
        "steps: 5\noptim:\n  lr: 1e-4\nsources:\n- path: a\n- {path: b, weight: 2}\nmix: {x: 3}\nwarm: {}\n",
    )
    run = load(Run, path, ["optim.lr=5e-5", "sources.1.weight=.5", "mix.y=4", "limit=3", "steps=7", "steps=1e3"])
    assert run.optim == Optim(5e-5, "sgd")
    assert run.sources == [Source(Path("a"), 1.0), Source(Path("b"), 0.5)]
    assert run.mix == {"x": 3.0, "y": 4.0}
    assert run.limit == 3.0
    assert isinstance(run.limit, float)
    assert run.steps == 1000
    assert run.warm == Optim()
    assert load(Run).steps == 10


def test_override_starts_from_the_default():
    run = load(Run, None, ["mix.b=2", "optim.lr=1", "warm.name=sgd"])
    assert run.mix == {"a": 1.0, "b": 2.0}
    assert run.optim.name == "sgd"
    assert run.warm == Optim(name="sgd")
    assert load(Run).mix == {"a": 1.0}, "the default of the class was changed"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("limit=1e-4", 1e-4),
        ("limit=null", None),
        ("limit=-inf", -math.inf),
        ("limit=.5E+2", 50.0),
        ("auto=1e-4", 1e-4),
        ("auto=auto", "auto"),
        ("flag=true", True),
        ("flag=off", False),
        ("title=1e-4", "1e-4"),
        ("title='7'", "7"),
        ("title=a=b", "a=b"),
        ("names=[a, b]", ["a", "b"]),
        ("sizes=[1, 2, 3]", (1, 2, 3)),
        ("out=some/where", Path("some/where")),
        ("loose=word", "word"),
        ("loose=[{path: p}]", [Source(Path("p"))]),
        ("extra={a: [1]}", {"a": [1]}),
    ],
)
def test_values(override: str, value: object):
    got = getattr(load(Run, None, [override]), override.partition("=")[0])
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key optim.lrr; did you mean optim.lr?"),
        ("stepps=1", "did you mean steps?"),
        ("qqqq=1", "known: out, steps"),
        ("steps=true", "steps = true is a bool, expected int"),
        ("steps=1.5", "steps = 1.5 is a float, expected int"),
        ("steps=1e-1", "is text, expected int"),
        ("flag=1", "flag = 1 is an int, expected bool"),
        ("flag='true'", "is text, expected bool"),
        ("limit=true", "is a bool, expected float"),
        ("limit=fast", "limit = 'fast' is text, expected float"),
        ("title=3", "title = 3 is an int, expected str"),
        ("optim.name=adam", "expected one of 'adamw', 'sgd'"),
        ("optim.betas=[1]", r"1 values, expected tuple\[float, float\]"),
        ("optim=3", "optim = 3 is an int, expected Optim"),
        ("optim.lr=-1", "lr = -1.0 is negative"),
        ("names=a", r"expected list\[str\]"),
        ("names=[a, 1]", "names.1 = 1 is an int"),
        ("mix=3", r"expected dict\[str, float\]"),
        ("mix.a=no", "mix.a = false is a bool"),
        ("sources=[{weight: 1}]", r"sources.0.path is required \(Path\)"),
        ("sources.0.weight=1", "is a list without a place '0'"),
        ("loose=[{pth: 1}]", "did you mean loose.0.path"),
        ("auto=slow", "expected float | 'auto'"),
        ("steps", "not of the form a.b=value"),
        ("=1", "not of the form"),
        ("a..b=1", "not of the form"),
        ("names=[a", "line 1, column"),
    ],
)
def test_errors_name_the_override(override: str, message: str):
    with pytest.raises(VLSegError, match=message) as caught:
        load(Run, None, [override])
    assert override in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\noptim:\n  lr: [1\n", "line 4, column 1"),
        ("steps: 1\nflag: true\nsteps: 2\n", "line 3, column 1 the key 'steps' is written twice"),
        ("optim: {lr: 1, lr: 2}\n", "'lr' is written twice"),
        ("- 1\n", "a config is a mapping"),
        ("optm: {}\n", "unknown key optm; did you mean optim?"),
        ("steps: ten\n", "steps = 'ten' is text"),
        ("a: !!python/object:os.system {}\n", "line 1"),
        ("a: \x01\n", "special characters"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(VLSegError, match=message) as caught:
        load(Run, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(VLSegError, match="No such file"):
        load(Run, tmp_path / "none.yaml")


def test_empty_file_is_all_defaults(tmp_path: Path):
    assert load(Run, write(tmp_path, "# nothing\n")) == Run()


@given(
    st.builds(
        Run,
        out=st.text("abc/. ", min_size=1).map(Path),
        steps=st.integers(),
        title=st.text(st.characters(codec="utf-8")),
        limit=st.none() | st.floats(allow_nan=False),
        optim=st.builds(Optim, lr=st.floats(0, 1), name=st.sampled_from(["adamw", "sgd"])),
        warm=st.none() | st.builds(Optim),
        names=st.lists(st.text("yesno1e-4: #'\"\n{}[]", max_size=8)),
        mix=st.dictionaries(st.text("abcn0", min_size=1), st.floats(allow_nan=False)),
        sources=st.lists(st.builds(Source, path=st.just(Path("p")), weight=st.floats(0, 9))),
        sizes=st.lists(st.integers()).map(tuple),
        auto=st.just("auto") | st.floats(allow_nan=False),
    )
)
def test_dump_round_trips(run: Run):
    import yaml

    text = dump_yaml(run)
    assert from_dict(Run, yaml.safe_load(text)) == run
    assert to_dict(run)["optim"]["betas"] == [0.9, 0.99]


@pytest.mark.parametrize("title", ["\x85", "a\u2028b", "\u2029", "größe 赤"])
def test_dump_keeps_unicode_line_breaks(title):
    run = load(Run, None, [])
    run.title = title
    import yaml

    assert from_dict(Run, yaml.safe_load(dump_yaml(run))).title == title


def test_dump_through_a_file(tmp_path: Path):
    run = load(Run, None, ["names=['1e-4', 'yes']", "limit=1e-7"])
    assert load(Run, write(tmp_path, dump_yaml(run))) == run


def test_describe():
    text = describe(Run)
    assert "optim.lr: float = 0.001  # peak learning rate" in text
    assert "limit: float | null = null" in text
    assert "optim.name: 'adamw' | 'sgd' = 'sgd'" in text
    assert "warm: Optim | null = null" in text
    assert "warm.lr: float" in text
    assert "sources: list[Source] = []" in text
