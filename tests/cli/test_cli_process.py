"""What only a process of its own can show: start-up, clean streams, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def vlseg(*arguments, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlseg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options)


def best_of(code: list[str], runs: int = 3) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, *code], env=ENVIRONMENT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_is_quick_and_light():
    assert best_of(["-m", "vlseg.cli", "--help"]) <= 0.5
    code = "import sys; from vlseg.cli import main; main(['segment', '--help']); main(['--help']); " \
           "sys.exit(any(n in sys.modules for n in ('torch', 'numpy', 'PIL', 'transformers')))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True).returncode == 0


def test_import_is_quick():
    bare = best_of(["-c", "pass"])
    assert best_of(["-c", "import vlseg"]) - bare <= 0.2


def test_a_wrong_call_is_told_without_torch(tmp_path: Path):
    code = "import sys; from vlseg.cli import main; main(['segment', 'missing.jpg', 'red', '--model', 'nope']); " \
           "sys.exit('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True).returncode == 0


def test_streams_are_clean(tiny_folder: Path, tmp_path: Path, picture):
    picture().save(tmp_path / "a.png")
    done = vlseg("segment", tmp_path / "a.png", "red", "--json", "--model", tiny_folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["answers"][0]["text"] == "red"


def test_a_reader_that_leaves_is_no_error(tmp_path: Path):
    command = f"{sys.executable} -m vlseg.cli --help | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stderr == ""


@pytest.mark.parametrize("late", [False, True])
def test_ctrl_c(tiny_folder: Path, tmp_path: Path, picture, late: bool):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(200):
        picture(i).save(folder / f"{i:03d}.png")
    command = [sys.executable, "-m", "vlseg.cli", "segment", str(folder), "red", "--model", str(tiny_folder)]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--presence-threshold", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    start = time.monotonic()
    while late and len(list(out.glob("*.json"))) < 3 and time.monotonic() - start < 60:
        time.sleep(0.02)
    if not late:
        time.sleep(2.5)  # amid the imports
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert "interrupted" in lines[0]
    assert [p.name for p in out.glob(".*")] == [".made-by"]
    for path in out.glob("*.json"):
        assert len(json.loads(path.read_text())["answers"]) == 1
        assert (out / f"{path.stem}.overlay.png").stat().st_size
    if late:
        assert "of 200 images; the same command goes on" in lines[0]
