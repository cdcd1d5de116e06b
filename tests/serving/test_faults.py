"""What goes wrong around a server: slow, hostile and vanishing clients, full queues, dying threads. It goes on."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_server import form_body
from PIL import Image


def raw(live, data: bytes, *, wait: float = 30.0) -> bytes:
    """Send bytes as they are and read until the server closes."""
    with socket.create_connection((live.host, live.port), timeout=wait) as sock:
        sock.sendall(data)
        return drained(sock)


def drained(sock: socket.socket) -> bytes:
    out = b""
    while chunk := sock.recv(65536):
        out += chunk
    return out


def post_head(live, length: int, path: str = "/v1/segment") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {live.host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def works(live, png) -> None:
    """The service answers, and nothing is left inside."""
    reply = live.form(("file", png(7)), ("query", "red"))
    assert reply.status == 200, reply.body
    for _ in range(100):
        if (live.service.admission.images, live.service.admission.bytes) == (0, 0):
            return
        time.sleep(0.02)
    raise AssertionError((live.service.admission.images, live.service.admission.bytes))


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_headers_that_never_end(live, png):
    start = time.monotonic()
    answer = raw(live, b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    assert status_of(answer) == 408
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"
    assert 1.5 < time.monotonic() - start < 12
    works(live, png)


def test_dripping_headers_gain_nothing(live):
    start = time.monotonic()
    with socket.create_connection((live.host, live.port), timeout=10) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for number in range(60):  # the timer is not set anew by every line
                sock.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.1)
    assert time.monotonic() - start < 12


def test_a_connection_that_says_nothing_is_closed(live):
    start = time.monotonic()
    assert raw(live, b"") == b""
    assert time.monotonic() - start < 12


def test_a_body_that_never_ends(live, png):
    start = time.monotonic()
    answer = raw(live, post_head(live, 1000) + b"--b\r\n" + b"Connection: close\r\n")
    assert status_of(answer) == 408
    assert time.monotonic() - start < 15
    works(live, png)


def test_a_hundred_slow_uploads_keep_nobody_out(live, png):
    """More than the queue holds: whoever has not sent all yet is not in it."""
    socks = [socket.create_connection((live.host, live.port)) for _ in range(100)]
    for sock in socks:
        sock.sendall(post_head(live, 10_000) + b"--b\r\n")
    reply = live.form(("file", png(7)), ("query", "red"))
    assert reply.status == 200
    for sock in socks:
        sock.close()
    works(live, png)


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 100_000,
    ],
)
def test_no_http(live, png, data):
    answer = raw(live, data)
    assert status_of(answer) == 400, answer[:200]
    body, _ = json.JSONDecoder().raw_decode(answer.partition(b"\r\n\r\n")[2].decode())
    assert body["error"]["code"] in ("bad_request", "unknown_host")
    works(live, png)


def test_two_requests_in_one_packet(live):
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    answer = raw(live, one + b"\r\n" + one + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_expect_continue(live, png):
    body = form_body([("file", png()), ("query", "red")], "b")
    head = post_head(live, len(body))[:-2] + b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
    with socket.create_connection((live.host, live.port), timeout=10) as sock:
        sock.sendall(head)
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert b"HTTP/1.1 200 OK" in drained(sock)
    too_large = post_head(live, 100 * 2**20)[:-2] + b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
    assert status_of(raw(live, too_large)) == 413  # without a byte of the body


def test_chunked_bodies_have_the_same_limit(live, png):
    head = post_head(live, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection((live.host, live.port), timeout=10) as sock:
        sock.sendall(head)
        sock.settimeout(10)
        for _ in range(80):  # 5 MiB
            sock.sendall(chunk)
        sock.sendall(b"0\r\n\r\n")
        assert status_of(sock.recv(65536)) == 413
    works(live, png)


def test_clients_that_leave(live, png):
    """At every stage: amid the headers, amid the body, before the answer."""
    body = form_body([("file", png()), ("query", "red")], "b")
    whole = post_head(live, len(body)) + body
    chance = random.Random(0)
    for _ in range(30):
        with socket.create_connection((live.host, live.port)) as sock:
            sock.sendall(whole[: chance.choice([10, 60, 200, len(whole) - 1, len(whole)])])
    works(live, png)


def test_a_client_that_leaves_is_not_computed_for(start, fake, png):
    fake.system.go.clear()
    with start({"fake": fake.segmenter}) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.form, ("file", png(0)), ("query", "first"))
        assert fake.system.entered.wait(5)
        body = form_body([("file", png(1)), ("query", "left")], "b")
        with socket.create_connection((server.host, server.port)) as sock:
            sock.sendall(post_head(server, len(body)) + body)
            while not server.service.engines["fake"]._waiting:
                time.sleep(0.01)
        while server.service.admission.images > 1:
            time.sleep(0.01)
        fake.system.go.set()
        assert first.result(10).status == 200
        assert server.form(("file", png(2)), ("query", "last")).status == 200
        assert "left" not in [text for call in fake.system.calls for row in call for text in row]
        assert '"/v1/segment",status="499"} 1.0' in server.ask("GET", "/metrics").body.decode()


def test_a_reader_that_does_not_read(start, png):
    noise = io.BytesIO()
    Image.effect_noise((800, 600), 100).save(noise, "PNG")
    body = form_body([("file", noise.getvalue()), ("query", "red")], "b")
    with start(write_timeout=0.5, send_buffer=8192) as server:
        head = post_head(server, len(body)).replace(b"Host", b"Accept: image/png\r\nHost")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(10)
            sock.connect((server.host, server.port))
            sock.sendall(head + body)
            got = sock.recv(2000)
            length = int(re.search(rb"content-length: (\d+)", got)[1])
            assert length > 200_000  # more than the buffers between us hold
            time.sleep(2)
            with contextlib.suppress(ConnectionResetError):
                got += drained(sock)
            assert len(got) < length
        works(server, png)


def test_a_full_queue_says_when_to_come_back(start, fake, png):
    fake.system.go.clear()
    with start({"fake": fake.segmenter}, max_queue=3) as server, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.form, ("file", png(i)), ("query", f"q{i}")) for i in range(3)]
        while server.service.admission.images < 3:
            time.sleep(0.01)
        reply = server.form(("file", png()), ("query", "one more"))
        assert (reply.status, reply.code) == (429, "busy")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        assert server.ask("GET", "/readyz").status == 503
        assert server.ask("GET", "/healthz").status == 200
        fake.system.go.set()
        assert [w.result(10).status for w in waiting] == [200] * 3
        items = [{"image": base64.b64encode(png(i)).decode(), "queries": ["x"]} for i in range(4)]
        assert server.post({"items": items}, "/v1/segment/batch").status == 429
        assert server.post({"items": items[:3]}, "/v1/segment/batch").status == 200
        works(server, png)


def test_the_deadline(start, fake, png):
    fake.system.go.clear()
    with start({"fake": fake.segmenter}, deadline=0.5, body_timeout=0.4) as server:
        begin = time.monotonic()
        reply = server.form(("file", png()), ("query", "red"))
        assert (reply.status, reply.code) == (504, "deadline")
        assert 0.4 < time.monotonic() - begin < 10
        time.sleep(2)  # four deadlines in one call: whoever watches the process shall start it anew
        assert server.ask("GET", "/healthz").status == 503
        fake.system.go.set()
        works(server, png)
        assert server.ask("GET", "/healthz").status == 200


def test_a_failing_model_tells_no_secrets(start, fake, png, caplog):
    def fail(texts):
        if "bad" in texts:
            raise RuntimeError("secret /srv/weights")
        if "exit" in texts:
            raise SystemExit("secret")

    fake.system.fail = fail
    with start({"fake": fake.segmenter}) as server:
        reply = server.form(("file", png()), ("query", "bad"))
        assert (reply.status, reply.code) == (500, "internal")
        assert b"secret" not in reply.body
        assert "secret" in caplog.text
        reply = server.form(("file", png()), ("query", "exit"))
        assert (reply.status, reply.code) == (503, "unavailable")
        assert b"secret" not in reply.body
        works(server, png)
        assert 'vlseg_model_restarts_total{model="fake"} 1.0' in server.ask("GET", "/metrics").body.decode()


def test_a_bug_in_a_handler_tells_no_secrets(start, png, monkeypatch):
    with start() as server:
        monkeypatch.setattr(server.service, "describe", lambda: 1 / 0)
        reply = server.ask("GET", "/v1/models")
        assert (reply.status, reply.code) == (500, "internal")
        assert b"division" not in reply.body
        works(server, png)


def test_too_many_connections(start, png):
    with start(max_connections=10, idle_timeout=5) as server:
        socks = [socket.create_connection((server.host, server.port)) for _ in range(10)]
        time.sleep(0.2)
        answer = raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status_of(answer) == 503
        assert b"too many connections" in answer
        for sock in socks:
            sock.close()
        time.sleep(0.2)
        works(server, png)


def test_stopping_finishes_what_runs(start, fake, png):
    fake.system.go.clear()
    with ThreadPoolExecutor(4) as pool:
        with start({"fake": fake.segmenter}) as server:
            running = [pool.submit(server.form, ("file", png(i)), ("query", f"q{i}")) for i in range(3)]
            while server.service.admission.images < 3:
                time.sleep(0.01)
            threading.Timer(0.5, fake.system.go.set).start()
        for number, reply in enumerate(running):
            assert reply.result(1).status == 200
            assert reply.result().data["answers"][0]["text"] == f"q{number}"
    with pytest.raises(OSError):
        server.ask("GET", "/healthz")


def test_hostile_and_honest_at_once(live, png, segmenter, picture, queries):
    """Nobody gets what is another's, whatever else goes on."""
    expected = {
        (seed, text): segmenter(picture(seed), text, presence_threshold=0)[0].to_dict()
        for seed in range(3)
        for text in queries
    }
    bad = [
        (("file", b"\xff\xd8\xff" + b"x" * 500), ("query", "red")),
        (("file", png()[:-50]), ("query", "red")),
        (("file", png()), ("query", "\x00" * 900)),
        (("file", png()), *[("query", "red")] * 200),
        (("file", png()), ("query", "red"), ("presence_threshold", "1e400")),
    ]

    def honest(case) -> None:
        seed, text = case
        reply = live.form(("file", png(seed)), ("query", text), ("presence_threshold", "0"))
        assert reply.status == 200, reply.body
        (answer,), wanted = reply.data["answers"], expected[case]
        assert answer["text"] == text
        assert answer["segments"][0]["rle"] == wanted["segments"][0]["rle"]

    def hostile(parts) -> None:
        assert live.form(*parts).status in (200, 400, 415, 422)

    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(honest, case) for case in list(expected) * 4]
        work += [pool.submit(hostile, parts) for parts in bad * 8]
        for task in work:
            task.result(30)
    works(live, png)
