from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from originals import python2_pickle, python2_pickle_0

from vlseg.data.reading import parse_json, paused_gc, read_json, read_plain_pickle
from vlseg.types import VLSegError

# What Python 2 pickles of annotations hold: text is byte strings there, so Latin-1 only.
latin = st.text(st.characters(max_codepoint=255), max_size=12)
plain = st.recursive(
    st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | latin,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(latin, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(value=plain)
def test_plain_pickles_of_every_protocol(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("p") / "refs.p"
    for data in (python2_pickle(value), python2_pickle_0(value), *(pickle.dumps(value, p) for p in range(6))):
        path.write_bytes(data)
        assert read_plain_pickle(path) == value


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


class Stateful:
    def __init__(self):
        self.x = 1


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Hostile(), [{"ref_id": Hostile()}], Stateful(), {1, 2}, len, b"x" * 3, object])
def test_hostile_pickles_are_refused_in_one_line(tmp_path: Path, monkeypatch, value, protocol: int):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol))
    if (type(value), protocol >= 4) == (set, True) or (type(value), protocol >= 3) == (bytes, True):
        pytest.skip("has an opcode of its own in this protocol and calls nothing; the reader refuses it by its type")
    with pytest.raises(VLSegError, match="refused") as caught:
        read_plain_pickle(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"Pname\n.",
        b"\x80\x02U\x01aQ.",
        b"\x80\x02\x82\x01.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
    ],
)
def test_pickles_that_ask_for_other_things(tmp_path: Path, data: bytes):
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    with pytest.raises(VLSegError):
        read_plain_pickle(path)


@settings(max_examples=150)
@given(data=st.binary(max_size=60))
def test_noise_is_no_pickle(tmp_path_factory, data: bytes):
    path = tmp_path_factory.mktemp("p") / "refs.p"
    path.write_bytes(data)
    with contextlib.suppress(VLSegError):
        read_plain_pickle(path)


def test_truncated_pickles(tmp_path: Path):
    whole = python2_pickle([{"ref_id": 1, "sentences": [{"sent": "a b"}]}])
    path = tmp_path / "refs.p"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(VLSegError, match="cut off"):
            read_plain_pickle(path)
    with pytest.raises(VLSegError, match="cannot be read"):
        read_plain_pickle(tmp_path / "none.p")


@settings(max_examples=60)
@given(value=plain)
def test_json_agrees_with_the_standard_library(value):
    assert parse_json(json.dumps(value).encode(), "x") == value


def test_json_that_python_writes(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"bbox": [NaN, 1, Infinity, -Infinity]}')
    assert read_json(path) == {"bbox": [None, 1, None, None]}
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]
    path.write_bytes('["café"]'.encode("cp1252"))
    assert read_json(path, "cp1252") == ["café"]
    with pytest.raises(VLSegError, match="not UTF-8"):
        read_json(path)


@pytest.mark.parametrize(
    "data", [b"", b"  \n", b"{", b'{"a": [1, 2', b"[1 2]", b"\xff\xfe[\x00", b"[" * 100_000, b'{"a"}', b"nan"]
)
def test_broken_json_is_told_in_one_line(tmp_path: Path, data: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(VLSegError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: not ")
    assert "\n" not in str(caught.value)


def test_the_collector_is_as_it_was():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with paused_gc():
                assert not gc.isenabled()
            with pytest.raises(VLSegError), paused_gc():
                raise VLSegError("x")
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
