"""The processes that load a run's batches: what signals mean to them, and that they end when it does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


def leave_signals(number: int = 0) -> None:
    """For a loading process (`worker_init_fn`, which gets its number): signals are the run's own business.

    A terminal, a launcher or a job scheduler signals every process of a job; a loading process that died of it would
    take the run with it before it has saved.
    """
    del number
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def feeding(stream: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Around the use of a `DataLoader`'s iterator: at the end its processes are gone, for they ignore being asked."""
    try:
        yield stream
    finally:
        shutdown = getattr(stream, "_shutdown_workers", None)  # without processes there is none
        if shutdown is not None:
            shutdown()
            for process in getattr(stream, "_workers", ()):
                if process.is_alive():  # stuck in a read that never ends
                    process.kill()
