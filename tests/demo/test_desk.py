"""The handlers of the page, without a browser."""

from __future__ import annotations

import base64
import json
import logging
from types import SimpleNamespace

import pytest

gr = pytest.importorskip("gradio")

from vlseg.demo.desk import Desk, Session  # noqa: E402
from vlseg.demo.models import Models  # noqa: E402

SKIP = gr.skip()


@pytest.fixture
def desk(segmenter) -> Desk:
    models = Models(["tiny"])
    models._loaded["tiny"] = segmenter
    return Desk(models, 100_000)


def find(desk: Desk, path, text, session=None, **options) -> Session:
    asked = {"model": "tiny", "mode": None, "other": "", "mask_threshold": 0.5, **options}
    return desk.find(str(path) if path else None, text, session=session, **asked)


def test_a_visit(desk, segmenter, photo, queries):
    session = find(desk, photo, "\n".join(queries))
    stage, slider = desk.show(None, 0.5, session)
    assert slider == round(segmenter.system.presence_threshold, 2)
    assert stage["turn"] == 1
    assert stage["picture"].startswith("data:image/jpeg;base64,")
    moved = desk.adjust(0.0, 0.4, session)
    assert moved["picture"] is None  # the page has it already
    direct = segmenter(photo, queries, 0.0, 0.4)
    assert [row["paths"] for row in moved["runs"][0]["answers"]] == [[a.segments[0].path] for a in direct]
    file, stage = desk.save({"run": 0, "kind": "json", "shown": []}, 0.0, 0.4, session)
    assert stage == SKIP
    told = json.loads(base64.b64decode(file["data"]))
    assert [a["segments"][0]["rle"] for a in told["answers"]] == [a.segments[0].rle for a in direct]
    assert find(desk, photo, queries[0], session).turn == 2


def test_what_was_found_outlives_a_mistake(desk, photo, queries):
    session = find(desk, photo, queries[0])
    wrong = find(desk, None, queries[0], session)
    assert wrong.shots == session.shots
    stage, slider = desk.show(None, 0.5, wrong)
    assert "Add a picture first" in stage["alert"]
    assert slider == SKIP
    assert desk.adjust(0.0, 0.5, wrong)["runs"]
    again = desk.show(None, 0.5, find(desk, None, queries[0], session))[0]
    assert again["alert"] == stage["alert"]
    assert again != stage  # equal values would go unnoticed
    assert not find(desk, photo, queries[0], wrong).wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "other"}, "no model “other” on this page"),
        ({"other": "other"}, "no model “other” on this page"),
        ({"mode": "path"}, "has no path mode"),
        ({"mask_threshold": 0}, "Mask threshold 0"),
    ],
)
def test_choices_that_are_not_to_be_had(desk, photo, options, words):
    assert words in find(desk, photo, "the dog", **options).wrong


def test_a_bug_is_told_in_the_log_alone(desk, photo, monkeypatch, caplog):
    monkeypatch.setattr(desk.models, "get", lambda name: 1 / 0)
    with caplog.at_level(logging.ERROR, "vlseg.demo"):
        session = find(desk, photo, "the dog")
        assert "ZeroDivisionError" in session.wrong
        assert "division by zero" not in session.wrong
        assert "log" in desk.choose("tiny")[-1]["alert"]
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("session", [None, Session()])
def test_before_the_first_run(desk, session):
    assert desk.adjust(0.5, 0.5, session) == SKIP
    file, stage = desk.save({"run": 0, "kind": "json", "shown": []}, None, 0.5, session)
    assert file == SKIP
    assert "press Find first" in stage["alert"]
    assert desk.show(None, 0.5, None) == (SKIP, SKIP)


@pytest.mark.parametrize("wanted", [None, {}, {"run": 3, "kind": "json", "shown": []}, {"run": "x"}, {"run": 0}])
def test_requests_that_the_page_does_not_make(desk, photo, queries, wanted):
    _, stage = desk.save(wanted, None, 0.5, find(desk, photo, queries[0]))
    assert "reload" in stage["alert"]


def test_modes_of_a_model_can_be_chosen(desk, monkeypatch):
    for modes in (("mask",), ("mask", "path")):
        system = SimpleNamespace(name="m", modes=modes, presence_threshold=0.625)
        monkeypatch.setattr(desk.models, "get", lambda name, s=system: (SimpleNamespace(system=s), 0.0))
        presence, slider, own, mode, stage = desk.choose("m")
        assert presence is None
        assert slider == 0.62
        assert own["visible"] is False
        assert (mode["visible"], list(mode["choices"])) == (len(modes) > 1, list(modes))
        assert stage["ready"] == "m is ready."
