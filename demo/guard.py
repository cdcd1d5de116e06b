"""What stands before Gradio: whose requests are taken, and that the page reaches for nothing outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Gradio's page needs inline scripts and eval; that nothing comes from, or goes to, another host is the point here.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "connect-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "frame-ancestors 'self'",
    ]
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# Routes of Gradio that fetch addresses which the client names, or that tell of other sessions.
CLOSED = ("/gradio_api/file=http:", "/gradio_api/file=https:", "/gradio_api/proxy=", "/monitoring")


class Guard:
    """ASGI middleware. hosts: names that the Host header may give, without ports; empty: any.

    A page bound to loopback must not answer to other names: a web site could point its own at 127.0.0.1 and have the
    visitor's browser use the page (DNS rebinding).
    """

    def __init__(self, app: App, hosts: Sequence[str] = (), policy: bool = True) -> None:
        self.app, self.hosts, self.headers = app, frozenset(hosts), HEADERS if policy else HEADERS[1:]

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answers 421 for another host and 404 for a closed route; adds the headers to everything else."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        if self.hosts and _name(host) not in self.hosts:
            await _refuse(send, 421, f"this demo does not serve {_name(host)}; start it with --allow-host to let it")
            return
        if scope["path"].startswith(CLOSED):
            await _refuse(send, 404, "not here")
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.headers]
            await send(message)

        await self.app(scope, receive, with_headers)


def _name(host: str) -> str:
    """The name of a Host header, without the port: example.org:80, [::1]:80."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
