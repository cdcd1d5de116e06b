"""The demo as a package wherever it lies, pictures on disk, and one running server for all tests that need one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlseg.cli.demo import package

package()  # from here on `import vlseg.demo...` works in a checkout, too

OFFLINE = Path(__file__).with_name("offline.py")


@dataclass
class Server:
    """A running `vlseg demo`. noted: addresses beyond this machine that it asked for, one a line."""

    url: str
    process: subprocess.Popen
    log: list[str]
    noted: Path
    temporary: Path


@pytest.fixture(scope="session")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """`vlseg demo` with the random tiny model and the embedded one, in a process that may not leave this machine."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("demo")
    temporary = folder / "tmp"
    temporary.mkdir()
    noted = folder / "noted.txt"
    noted.touch()
    command = [sys.executable, str(OFFLINE), str(noted), "demo", "--port", "0", "--device", "cpu"]
    command += ["--model", str(tiny_folder), "--model", "vlseg-mini"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(OFFLINE.parents[2])}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=OFFLINE.parents[2]
    )
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reader.start()
    url = None
    for _ in range(1200):
        found = re.search(r"the demo is at (http://\S+)", "".join(log))
        if found or process.poll() is not None:
            url = found[1] if found else None
            break
        time.sleep(0.2)
    if url is None:
        process.kill()
        pytest.fail("the demo did not start: " + "".join(log))
    yield Server(url, process, log, noted, temporary)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory, picture) -> Path:
    """A PNG of blocks of colour, 120 x 160 (H x W), on which the tiny model finds three of five queries."""
    path = tmp_path_factory.mktemp("pictures") / "blocks.png"
    picture(1).save(path)
    return path
