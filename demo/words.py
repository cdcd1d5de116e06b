"""What people type, and what they are told when something is wrong."""

from __future__ import annotations

from pathlib import Path

from vlseg.types import VLSegError

MOST_QUERIES = 32
LONGEST = 300  # characters of a query


def read_queries(text: str | None) -> list[str]:
    """The queries of a text, one a line, in order; empty lines and repetitions are left out.

    Raises VLSegError where there is none, and for too many or too long ones.
    """
    lines = [" ".join(line.split()) for line in (text or "").splitlines()]
    queries = list(dict.fromkeys(line for line in lines if line))
    if not queries:
        raise VLSegError("Say what to look for: write one thing a line, such as “the red mug”.")
    if len(queries) > MOST_QUERIES:
        raise VLSegError(f"That is {len(queries)} things at once; this page takes up to {MOST_QUERIES}.")
    for number, query in enumerate(queries, 1):
        if len(query) > LONGEST:
            raise VLSegError(f"Line {number} has {len(query)} characters; keep it to {LONGEST}.")
    return queries


def friendly(error: BaseException, path: str | Path | None = None) -> str:
    """An error as one sentence for somebody who knows no command line. path: an upload, of which only the name is told.

    A VLSegError is written for people already. Of anything else only the kind is told; the rest belongs into the log.
    """
    if isinstance(error, VLSegError):
        text = " ".join(str(error).split()).removeprefix("--")
        name = Path(path).name if path else ""
        text = text.replace(str(path), name) if path else text
        if not (name and text.startswith(name)):
            text = text[:1].upper() + text[1:]
        return text if text.endswith((".", "!", "?")) else text + "."
    # torch's class has this name, and torch need not be imported to know it
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There was not enough memory for this. Try a smaller picture or fewer queries."
    return f"Something went wrong here ({type(error).__name__}); the log of the demo says more. Please try again."
