from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vlseg.demo.words import MOST_QUERIES, friendly, read_queries

from vlseg.types import VLSegError


def test_queries_are_lines():
    assert read_queries("  the red   mug \n\nthe dog\r\nthe red mug\n") == ["the red mug", "the dog"]


@given(st.text(max_size=80).filter(str.strip))
def test_any_text_gives_distinct_lines(text: str):
    queries = read_queries(text)
    assert queries
    assert all(query.strip() == query != "" and "\n" not in query for query in queries)
    assert len(set(queries)) == len(queries)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "one thing a line"),
        ("", "one thing a line"),
        (" \n \t", "one thing a line"),
        ("\n".join(f"mug {i}" for i in range(MOST_QUERIES + 1)), "33 things"),
        ("the dog\n" + "x" * 301, "Line 2 has 301"),
    ],
)
def test_queries_that_cannot_be_asked(text, word):
    with pytest.raises(VLSegError, match=word):
        read_queries(text)


def test_errors_become_sentences():
    path = "/tmp/some/where/cut.png"
    assert friendly(VLSegError(f"{path}: the image is broken"), path) == "cut.png: the image is broken."
    assert friendly(VLSegError("Add a picture first.")) == "Add a picture first."
    assert "memory" in friendly(MemoryError())
    assert "memory" in friendly(type("OutOfMemoryError", (RuntimeError,), {})("CUDA"))
    told = friendly(RuntimeError("secret /home/x at line 3"))
    assert "RuntimeError" in told
    assert "secret" not in told
