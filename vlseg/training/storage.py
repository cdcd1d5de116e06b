"""Which errors mean that a file could not be written: a full disk speaks in the words of whichever library met it."""

from __future__ import annotations

from vlseg.types import VLSegError


def unwritten(error: BaseException) -> str | None:
    """Why a file could not be written, in a few words; None for an error that means something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, VLSegError):  # of `vlseg.data.files`
        return unwritten(error.__cause__) if isinstance(error.__cause__, OSError) else None
    failures = getattr(error, "failures", None)  # torch's CheckpointException, a BaseException: those of every rank
    if isinstance(failures, dict) and failures:
        reasons = [unwritten(failure[0]) for failure in failures.values()]
        return next((reason for reason in reasons if reason), None) if all(reasons) else None
    words = str(error)
    if type(error).__name__ == "SafetensorError" and "I/O error" in words:
        return words.partition("I/O error: ")[2] or words
    if isinstance(error, RuntimeError) and ("inline_container" in words or "PytorchStreamWriter" in words):
        return "the disk is full, or takes no file so large"  # torch's zip writer tells of positions
    return None
