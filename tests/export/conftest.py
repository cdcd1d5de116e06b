"""What the tests of exports share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory, picture: Any) -> Callable[..., Path]:
    """asked(queries, count=3): a JSONL of pictures of 3:4 with these queries each; none says what is right."""

    def write(queries: Sequence[str], count: int = 3) -> Path:
        folder = tmp_path_factory.mktemp("asked")
        lines = []
        for number in range(count):
            picture(number, 96, 128).save(folder / f"{number}.png")
            lines.append({"image": f"{number}.png", "queries": [{"text": text} for text in queries]})
        file = folder / "data.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return file

    return write
