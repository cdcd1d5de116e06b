"""Live servers in this process: importing torch takes seconds, starting another server milliseconds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from live_server import FakeSystem, Live, running


@pytest.fixture(scope="session")
def start(segmenter) -> Callable[..., Any]:
    """start(models, fetcher, send_buffer, **settings): a context manager of a `Live` server, of the tiny model."""
    from vlseg.serving.service import Service
    from vlseg.serving.settings import ServerSettings

    def make(models=None, fetcher=None, send_buffer=None, **settings):
        service = Service(models or {"tiny": segmenter}, ServerSettings(port=0, **settings), fetcher)
        return running(service, send_buffer)

    return make


@pytest.fixture(scope="session")
def live(start) -> Iterator[Live]:
    """One server for all tests that harm nobody."""
    with start(max_pixels=2_000_000, max_body=4 * 2**20, header_timeout=2.0, body_timeout=3.0, deadline=20.0) as server:
        yield server


@pytest.fixture(scope="session")
def png(picture) -> Callable[..., bytes]:
    """png(seed, height, width): the bytes of a PNG file of blocks."""

    def make(*arguments: int, kind: str = "PNG") -> bytes:
        file = io.BytesIO()
        picture(*arguments).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture
def fake() -> SimpleNamespace:
    """A fake system, and a Segmenter of it."""
    from vlseg.segmenter import Segmenter

    system = FakeSystem()
    return SimpleNamespace(system=system, segmenter=Segmenter(system))
