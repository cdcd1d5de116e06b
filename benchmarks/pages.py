"""Tables inside pages that people write: the text between `<!-- NAME: ... -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import re
from pathlib import Path

from vlseg.data.files import write_whole
from vlseg.types import VLSegError


def replace_block(page: Path, name: str, text: str) -> None:
    """Put a generated text in the place of the one between the marks of that name.

    Raises VLSegError where the page does not have both marks once.
    """
    try:
        whole = page.read_text(encoding="utf-8")
    except OSError as error:
        raise VLSegError(f"{page}: cannot be read ({error.strerror or error})") from error
    block = re.compile(rf"(<!-- {re.escape(name)}:[^\n]*-->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    whole, count = block.subn(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", whole)
    if count != 1:
        raise VLSegError(f"{page}: has {count} blocks named {name!r}, and needs one")
    write_whole(page, whole)
