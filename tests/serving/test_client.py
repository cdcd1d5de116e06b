"""`vlseg.Client`: the call of the Segmenter by way of HTTP."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg import Client, VLSegError

ROOT = Path(__file__).resolve().parents[2]


def alike(result, expected) -> None:
    """The same Result; scores to the rounding of JSON, seconds aside."""
    a, b = result.to_dict(), expected.to_dict()
    for data in (a, b):
        data.pop("seconds"), data.pop("model")
        for answer in data["answers"]:
            answer["score"] = answer["score"] and round(answer["score"], 4)
            for segment in answer["segments"]:
                segment["score"] = round(segment["score"], 4)
    assert a == b


@pytest.fixture(scope="module")
def client(live):
    with Client(live.url) as made:
        yield made


def test_every_kind_of_image(client, segmenter, picture, queries, tmp_path, assert_foreground):
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.jpg")
    picture().save(tmp_path / "c.sgi")  # no kind that servers read: goes out as PNG
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2, 90, 150).save(tmp_path / "d.png", exif=exif)
    files = [tmp_path / name for name in ("a.png", "b.jpg", "c.sgi", "d.png")]
    sources = [
        *files,
        str(files[0]),
        f"file://{files[1]}",
        picture(),
        np.asarray(picture(1)),
        np.asarray(picture().convert("L")),
    ]
    for source in sources:
        expected = segmenter(source, queries, presence_threshold=0)
        result = client(source, queries, presence_threshold=0)
        alike(result, expected)
        assert_foreground(expected)
        assert np.array_equal(np.asarray(result.overlay()), np.asarray(expected.overlay()))
        assert result.model == "tiny"
        assert result.seconds > 0


def test_options(client, segmenter, picture, queries):
    options = {"presence_threshold": 0.0, "mask_threshold": 0.3}
    alike(client(picture(), queries, **options), segmenter(picture(), queries, **options))
    alike(client(picture(), queries[0], 0.0, 0.3, "mask"), segmenter(picture(), queries[0], **options))
    texts = ["[SEG]", 'quotes " and\r\nlines', "--boundary", "☕"]
    assert [a.text for a in client(picture(), texts)] == texts


def test_lists(client, segmenter, picture, queries):
    images = [picture(i) for i in range(6)]
    rows = [queries[: i % 4 + 1] for i in range(6)]
    for result, expected in zip(client(images, rows), segmenter(images, rows), strict=True):
        alike(result, expected)
    for result, expected in zip(client(images[:2], queries), segmenter(images[:2], queries), strict=True):
        alike(result, expected)
    assert client([], []) == []


def test_shared_by_threads(client, segmenter, picture, queries):
    expected = [segmenter(picture(i % 3), queries[i % 5], presence_threshold=0) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: client(picture(i % 3), queries[i % 5], presence_threshold=0), range(24)))
    for result, wanted in zip(results, expected, strict=True):
        alike(result, wanted)


def test_models_and_keep_picture(live, picture):
    light = Client(live.url + "/", model="tiny", keep_picture=False)
    assert [m["name"] for m in light.models()] == ["tiny"]
    with pytest.raises(VLSegError, match="keep_picture"):
        light(picture(), "red").overlay()
    light.close()
    assert light(picture(), "red").model == "tiny"  # a closed one opens again


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("missing.png", "red"), {}, "no such file"),
        ((np.zeros((4, 4, 2), np.uint8), "red"), {}, "image array"),
        ((np.zeros((4, 4), np.uint8), []), {}, "no query"),
        ((np.zeros((4, 4), np.uint8), ["red", " "]), {}, "query 2 is empty"),
        ((np.zeros((4, 4), np.uint8), ["\udcff"]), {}, "not UTF-8"),
        (([np.zeros((4, 4), np.uint8)], [["red"], ["blue"]]), {}, "one list an image"),
        ((np.zeros((4, 4), np.uint8), "red"), {"presence_threshold": 2}, "presence threshold"),
        ((np.zeros((4, 4), np.uint8), "red"), {"mask_threshold": float("nan")}, "mask threshold"),
        ((np.zeros((4, 4), np.uint8), "red"), {"refine": "vlseg"}, "refine"),
        ((np.zeros((4, 4), np.uint8), "red"), {"mode": "path"}, "has no path mode"),
        ((np.zeros((4, 4), np.uint8), "red"), {"mode": "pth"}, "mode"),
        ((np.zeros((4, 4), np.uint8), "x" * 1001), {}, "longer than 1000"),
        ((np.zeros((1500, 1500), np.uint8), "red"), {}, "too many pixels"),
    ],
)
def test_errors_in_one_line(client, arguments, options, says):
    with pytest.raises(VLSegError, match=says) as caught:
        client(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://a/", "http://", "http://[", "http://a:x/"])
def test_no_url_of_a_server(url):
    with pytest.raises(VLSegError, match="no URL of a server"):
        Client(url)


def test_nobody_there(picture):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(VLSegError, match=r"cannot be reached \(Connection refused\); is `vlseg serve` running"):
            Client(url)(picture(), "red")
        assert time.monotonic() - start < 2
    with pytest.raises(VLSegError, match="cannot be reached"):
        Client("http://no-such-host.invalid")(picture(), "red")


def test_keys(start, picture):
    with start(api_keys=("k" * 20,)) as server:
        with pytest.raises(VLSegError, match="unauthorized"):
            Client(server.url)(picture(), "red")
        assert len(Client(server.url, "k" * 20)(picture(), "red")) == 1
    with pytest.raises(VLSegError, match="API key"):
        Client("http://a", "two\nlines")


def test_a_server_that_was_restarted(start, fake, picture):
    """A kept connection that has been closed meanwhile is opened again without a word."""
    with start({"fake": fake.segmenter}, idle_timeout=1.0) as server:
        client = Client(server.url)
        client(picture(), "red")
        time.sleep(1.5)
        assert client(picture(), "blue")[0].text == "blue"
        assert len(fake.system.calls) == 2


@pytest.fixture
def scripted():
    """scripted([(status, headers, body), ...]): the URL of a server that answers with these in turn."""
    servers = []

    def make(script):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, body = script.pop(0)
                if status == 0:  # hangs up
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                """Nothing on stderr."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


ANSWER = {"text": "red", "status": "absent", "score": 0.1, "reason": None, "segments": []}
GOOD = json.dumps({"image": "x", "size": [120, 160], "model": "m", "answers": [ANSWER]}).encode()
BUSY = json.dumps({"error": {"code": "busy", "message": "full", "request_id": "r1"}}).encode()


def test_busy_servers_are_asked_again(scripted, picture):
    start = time.monotonic()
    url = scripted(
        [(429, {"Retry-After": "1"}, BUSY), (503, {"Retry-After": "0"}, BUSY), (0, {}, b""), (200, {}, GOOD)]
    )
    assert Client(url)(picture(), "red")[0].status == "absent"
    assert time.monotonic() - start >= 1
    with pytest.raises(VLSegError, match=r"busy: full \(request r1\)"):
        Client(scripted([(429, {"Retry-After": "0"}, BUSY)] * 3), retries=2)(picture(), "red")
    with pytest.raises(VLSegError, match="cannot be reached"):
        Client(scripted([(0, {}, b"")] * 3), retries=2)(picture(), "red")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[1]"),
        (502, b"Bad Gateway"),
        (500, b"{}"),
        (200, b'{"answers": 3}'),
        (404, b'{"error": 1}'),
    ],
)
def test_other_servers(scripted, picture, status, body):
    with pytest.raises(VLSegError) as caught:
        Client(scripted([(status, {}, body)]), retries=0)(picture(), "red")
    assert "\n" not in str(caught.value)


def test_a_silent_server(picture):
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(VLSegError, match="cannot be reached"):
        Client(f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=0.3)(picture(), "red")


def test_the_client_needs_no_torch():
    code = "import sys, vlseg; vlseg.Client('http://127.0.0.1:1'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
