from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")


@pytest.fixture(scope="session")
def plain_systems():
    """The module of benchmarks/ that asks transformers without vlseg."""
    sys.path.insert(0, BENCHMARKS)
    try:
        return importlib.import_module("plain_systems")
    finally:
        sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="session")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """specimen(system): the folders of its random checkpoint, written once. Treat them as read-only."""
    made: dict[str, list[Path]] = {}

    def get(system: str) -> list[Path]:
        if system not in made:
            from vlseg.systems.quiet import quiet_loading

            with quiet_loading():
                from vlseg.systems.specimens import write_specimen

                made[system] = write_specimen(system, tmp_path_factory.mktemp("specimen"))
        return made[system]

    return get
