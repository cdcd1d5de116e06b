"""Whether all processes of a run see the same `out`: looked at before it begins."""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from vlseg.data.files import write_whole
from vlseg.types import VLSegError

SIGHT = 60.0  # seconds after which what one machine writes is seen by the others, or never: NFS remembers misses
TOKEN = ".shared-by-all"


def check_shared(accelerator: Accelerator, out: Path) -> None:
    """Raise VLSegError, on all ranks, where some do not see what main writes into `out`; every rank must call it.

    Their shares of a checkpoint would never come together, which nobody would notice before the run is to go on.
    """
    if accelerator.num_processes == 1:
        return
    file, token, failed = out / TOKEN, uuid.uuid4().hex, ""
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(file, token)
        except (OSError, VLSegError) as error:
            failed = str(error)
    token, failed = gather_object([(token, failed)])[0]  # main's, and nobody looks before it is there
    seen: list[bool] = gather_object([not failed and _holds(file, token)])
    if accelerator.is_main_process:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    if failed:
        raise VLSegError(f"out={out}: cannot be written to ({failed})")
    blind = [f"process {rank}" for rank, found in enumerate(seen) if not found]
    if blind:
        raise VLSegError(
            f"out={out}: what process 0 writes there is not seen by {', '.join(blind)}; `out` must lie on storage that "
            "all machines share"
        )


def _holds(file: Path, token: str) -> bool:
    """Whether a file comes to hold that text."""
    until = time.monotonic() + SIGHT
    while True:
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8") == token:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
