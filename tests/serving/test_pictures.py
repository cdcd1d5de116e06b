"""Image files from strangers."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlseg.data.images import open_image
from vlseg.serving.admission import Admission
from vlseg.serving.errors import ServiceError
from vlseg.serving.pictures import decode_picture

MOST = 1_000_000
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of damaged files


def decode(data: bytes, most: int = MOST) -> Image.Image:
    admission = Admission(1, 2**30)
    with admission.enter() as ticket:
        return decode_picture(data, most, ticket)


def status_of(data: bytes) -> int:
    try:
        assert decode(data).mode == "RGB"
    except ServiceError as error:
        return error.status
    return 200


def refused(data: bytes, most: int = MOST) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        decode(data, most)
    assert "\n" not in caught.value.message
    assert " at 0x" not in caught.value.message
    return caught.value


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "MPO"])
def test_the_kinds_that_are_read(picture, kind):
    got = decode(saved(picture(), kind))
    assert (got.mode, got.size) == ("RGB", (160, 120))
    assert np.abs(np.asarray(got, int) - np.asarray(picture(), int)).mean() < 20


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "JPEG2000", "SGI"])
def test_the_kinds_that_are_not(picture, kind):
    assert refused(saved(picture(), kind)).status == 415


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"PK\x03\x04" + b"0" * 99,
    ],
)
def test_no_images(data):
    assert refused(data).code == "unsupported_image"


def test_unusual_pixels_are_those_of_the_library(picture, tmp_path):
    """Turned by EXIF, 16 bits, CMYK, transparency, a palette: as `open_image` gives them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray((np.arange(120 * 160, dtype=np.uint16) * 3).reshape(120, 160))
    clear = picture().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    files = [
        saved(picture(0, 90, 150), "PNG", exif=exif),
        saved(grey16, "PNG"),
        saved(picture().convert("CMYK"), "JPEG"),
        saved(clear, "PNG"),
        saved(picture().convert("P"), "GIF"),
        saved(picture().convert("1"), "PNG"),
    ]
    for number, data in enumerate(files):
        path = tmp_path / str(number)
        path.write_bytes(data)
        expected = np.asarray(open_image(path)[0])
        assert np.array_equal(np.asarray(decode(data)), expected)
        assert expected.std() > 5
    assert decode(files[0]).size == (90, 150)


def test_bombs_cost_nothing():
    start = time.monotonic()
    for side in (1001, 20_000, 2**31 - 1):
        assert refused(png_of(side, side, zlib.compress(b"\0" * 1000))).status == 413
    # 100 MB of text in 100 kB: Pillow's own limits on text chunks hold
    text = chunk(b"zTXt", b"c\0\0" + zlib.compress(b"\0" * 100_000_000, 9))
    assert refused(png_of(4, 4, zlib.compress(b"\0\1\2\3\4" * 4), text)).status == 422
    assert time.monotonic() - start < 20


def test_a_jpeg_of_endless_scans(picture):
    whole = saved(picture(), "JPEG", progressive=True)
    decode(whole)
    at = whole.rindex(b"\xff\xda")
    assert "scans" in refused(whole[:-2] + whole[at:-2] * 200 + b"\xff\xd9").message


def test_cut_off_at_every_length(picture):
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        whole = saved(picture(0, 24, 32), kind)
        for length in range(0, len(whole) - 30, max(1, len(whole) // 25)):
            assert status_of(whole[:length]) in (200, 413, 415, 422)


@settings(max_examples=100)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "PPM"]), st.data())
def test_flipped_bytes_break_nothing(kind, data):
    whole = bytearray(saved(Image.linear_gradient("L").resize((24, 16)).convert("RGB"), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert status_of(bytes(whole)) in (200, 413, 415, 422)


def test_a_file_that_is_two_things(picture):
    """An image with a page behind it is an image, and only its pixels go on."""
    both = saved(picture(), "PNG") + b"<html><script>alert(1)</script></html>"
    assert np.array_equal(np.asarray(decode(both)), np.asarray(picture()))


def test_memory_is_taken_before_pixels_are_read(picture):
    admission = Admission(2, 10_000)
    with admission.enter() as ticket, pytest.raises(ServiceError) as caught:
        decode_picture(saved(picture(), "PNG"), MOST, ticket)
    assert caught.value.status == 413  # it would not fit alone either
    assert (admission.bytes, admission.images) == (0, 0)
    admission = Admission(2, 200_000)
    with admission.enter() as other, admission.enter() as ticket:
        other.take_bytes(150_000)
        with pytest.raises(ServiceError) as caught:
            decode_picture(saved(picture(), "PNG"), MOST, ticket)
    assert caught.value.status == 429
    assert int(caught.value.headers["retry-after"]) >= 1
    assert (admission.bytes, admission.images) == (0, 0)


def test_what_was_given_up_takes_nothing_more(picture):
    """A deadline passes while a thread still decodes: it may not leave its memory on the bill for good."""
    admission = Admission(2, 10**9)
    with admission.enter() as ticket:
        ticket.take_images(2)
        ticket.take_bytes(1000)
        assert (admission.images, admission.bytes) == (2, 1000)
        with pytest.raises(ServiceError, match="queue is full"):
            admission.enter()
    with pytest.raises(ServiceError, match="nobody waits"):
        decode_picture(saved(picture(), "PNG"), MOST, ticket)
    assert (admission.images, admission.bytes) == (0, 0)
