"""URLs that a server fetches: never into its own network, whatever names and redirects say."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import threading
import time

import pytest

from vlseg.serving import fetch
from vlseg.serving.errors import ServiceError
from vlseg.serving.fetch import Fetcher, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)
def test_private_addresses(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


def refused(url: str, **options) -> str:
    options.setdefault("max_bytes", 1000)
    options.setdefault("seconds", 5.0)
    with pytest.raises(ServiceError) as caught:
        Fetcher(**options)(url)
    assert caught.value.status == 422
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1/x.png", "public Internet"),
        ("http://localhost/x.png", "public Internet"),
        ("http://[::1]/x.png", "public Internet"),
        ("http://[::ffff:127.0.0.1]/x.png", "public Internet"),
        ("http://2130706433/x.png", "public Internet"),  # 127.0.0.1 as one number
        ("http://0x7f.1/x.png", "public Internet"),
        ("http://169.254.169.254/latest/meta-data", "public Internet"),
        ("http://127.0.0.1:22/", "port 22"),
        ("http://user:pass@8.8.8.8/", "user name"),
        ("file:///etc/passwd", "only http"),
        ("ftp://8.8.8.8/x", "only http"),
        ("gopher://8.8.8.8/x", "only http"),
        ("/etc/passwd", "only http"),
        ("http://", "only http"),
        ("http://[", "not a URL"),
        ("http://8.8.8.8:99999/", "not a URL"),
        ("http://8.8.8.8/\r\nHost: x", "percent-encoded"),
        ("http://no-such-host.invalid/x.png", "not known"),
    ],
)
def test_refused(url, says):
    assert says in refused(url)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        routes = {"/ok": b"P" * 500, "/big": b"P" * 5000}
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.end_headers()
        elif self.path == "/inside":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/secret")
            self.end_headers()
        elif self.path == "/file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(301)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/gzip":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b"P")
                time.sleep(0.1)
        elif self.path == "/drip":
            for _ in range(40):  # headers that never end
                self.wfile.write(b"HTTP/1.1 200 OK\r\n"[:1])
                time.sleep(0.1)
        elif self.path in routes:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(routes[self.path])
        else:
            self.send_error(404, "secret reason")

    def log_message(self, *arguments):
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hosts, server.handle_error = [], lambda *arguments: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def loopback(address) -> bool:
    return str(address) == "127.0.0.1"


def options(web, **more) -> dict:
    return {"max_bytes": 1000, "seconds": 5.0, "allowed": loopback, "ports": frozenset({web.server_port, 80})} | more


def test_fetches(web):
    fetcher = Fetcher(**options(web))
    assert fetcher(f"http://127.0.0.1:{web.server_port}/ok") == b"P" * 500
    assert fetcher(f"http://localhost:{web.server_port}/redirect") == b"P" * 500
    assert web.hosts[-1] == f"localhost:{web.server_port}"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("inside", "public Internet"),
        ("file", "only http"),
        ("loop", "redirects"),
        ("gzip", "compressed"),
        ("big", "larger than 1000"),
        ("missing", "answers 404"),
    ],
)
def test_hostile_servers(web, path, says):
    message = refused(f"http://127.0.0.1:{web.server_port}/{path}", **options(web))
    assert says in message
    assert "secret" not in message


@pytest.mark.parametrize("path", ["slow", "drip"])
def test_a_slow_server_is_left(web, path):
    start = time.monotonic()
    assert "url" in refused(f"http://127.0.0.1:{web.server_port}/{path}", **options(web, seconds=0.5))
    assert time.monotonic() - start < 2


def test_tls_is_checked_against_the_name(web, monkeypatch):
    """An address that speaks no TLS, or not under that name, is no source."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        fetch.socket, "getaddrinfo", lambda host, port, *rest, **named: real("127.0.0.1", port, *rest, **named)
    )
    assert "SSLError" in refused(f"https://images.example:{web.server_port}/ok", **options(web))


def test_a_name_is_looked_up_once_and_held_to(web, monkeypatch):
    """The second look-up of a rebinding name would lead inside; there is none."""
    answers, real = [], socket.getaddrinfo

    def resolve(host, port, *rest, **named):
        if host == "127.0.0.1":
            return real(host, port, *rest, **named)  # no look-up: what `create_connection` does with an address
        answers.append(host)
        address = "127.0.0.1" if len(answers) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolve)
    connected = []
    connect = socket.create_connection
    monkeypatch.setattr(
        fetch.socket, "create_connection", lambda address, *rest: connected.append(address) or connect(address, *rest)
    )
    assert Fetcher(**options(web))(f"http://rebind.example:{web.server_port}/ok") == b"P" * 500
    assert answers == ["rebind.example"]
    assert connected == [("127.0.0.1", web.server_port)]


def test_one_private_address_among_many_is_enough(monkeypatch):
    def resolve(host, port, **_):
        return [(socket.AF_INET, 1, 6, "", (a, port)) for a in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolve)
    assert "public Internet" in refused("http://two-faced.example/x.png")
