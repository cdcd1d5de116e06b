"""`vlseg serve` from the outside: wrong calls in one line, and a process that starts, answers and stops in order."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlseg import Client, Segmenter, VLSegError
from vlseg.cli import main
from vlseg.cli.serve import name_models, read_keys

pytest.importorskip("fastapi", reason="needs the extra `serve`")

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("VLSEG_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "http"], "--port http: not a whole number"),
        (["--port", "70000"], "70000"),
        (["--host", "0.0.0.0"], "--allow-anonymous"),
        (["--host", "no-such-host.invalid"], "--allow-anonymous"),
        (["--host", "no-such-host.invalid", "--allow-anonymous"], "no address of this machine"),
        (["--model", "nope"], "unknown model"),
        (["--model", "vlseg-mini", "--model", "vlseg-mini"], "two are called vlseg-mini"),
        (["--model", "a=vlseg-mini", "--model", "a=vlseg-mini"], "two are called a"),
        (["--max-pixels", "many"], "--max-pixels"),
        (["--max-pixels", "500M"], "at most 178,000,000"),
        (["--max-queries", "0"], "--max-queries"),
        (["--memory", "10"], "--memory"),
        (["--deadline", "0"], "--deadline"),
        (["--api-key-file", "missing"], "missing: cannot be read"),
        (["--prot", "1"], "did you mean --port"),
        (["--refine", "sam"], "known: none, vlseg"),
        (["--refine", "sam2=nowhere"], "no config.json in nowhere"),
    ],
)
def test_wrong_calls(capsys, arguments, says):
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_a_port_that_is_taken_is_told_before_models_are_loaded(capsys, monkeypatch):
    monkeypatch.setattr("vlseg.segmenter.Segmenter", lambda *_: pytest.fail("loaded a model"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert main(["serve", "--port", str(sock.getsockname()[1])]) == 2
    assert "cannot be served on (Address already in use)" in capsys.readouterr().err


def test_keys(tmp_path, monkeypatch):
    assert read_keys(None) == ()
    file = tmp_path / "keys"
    file.write_text(f"# for the web shop\n{KEY}\n\n  other-key-of-16-chars \n")
    assert read_keys(str(file)) == (KEY, "other-key-of-16-chars")
    monkeypatch.setenv("VLSEG_API_KEY", "from-the-environment")
    assert read_keys(str(file)) == ("from-the-environment", KEY, "other-key-of-16-chars")
    file.write_text("# none\n")
    with pytest.raises(VLSegError, match="holds no key"):
        read_keys(str(file))


def test_a_short_key_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("VLSEG_API_KEY", "secret")
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "fewer than 16 characters" in capsys.readouterr().err


def test_names_of_models(tmp_path):
    for folder in ("mugs/final", "cups/checkpoints/step-100", "odd name", "a=b"):
        (tmp_path / folder).mkdir(parents=True)
    assert name_models([None]) == {"vlseg-mini": None}
    mugs, cups = str(tmp_path / "mugs/final"), str(tmp_path / "cups/checkpoints/step-100")
    assert name_models([mugs, cups, "org/name", f"best={mugs}"]) == {
        "mugs": mugs,
        "cups": cups,
        "org/name": "org/name",
        "best": mugs,
    }
    with pytest.raises(VLSegError, match="give it a name"):
        name_models([str(tmp_path / "odd name")])
    with pytest.raises(VLSegError, match="give it a name"):
        name_models([str(tmp_path / "a=b")])


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real process with the embedded model, told apart from this one by nothing but its port; and its notes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        name = f"vlseg-test-{os.getpid()}"
        systemd.bind(f"\0{name}")
        systemd.settimeout(1)
        command = [sys.executable, "-m", "vlseg.cli", "serve", "--port", "0", "--max-pixels", "2M"]
        environment = {**ENVIRONMENT, "NOTIFY_SOCKET": f"@{name}", "OMP_NUM_THREADS": "1"}
        started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            line = started.stderr.readline()
            found = re.fullmatch(r"vlseg: serving vlseg-mini on (http://127\.0\.0\.1:\d+)\n", line)
            assert found, line + started.stderr.read()
            assert systemd.recv(100) == b"READY=1"
            yield started, found[1]
        finally:
            if started.poll() is None:
                started.kill()
            started.wait(30)
            started.stderr.close()
            started.stdout.close()


def test_the_embedded_model(process):
    _, url = process
    picture = ROOT / "examples" / "peacocks.png"
    queries = ["all the peacocks", "the pretzel", "the fuel pump"]
    result, expected = Client(url)(picture, queries), Segmenter(device="cpu")(picture, queries)
    assert result.model == expected.model == "vlseg-mini"
    assert [a.status for a in result] == [a.status for a in expected]
    for a, b in zip(result, expected, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)
        if b.status == "found":
            assert 0.001 < b.mask.mean() < 0.95
            # The process may compute with another number of threads: a pixel on the very edge may differ.
            assert (a.mask != b.mask).sum() <= 5


def test_sigterm_finishes_what_runs(process):
    """The last test of this process: what was asked is answered, then it ends with 0 and without a traceback."""
    started, url = process
    client, picture = Client(url, retries=0), ROOT / "examples" / "peacocks.png"
    client(picture, "all the peacocks")
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client, picture, f"the peacock number {i}") for i in range(6)]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(f.done() for f in waiting):
            if "vlseg_images_inside 6.0" in urllib.request.urlopen(f"{url}/metrics").read().decode():
                break
        started.send_signal(signal.SIGTERM)
        assert [len(f.result(60)) for f in waiting] == [1] * 6
    assert started.wait(60) == 0
    rest = started.stderr.read()
    assert rest.endswith("vlseg: stopped\n")
    assert "Traceback" not in rest
    assert started.stdout.read() == ""
    assert "peacock" not in rest  # what people ask is not written to a log
