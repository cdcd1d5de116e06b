"""Any picture a person may hand over, to upright 8-bit RGB. What cannot be read says why, in one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vlseg.types import VLSegError
from vlseg.version import __version__

MAX_PIXELS = 100_000_000
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
URL_TIMEOUT = 20.0  # seconds without a byte
URL_MAX_BYTES = 256 * 2**20

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):(//|(?<=file:))")
_NUMBER = re.compile(r"(\d[\d_,]*\.?\d*(?:e\d+)?)\s*([kmg]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, str]:
    """A picture and its name. source: path, URL (http, https, file), PIL image, or ``(H, W[, 3 or 4]) uint8`` array.

    The picture is RGB, 8 bits, upright (EXIF orientation applied), the first frame of an animation. Transparency is
    laid over white. 16-bit grey is scaled from 0..65535; 32-bit integers likewise, or from their own range where they
    leave it; floats from 0..1, else from their own range. Colour profiles are not applied.

    Raises VLSegError, in one line, for what is missing, no image, cut off, or of more than `max_pixels` pixels.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "image")
        check_pixels(source.size, name, max_pixels)
        return _upright_rgb(source, name), name
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels), "array"
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, bytes):
        source = os.fsdecode(source)
    if not isinstance(source, str):
        raise VLSegError(
            f"an image is a path, a URL, a PIL image or an (H, W, 3) uint8 array, got {type(source).__name__}"
        )
    name = printable(source)
    if not is_url(source):
        return _decode(_existing_file(source), name, max_pixels), name
    parts = urllib.parse.urlsplit(source)
    if parts.scheme.lower() == "file":
        return _decode(_existing_file(urllib.request.url2pathname(parts.path)), name, max_pixels), name
    return _decode(io.BytesIO(_fetch(source)), name, max_pixels), name


def upright_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright picture in a file; only its header is read. Raises VLSegError as `open_image`."""
    return upright_extent(_existing_file(os.fspath(path)), printable(os.fspath(path)))


def upright_extent(source: str | bytes, name: str) -> tuple[int, int]:
    """(height, width) of the upright picture in a file, or in the bytes of one. name: for errors. Raises VLSegError."""
    try:
        with _pillow_guard_off(), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            turned = _orientation(image) >= 5  # 5 to 8 are on their side
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # as in _decode: broken files fail in a dozen ways
        raise VLSegError(f"{name}: the image cannot be read ({' '.join(str(error).split())})") from error


def is_url(source: str) -> bool:
    """Whether the text is a URL rather than a path; a drive letter is no scheme."""
    return _SCHEME.match(source) is not None


def printable(path: str) -> str:
    """A path as text that can be printed and written to JSON, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "replace")


def parse_pixels(text: str | int) -> int:
    """A number of pixels: 300M, 50k, 1.5G, 1e8, 100_000_000. Raises VLSegError for anything else and for < 1."""
    match = _NUMBER.fullmatch(str(text).strip())
    pixels = 0
    if match:
        pixels = round(float(match[1].replace("_", "").replace(",", "")) * _UNITS[match[2].lower()])
    if pixels < 1:
        raise VLSegError(f"--max-pixels {text}: not a number of pixels; write it like 300M, 50k or 100000000")
    return pixels


def check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises VLSegError for a picture of more than `max_pixels`. size: (width, height)."""
    if size[0] < 1 or size[1] < 1:
        raise VLSegError(f"{name}: the image has no pixels ({size[0]} x {size[1]})")
    if size[0] * size[1] > max_pixels:
        millions = size[0] * size[1] / 1e6
        raise VLSegError(
            f"{name}: {size[0]} x {size[1]} is {millions:.1f} million pixels, more than the limit of "
            f"{max_pixels / 1e6:g} million; if you trust the file, raise it with --max-pixels {int(millions) + 1}M"
        )


def _existing_file(source: str) -> str:
    path, name = Path(source), printable(source)
    if not source:
        raise VLSegError("the image path is empty")
    if "\0" in source:
        raise VLSegError(f"{name!r}: not a path")
    try:
        if path.is_dir():
            raise VLSegError(f"{name}: is a folder; name an image in it")
        if not path.exists():
            raise VLSegError(f"{name}: no such file{_nearest(path)}")
    except OSError as error:  # a name too long, a folder that may not be entered
        raise VLSegError(f"{name}: {error.strerror}") from error
    return source


def _nearest(path: Path) -> str:
    try:
        others = sorted(os.listdir(path.parent))
    except OSError:
        return f"; the folder {printable(str(path.parent))} is not there or cannot be read"
    lowered = {other.lower(): other for other in others}
    close = difflib.get_close_matches(path.name.lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean {printable(str(path.parent / lowered[close[0]]))}?" if close else ""


def _fetch(url: str) -> bytes:
    scheme = url.split(":", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise VLSegError(f"{url}: {scheme} URLs are not read; use http, https, file, or a path")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"vlseg/{__version__}"})
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            data = response.read(URL_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise VLSegError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (OSError, ValueError) as error:  # URLError, a timeout, a connection cut off; a URL that is none
        reason = getattr(error, "reason", None) or error
        raise VLSegError(f"{url}: cannot be fetched ({reason}); check the address and the network") from error
    if len(data) > URL_MAX_BYTES:
        raise VLSegError(f"{url}: larger than {URL_MAX_BYTES // 2**20} MB; download it and give the file")
    return data


def _decode(file: str | io.BytesIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with _pillow_guard_off(), Image.open(file) as image:
            check_pixels(image.size, name, max_pixels)
            image.load()
            return _upright_rgb(image, name)
    except VLSegError:
        raise
    except PermissionError as error:
        raise VLSegError(f"{name}: may not be read (permission denied)") from error
    except Image.UnidentifiedImageError as error:
        size = os.path.getsize(file) if isinstance(file, str) else len(file.getbuffer())
        what = "the file is empty" if size == 0 else "not an image of a kind that Pillow reads"
        raise VLSegError(f"{name}: {what}") from error
    except MemoryError as error:
        raise VLSegError(f"{name}: too large for the memory of this machine") from error
    except Exception as error:
        # Pillow's readers meet broken files with errors of a dozen kinds (OSError, SyntaxError, struct.error, ...).
        reason = " ".join(str(error).split()) or type(error).__name__
        raise VLSegError(f"{name}: the image is broken ({reason})") from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    turn = _TRANSPOSE.get(_orientation(image))
    if turn is not None and image.mode == "RGB" and "transparency" not in image.info:
        rgb, turn = image.transpose(turn), None  # a copy by itself: of a very large photograph none more is made
    else:
        try:
            rgb = _to_rgb(image)
        except ValueError as error:
            raise VLSegError(f"{name}: the colour mode {image.mode} is not understood; save it as RGB") from error
    rgb.info = {}  # what the file said of its orientation and transparency is true no longer
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block says nothing of the orientation, and the pixels are whole
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey(np.asarray(image.convert("I"), np.float32) / 257)
    if mode == "I":
        values = np.asarray(image, np.float64)
        return _grey(values / 257 if values.min() >= 0 and values.max() <= 65535 else _stretched(values))
    if mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
        return _grey(values * 255 if values.min() >= 0 and values.max() <= 1 else _stretched(values))
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, above).convert("RGB")
    # convert returns a copy even where the mode is right, so the caller's picture stays its own
    return image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) * (255 / (high - low) if high > low else 0)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        hint = "; scale it to 0..255 first" if array.dtype != np.uint8 else ""
        raise VLSegError(f"an image array is (H, W, 3) uint8, got shape {shape}, {array.dtype}{hint}")
    check_pixels((shape[1], shape[0]), "array", max_pixels)
    plain = np.ascontiguousarray(array[..., 0] if array.ndim == 3 and shape[2] == 1 else array)
    return _upright_rgb(Image.fromarray(plain), "array")


_lock = threading.Lock()
_holders = 0
_pillow_limit: int | None = None


@contextlib.contextmanager
def _pillow_guard_off() -> Iterator[None]:
    """Pillow's own size limit is a global that warns on stderr and cannot be raised for one file; ours replaces it."""
    global _holders, _pillow_limit
    with _lock:
        if _holders == 0:
            _pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if _holders == 0:
                Image.MAX_IMAGE_PIXELS = _pillow_limit
