"""Run the service under uvicorn: socket, models, signals, an orderly end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator

import uvicorn
from PIL import Image

from vlseg.segmenter import Segmenter
from vlseg.serving.app import create_app
from vlseg.serving.protocol import guarded
from vlseg.serving.service import Service
from vlseg.serving.settings import ServerSettings
from vlseg.types import VLSegError

BACKLOG = 512


def bind(settings: ServerSettings) -> socket.socket:
    """A socket on the address, not yet listening: what is wrong with it is known before models are loaded.

    Raises VLSegError for an address that is taken, unknown, or not allowed.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise VLSegError(f"--host {settings.host}: is no address of this machine ({error})") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        raise VLSegError(f"{where}: cannot be served on ({reason}); choose others with --host and --port") from error
    return sock


def address_of(sock: socket.socket) -> str:
    """The URL at which a bound socket is reached."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warm(segmenter: Segmenter) -> None:
    """One call, so that the first request does not pay for what a model sets up when it is first used."""
    segmenter(Image.new("RGB", (64, 64), (127, 127, 127)), "warm-up")


class Server(uvicorn.Server):
    """uvicorn with the limits of the settings. on_ready: called once requests are answered."""

    def __init__(self, service: Service, on_ready: Callable[[], None] | None = None):
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            http=guarded(settings),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(settings.idle_timeout),
            # whoever is inside gets an answer within the deadline; a client that reads slowly has its own limit
            timeout_graceful_shutdown=int(settings.deadline + settings.write_timeout),
        )
        super().__init__(config)
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_ready and self.started:
            self.on_ready()


def serve(service: Service, sock: socket.socket, on_ready: Callable[[], None] | None = None) -> None:
    """Answer requests until SIGTERM or SIGINT; then let in no more, finish what is inside, and return.

    Raises KeyboardInterrupt after SIGINT.
    """
    # Pillow tells stderr of every odd file; what matters of them is checked where they are decoded.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = Server(service, on_ready)
    with _term_is_no_failure():
        server.run(sockets=[sock])


@contextlib.contextmanager
def _term_is_no_failure() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more; SIGTERM is how a service is stopped, and no failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def notify(state: str) -> None:
    """Tell systemd, where it started this process as Type=notify (see sd_notify(3)); else nothing."""
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), "\0" + name[1:] if name.startswith("@") else name)
