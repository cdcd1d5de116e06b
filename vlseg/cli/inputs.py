"""From the word IMAGE to the pictures it means."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from vlseg.types import VLSegError

PHOTOS = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
SUFFIXES = frozenset((*PHOTOS, ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".ico"))
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://|file:")


def expand(image: str, out: str | None = None) -> tuple[list[str], bool]:
    """The pictures of a file, folder, glob or URL, in order of their names, and whether it named many.

    A folder gives the files right in it that have the suffix of an image and are not hidden; for the folders below it
    write a glob such as 'folder/**/*.jpg'. Raises VLSegError where nothing is found, and for a folder that is also
    `out`, whose masks the next run would take for pictures. A single file is not looked at here.
    """
    if _URL.match(image) or os.path.isfile(image):
        return [image], False
    if os.path.isdir(image):
        if out is not None and os.path.realpath(out) == os.path.realpath(image):
            raise VLSegError(f"--out {out}: is the folder of the images; name another")
        try:
            names = sorted(os.listdir(image))
        except OSError as error:
            raise VLSegError(f"{image}: the folder cannot be read ({error.strerror})") from error
        found = [os.path.join(image, name) for name in names if not name.startswith(".")]
        found = [path for path in found if Path(path).suffix.lower() in SUFFIXES and os.path.isfile(path)]
        if not found:
            raise VLSegError(
                f"{image}: no image in this folder (for folders below it write '{image.rstrip('/')}/**/*.jpg')"
            )
        return found, True
    if glob.has_magic(image):
        found = sorted(path for path in glob.glob(image, recursive=True) if os.path.isfile(path))
        if not found:
            raise VLSegError(f"{image}: no file matches")
        return found, True
    return [image], False
