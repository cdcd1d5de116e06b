"""Bytes from strangers to a picture: few formats, no more pixels than allowed, every failure in one line."""

from __future__ import annotations

import io

from PIL import Image

from vlseg.data.images import open_image
from vlseg.serving.admission import Ticket
from vlseg.serving.errors import ServiceError
from vlseg.serving.settings import picture_bytes
from vlseg.types import VLSegError

# Pillow knows some forty more, of which some start other programs (EPS) or are rarely looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
# A progressive JPEG has about ten scans. A file of thousands decodes all of its pixels in each of them.
MOST_SCANS = 100


def decode_picture(data: bytes, max_pixels: int, ticket: Ticket) -> Image.Image:
    """The upright RGB picture of an image file; its memory is taken from the ticket first.

    Raises ServiceError: unsupported_image (415), image_too_large (413), broken_image (422), busy (429).
    """
    if not data:
        raise ServiceError("unsupported_image", "the image file is empty")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise ServiceError("unsupported_image", f"the file is no image of a kind that is read ({kinds})") from error
    except Image.DecompressionBombError as error:
        raise _too_large("more", max_pixels) from error
    except Exception as error:  # Pillow's readers meet broken files with errors of a dozen kinds
        raise _broken(error) from error
    with picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise _too_large(f"{width} x {height} is more", max_pixels)
        if picture.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MOST_SCANS:
            raise ServiceError("broken_image", f"the JPEG has more than {MOST_SCANS} scans")
        ticket.take_bytes(picture_bytes(width * height))
        try:
            picture.load()
            upright = open_image(picture, max_pixels)[0]
        except VLSegError as error:
            raise ServiceError("broken_image", str(error)) from error
        except MemoryError as error:
            raise ServiceError("unavailable", "the server has no memory left for the image") from error
        except Exception as error:
            raise _broken(error) from error
    ticket.take_bytes(3 * width * height - picture_bytes(width * height))  # what is left after the decoding
    return upright


def _too_large(what: str, max_pixels: int) -> ServiceError:
    return ServiceError("image_too_large", f"the image has too many pixels: {what} than {max_pixels / 1e6:g} million")


def _broken(error: Exception) -> ServiceError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ServiceError("broken_image", f"the image is broken ({reason})")
