from __future__ import annotations

from typing import ClassVar

import pytest
from vlseg.demo import models as room
from vlseg.demo.models import Models, choices

from vlseg.systems.registry import EMBEDDED
from vlseg.types import VLSegError


class Counted:
    """In place of `Segmenter`: notes what is loaded."""

    loaded: ClassVar[list[str]] = []

    def __init__(self, name, device=None, dtype=None):
        if name == "nobody":
            raise VLSegError("--model nobody: unknown model; known: somebody")
        self.loaded.append(name)

    def __call__(self, image, words):
        return None


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(room, "Segmenter", Counted)
    monkeypatch.setattr(Counted, "loaded", [])
    return Counted.loaded


def test_each_is_loaded_once_and_the_last_are_kept(counted):
    models = Models(["a", "b", "c"])
    first, seconds = models.get("a")
    assert seconds > 0
    assert models.get("a") == (first, 0.0)
    assert models.get(None)[0] is first
    models.get("b")
    models.get("a")
    models.get("c")  # b goes, which was used longest ago
    assert models.get("a")[0] is first
    models.get("b")
    assert counted == ["a", "b", "c", "b"]


def test_names_that_were_not_offered(counted):
    with pytest.raises(VLSegError, match="no model “/etc” on this page; choose a or b"):
        Models(["a", "b"]).get("/etc")
    assert counted == []
    assert Models(["a"], typed=True).get(" other ")[1] > 0
    assert counted == ["other"]


def test_a_model_that_is_not_to_be_had(counted):
    with pytest.raises(VLSegError, match="“nobody” cannot be used: unknown model; known: somebody"):
        Models(["a"], typed=True).get("nobody")


def test_choices(tiny_folder, tmp_path):
    assert choices()[0] == EMBEDDED
    assert choices([str(tiny_folder)])[0] == str(tiny_folder)
    assert EMBEDDED in choices([str(tiny_folder)])
    with pytest.raises(VLSegError, match="no config"):
        choices([str(tmp_path)])
