"""From settings to a running page, and back to nothing: no file is left when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from vlseg.types import VLSegError

from .guard import LOOPBACK

if TYPE_CHECKING:
    import gradio as gr

MAX_PIXELS = 25_000_000
MAX_FILE = "64mb"
SESSIONS = 64  # visitors whose answers are kept; of more, the longest idle one loses them
QUEUE = 32  # runs that wait; more are turned away


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve the page. models: as given, the default first. hosts: further names in the Host header."""

    host: str = "127.0.0.1"
    port: int = 7860
    models: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    max_pixels: int = MAX_PIXELS
    hosts: tuple[str, ...] = ()
    share: bool = False

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the page."""
        return self.host in LOOPBACK and not self.share


def serve(settings: Settings) -> None:
    """Serve the page until SIGINT or SIGTERM. Raises VLSegError for an address or a model that cannot be had."""
    port = _free_port(settings.host, settings.port)
    uploads = tempfile.mkdtemp(prefix="vlseg-demo-")
    _quiet_gradio(uploads)
    try:
        page = _launch(settings, port)
        stop = threading.Event()

        def end(number: int, frame: FrameType | None) -> None:
            stop.set()

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            stop.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            page.close(verbose=False)
    finally:
        shutil.rmtree(uploads, ignore_errors=True)
    print("vlseg: stopped", file=sys.stderr, flush=True)


def _launch(settings: Settings, port: int) -> gr.Blocks:
    from vlseg.systems.quiet import quiet_loading

    with quiet_loading():
        from starlette.middleware import Middleware

        from .desk import Desk
        from .guard import Guard
        from .models import Models, choices
        from .page import STATIC, build, theme

        models = Models(choices(settings.models), settings.device, settings.dtype, typed=settings.loopback)
        page = build(Desk(models, settings.max_pixels))
    hosts = (*LOOPBACK, *settings.hosts) if settings.loopback else ()
    page.queue(max_size=QUEUE)
    _, local, shared = page.launch(
        server_name=f"[{settings.host}]" if ":" in settings.host else settings.host,
        server_port=port,
        share=settings.share,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        theme=theme(),
        css_paths=[STATIC / "page.css"],
        favicon_path=STATIC / "favicon.png",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=MAX_FILE,
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts, policy=not settings.share)], "docs_url": None},
    )
    print(f"vlseg: the demo is at {local} (Ctrl-C stops it)", file=sys.stderr, flush=True)
    if shared:
        print(f"vlseg: everyone who knows the address can use {shared}", file=sys.stderr, flush=True)
    elif settings.share:
        print("vlseg: --share: no public address could be had; is there a network?", file=sys.stderr, flush=True)
    if settings.host not in LOOPBACK:
        print("vlseg: everyone who can reach this machine can use it", file=sys.stderr, flush=True)
    return page


def _quiet_gradio(uploads: str) -> None:
    """Settings that Gradio reads from the environment, some of them on import. uploads: its folder for files."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = uploads
    # On its start Gradio calls itself, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *LOOPBACK]))


def _free_port(host: str, port: int) -> int:
    """The port, or for 0 a free one. Raises VLSegError where the address cannot be had."""
    if port > 65535:  # getaddrinfo would take the rest of a division for it
        raise VLSegError(f"--port {port}: ports go up to 65535; name another")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            free: int = probe.getsockname()[1]
            return free
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise VLSegError(f"--host {host} --port {port}: cannot be had ({reason}); name another") from error
