"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks import write_blocks


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
