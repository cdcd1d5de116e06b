"""How much may be inside at once: images waiting or at work, and the memory of their bodies and pictures."""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType

from vlseg.serving.errors import ServiceError, busy


class Admission:
    """The door of the server. Thread-safe.

    max_images: images inside at once. memory: bytes of bodies and pictures inside at once.
    """

    def __init__(self, max_images: int, memory: int):
        self.max_images, self.memory = max_images, memory
        self.images = self.bytes = 0
        self.closed = False
        self._seconds_an_image = 0.1
        self._lock = threading.Lock()

    def enter(self) -> Ticket:
        """A ticket for a request whose body is still to come; it holds nothing yet.

        Raises ServiceError where nothing more could come in now: 429 where it is full, 503 once it is closed.
        """
        ticket = Ticket(self)
        self._take(ticket, 1, 0, keep=False)
        return ticket

    def close(self) -> None:
        """Let nobody in any more; who is inside stays until done."""
        self.closed = True

    def served(self, images: int, seconds: float) -> None:
        """Tell how long a call to a model took; what Retry-After is estimated from."""
        with self._lock:
            self._seconds_an_image += 0.1 * (seconds / max(images, 1) - self._seconds_an_image)

    @property
    def retry_after(self) -> int:
        """Seconds until the images that are inside now should be done, 1 to 60."""
        return min(60, max(1, math.ceil(self.images * self._seconds_an_image)))

    def _take(self, ticket: Ticket, images: int, size: int, keep: bool = True) -> None:
        with self._lock:
            if self.closed:
                raise ServiceError("unavailable", "the server is stopping", {"retry-after": "5"})
            if ticket.closed:
                raise ServiceError("deadline", "nobody waits for it any more")
            if self.images + images > self.max_images:
                raise busy(self.retry_after)
            if ticket.bytes + size > self.memory:
                raise ServiceError("body_too_large", "this request needs more memory than the server gives to one")
            if self.bytes + size > self.memory:
                raise busy(self.retry_after, "the memory for requests is full")
            if keep:
                self.images += images
                self.bytes += size
                ticket.images += images
                ticket.bytes += size

    def _release(self, ticket: Ticket) -> None:
        with self._lock:
            ticket.closed = True
            self.images -= ticket.images
            self.bytes -= ticket.bytes
            ticket.images = ticket.bytes = 0


class Ticket:
    """What one request holds; a context manager that gives all of it back. entered: of `time.monotonic`.

    A thread that still works for a request that was given up gets nothing on its ticket.
    """

    def __init__(self, admission: Admission):
        self._admission = admission
        self.images = self.bytes = 0
        self.closed = False
        self.entered = time.monotonic()

    def take_images(self, count: int) -> None:
        """Room for `count` more images. Raises ServiceError 429."""
        self._admission._take(self, count, 0)

    def take_bytes(self, count: int) -> None:
        """Room for `count` more bytes; fewer where negative. Raises ServiceError 429, or 413 where waiting is vain."""
        self._admission._take(self, 0, count)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._admission._release(self)
