"""`vlseg demo` as a process: who is let in, what is closed, what a wrong call says, what is left behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def get(url: str, path: str = "/", host: str | None = None) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, body; the Host header is given as it is."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("GET", path, headers={"Host": host or parts.netloc})
    response = connection.getresponse()
    body = response.read().decode("utf-8", "replace")
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body


def test_the_page_may_load_nothing_from_elsewhere(server):
    status, headers, body = get(server.url)
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    for sources in policy.values():
        assert not re.search(r"https?:|\*", sources)
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", body)
    assert get(server.url, "/theme.css")[2].count("@import") == 0


def test_settings_that_must_not_come_back(server):
    config = get(server.url, "/config")[2]
    assert '"analytics_enabled":false' in config.replace(" ", "")
    assert '"api_visibility":"public"' not in config.replace(" ", "")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example"])
def test_other_names_are_not_served(server, host):
    status, _, body = get(server.url, host=host)
    assert status == 421
    assert "--allow-host" in body


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:80", "LOCALHOST"])
def test_names_of_this_machine_are(server, host):
    assert get(server.url, "/theme.css", host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1:9/x",
        "/gradio_api/file=https://example.org/x",
        "/gradio_api/proxy=https://a/b",
    ],
)
def test_it_fetches_nothing_for_others(server, path):
    assert get(server.url, path)[0] == 404


def test_other_files_are_not_given(server, photo):
    for path in (photo, ROOT / "pyproject.toml", Path("/etc/passwd")):
        assert get(server.url, f"/gradio_api/file={path}")[0] == 403


def test_a_wrong_call_is_one_line(tmp_path):
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    cases = [
        (["--port", "x"], "--port x: not a whole number"),
        (["--port", str(taken.getsockname()[1])], "cannot be had"),
        (["--port", "99999"], "up to 65535"),
        (["--host", "no.such.host.invalid", "--port", "0"], "cannot be had"),
        (["--model", "vlsegmini"], "did you mean vlseg-mini?"),
        (["--model", str(tmp_path)], "no config.json"),
        (["--max-pixels", "-3"], "--max-pixels"),
        (["--shared"], "did you mean --share?"),
    ]
    with taken:
        for arguments, words in cases:
            done = subprocess.run(
                [sys.executable, "-m", "vlseg.cli", "demo", *arguments],
                capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 2, (arguments, done.stderr)
            assert words in done.stderr
            assert done.stderr.count("\n") == 1
            assert done.stdout == ""


def test_help_imports_neither_gradio_nor_torch():
    code = (
        "import sys; from vlseg.cli import main; main(['demo', '--help']); "
        "print([n for n in ('gradio', 'torch', 'numpy', 'PIL') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "vlseg demo --model" in done.stdout
    assert done.stdout.strip().endswith("[]")


SWEPT = """
from vlseg.cli.demo import package
package()
import vlseg.demo.page as page
page.KEEP, page.SWEEP = 3, 1
from vlseg.demo.launch import Settings, serve
serve(Settings(port=0))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_nothing_is_left_behind(tmp_path, photo, number):
    """Uploads go after their time, and their folder with the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", SWEPT], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert process.stderr is not None
    url = process.stderr.readline().split(" is at ")[1].split()[0]
    (uploads,) = (path for path in tmp_path.iterdir() if path.name.startswith("vlseg-demo-"))
    body = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="blocks.png"\r\n\r\n'
    body += photo.read_bytes() + b"\r\n--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    request = urllib.request.Request(f"{url}gradio_api/upload", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        (kept,) = json.loads(response.read())
    assert Path(kept).is_relative_to(uploads)
    assert Path(kept).read_bytes() == photo.read_bytes()
    for _ in range(60):
        if not Path(kept).exists():
            break
        time.sleep(0.5)
    assert not Path(kept).exists()
    process.send_signal(number)
    assert process.wait(60) == 0
    assert "vlseg: stopped" in process.stderr.read()
    assert not uploads.exists()
