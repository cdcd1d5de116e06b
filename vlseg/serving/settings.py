"""What a server allows and how it works; every limit has a safe default."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from vlseg.types import VLSegError

# Pillow refuses larger files by itself, whatever is asked for here.
PILLOW_MOST_PIXELS = 178_000_000

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits of requests, times in seconds, sizes of queues and caches.

    api_keys: one of them must come with every request but health checks; none: anybody may ask. hosts: names that the
    Host header may give; none: any, but for a loopback address its own names. allow_urls: the server fetches images.
    max_body: bytes of a request. max_pixels: of an image. max_queries, max_query_chars: of a request and a query.
    max_images: of a batch request. max_queue: images waiting or at work; more are told to come back (429).
    memory: bytes of request bodies and decoded pictures held at once. window: how long a call waits for others to share
    it. call_images, call_queries: what one call to the model holds at most. cache: bytes of image features per model.
    deadline: of a request, from its arrival to its answer; header_timeout, body_timeout, write_timeout: of its parts;
    idle_timeout: of a connection between requests. workers: threads that decode and draw pictures.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    allow_urls: bool = False
    max_body: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_queries: int = 64
    max_query_chars: int = 1000
    max_images: int = 16
    max_queue: int = 64
    max_connections: int = 512
    memory: int = 2 * 2**30
    window: float = 0.005
    call_images: int = 8
    call_queries: int = 64
    cache: int = 256 * 2**20
    deadline: float = 30.0
    header_timeout: float = 10.0
    body_timeout: float = 20.0
    write_timeout: float = 30.0
    idle_timeout: float = 15.0
    workers: int = 4

    def check(self) -> None:
        """Raises VLSegError for values that cannot work, or that would open the server to a network by accident."""
        positive = ("max_body", "max_pixels", "max_queries", "max_query_chars", "max_images", "max_queue", "workers")
        for name in (*positive, "max_connections", "call_images", "call_queries", "deadline", "body_timeout"):
            if getattr(self, name) <= 0:
                raise VLSegError(f"--{name.replace('_', '-')}: must be more than 0")
        if not 0 <= self.port <= 65535:
            raise VLSegError(f"--port {self.port}: ports go from 0 (a free one) to 65535")
        if self.max_pixels > PILLOW_MOST_PIXELS:
            raise VLSegError(f"--max-pixels {self.max_pixels}: a server reads at most {PILLOW_MOST_PIXELS:,} pixels")
        if self.memory < self.largest_request:
            raise VLSegError(
                f"the memory of requests ({self.memory >> 20} MiB) holds not even one of the largest allowed "
                f"({self.largest_request >> 20} MiB); raise --memory, or lower --max-pixels or --max-body"
            )
        if any(len(key) < 16 for key in self.api_keys):
            raise VLSegError("an API key has fewer than 16 characters: take a long random one")

    @property
    def largest_request(self) -> int:
        """Bytes that one request of one image may need: its body, that again decoded from base64, its pixels."""
        return 2 * self.max_body + picture_bytes(self.max_pixels)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host in LOOPBACK_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names that a Host header may give, lower case; empty: any.

        A page in a browser of this machine could otherwise reach a loopback server under a name of its own.
        """
        if self.loopback:
            return LOOPBACK_NAMES | {self.host.lower()} | {name.lower() for name in self.hosts}
        return frozenset(name.lower() for name in self.hosts)


def picture_bytes(pixels: int) -> int:
    """Memory to decode a picture: up to four bytes a pixel as stored and three as RGB."""
    return 7 * pixels
