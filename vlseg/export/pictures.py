"""What a picture is called in an export, and its copy."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import ExifTags, Image

from vlseg.data.files import writable_folder, write_whole
from vlseg.data.images import open_image
from vlseg.export.source import Item, Results
from vlseg.types import VLSegError


def named(item: Item) -> str:
    """The name of the picture where it is not copied: as its Result has it, with forward slashes."""
    return item.result.image.replace("\\", "/")


def copied(item: Item, results: Results, folder: Path) -> str:
    """Copy the picture to the folder and return its name there; where that fails the name alone, and a problem.

    A picture that its file shows turned (EXIF) is written upright, as the masks are: not all readers turn it.
    """
    suffix = Path(item.result.image).suffix.lower()
    suffix = suffix if 1 < len(suffix) <= 5 and suffix.isascii() else ".png"
    name = item.base + suffix
    try:
        if item.picture is None:
            raise VLSegError("no such file here; say with --images DIR where the pictures lie")
        data, size = _upright(item.picture)
        if size != item.result.size:
            raise VLSegError(f"the picture is {size[0]} x {size[1]} (H x W), the Result {item.result.size}")
        write_whole(writable_folder(folder) / name, data)
    except VLSegError as error:
        results.problems.append(f"{item.result.image}: not copied: {error}")
    return name


def _upright(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The bytes of the upright picture, as they are where possible, and its (height, width). Raises VLSegError."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            kind, size = image.format, (image.height, image.width)
        if not turned:
            return path.read_bytes(), size
    except (OSError, SyntaxError, ValueError) as error:
        raise VLSegError(f"cannot be read ({' '.join(str(error).split())})") from error
    picture, _ = open_image(path)
    buffer = io.BytesIO()
    picture.save(buffer, kind or "PNG", **({"quality": 95} if kind in ("JPEG", "WEBP", "MPO") else {}))
    return buffer.getvalue(), (picture.height, picture.width)
