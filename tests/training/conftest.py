"""What the tests of training share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocks import write_blocks
from many_runs import SMALL, fresh_state


@pytest.fixture(scope="session")
def blocks_jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of coloured blocks. Treat it as read-only."""
    return write_blocks(tmp_path_factory.mktemp("blocks"))


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vision-language model of a real class, not vlseg's, its head apart from its embedding."""
    from vlseg.models.specimens import write_specimen
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        return write_specimen("qwen2.5-vl", tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def idle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vlseg checkpoint of a family that leaves a part of its tower idle."""
    from vlseg.models.build import from_vlm
    from vlseg.models.specimens import write_specimen
    from vlseg.systems.quiet import quiet_loading

    folder = tmp_path_factory.mktemp("fastvlm")
    with quiet_loading():
        source = write_specimen("fastvlm", folder / "vlm")
        model, processor = from_vlm(source, image={"area": 4096}, **copy.deepcopy(SMALL))
        assert model.family.idle(model.vlm)
        model.save_pretrained(folder / "vlseg")
        processor.save_pretrained(folder / "vlseg")
    return folder / "vlseg"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the first precision of a process: each test begins without, whatever ran before it."""
    fresh_state()
    yield
    fresh_state()
