"""A cache of the test's own, and a small RefCOCO."""

from __future__ import annotations

from pathlib import Path

import pytest
from originals import write_refcoco


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache or data."""
    monkeypatch.setenv("VLSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VLSEG_DATA", raising=False)


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    """A root with a small RefCOCO."""
    return write_refcoco(tmp_path / "data")
