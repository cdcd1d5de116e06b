from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlseg.data import images
from vlseg.data.images import open_image, parse_pixels
from vlseg.types import VLSegError


def pixels(source, **options) -> np.ndarray:
    image, _ = open_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def fails(source, **options) -> str:
    with pytest.raises(VLSegError) as caught:
        open_image(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_sources_agree(tmp_path: Path, picture):
    expected = np.asarray(picture())
    path = tmp_path / "a.png"
    picture().save(path)
    for source in (path, str(path), path.as_uri(), picture(), expected):
        assert (pixels(source) == expected).all()
    assert open_image(str(path))[1] == str(path)


def test_the_callers_picture_is_not_shared(picture):
    original = picture()
    opened, _ = open_image(original)
    opened.putpixel((0, 0), (1, 2, 3))
    assert original.getpixel((0, 0)) != (1, 2, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, picture, orientation: int):
    upright = picture()
    method = images._TRANSPOSE.get(orientation)
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(orientation, method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(inverse) if inverse is not None else upright
    stored.save(tmp_path / "a.png", exif=exif)
    assert (pixels(tmp_path / "a.png") == np.asarray(upright)).all()
    assert (pixels(open_image(tmp_path / "a.png")[0]) == np.asarray(upright)).all(), "turned twice"


def test_orientation_6_turns_right(tmp_path: Path):
    stored = np.zeros((2, 3, 3), np.uint8)
    stored[0, 0] = 255  # top left of what the sensor saw is the top right of the picture
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = pixels(tmp_path / "a.png")
    assert upright.shape == (3, 2, 3)
    assert upright[0, 1, 0] == 255


def test_broken_exif_is_no_matter(tmp_path: Path, picture):
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage that is no TIFF")
    assert pixels(tmp_path / "a.jpg").shape == (120, 160, 3)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_is_scaled_not_clipped(tmp_path: Path, mode: str):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    array = {"I;16": ramp.astype(np.uint16), "I": ramp.astype(np.int32), "F": (ramp / 65535).astype(np.float32)}[mode]
    Image.fromarray(array).save(tmp_path / "a.tif")
    assert Image.open(tmp_path / "a.tif").mode == mode
    assert np.abs(pixels(tmp_path / "a.tif")[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_16_bit_png(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == 128).all()


def test_32_bit_outside_16_bit_range_is_stretched():
    image = Image.fromarray(np.array([[-100_000, 0, 100_000]], np.int32))
    assert pixels(image)[0, :, 0].tolist() == [0, 128, 255]


def test_cmyk(tmp_path: Path):
    Image.new("CMYK", (20, 10), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = pixels(tmp_path / "a.jpg")[5, 5].astype(int)
    assert red[0] > 200
    assert red[1:].max() < 60


def test_transparency_over_white(tmp_path: Path):
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 2, 4))
    half.save(tmp_path / "rgba.png")
    half.convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(0, (0, 0, 2, 4))
    palette.save(tmp_path / "p.png", transparency=1)
    for name in ("rgba.png", "la.png", "p.png"):
        array = pixels(tmp_path / name)
        assert (array[:, 3] == 255).all(), name
        assert (array[:, 0] != 255).any(), name


def test_one_bit_and_tiny_and_long(tmp_path: Path):
    Image.new("1", (3, 3), 1).save(tmp_path / "bit.png")
    assert (pixels(tmp_path / "bit.png") == 255).all()
    assert pixels(Image.new("RGB", (1, 1), (9, 8, 7))).tolist() == [[[9, 8, 7]]]
    assert pixels(Image.new("RGB", (20000, 200))).shape == (200, 20000, 3)


def test_animation_gives_the_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_arrays(shape: tuple[int, ...]):
    assert pixels(np.full(shape, 200, np.uint8)).shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 6, 3)), "scale it to 0..255"),
        (np.zeros((3, 5, 6), np.uint8), "(H, W, 3) uint8"),
        (np.zeros((0, 6, 3), np.uint8), "no pixels"),
        (np.zeros(5, np.uint8), "(H, W, 3) uint8"),
    ],
)
def test_wrong_arrays(array: np.ndarray, says: str):
    assert says in fails(array)


def test_wrong_types():
    assert "got int" in fails(3)


def test_missing_names_the_nearest(tmp_path: Path, picture):
    picture().save(tmp_path / "photo.jpg")
    assert "did you mean" in (text := fails(tmp_path / "Foto.jpg"))
    assert "photo.jpg" in text
    assert "did you mean" not in fails(tmp_path / "zzzzzz")
    assert "folder" in fails(tmp_path / "no" / "a.jpg")


def test_what_is_no_image(tmp_path: Path, picture):
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    picture(0, 400, 400).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:120])
    assert "empty" in fails(tmp_path / "zero.jpg")
    assert "not an image" in fails(tmp_path / "text.jpg")
    assert "broken" in fails(tmp_path / "cut.jpg")
    assert "cut.png" in fails(tmp_path / "cut.png")
    assert "folder" in fails(tmp_path)
    assert "empty" in fails("")
    assert fails("a" * 5000)
    assert "not a path" in fails("a\0b")


def test_unreadable(tmp_path: Path, picture, monkeypatch: pytest.MonkeyPatch):
    picture().save(tmp_path / "a.png")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.Image, "open", refuse)  # root may read everything
    assert "permission" in fails(tmp_path / "a.png")


def test_max_pixels(tmp_path: Path):
    Image.new("1", (12000, 9000)).save(tmp_path / "big.png")
    assert "--max-pixels 109M" in fails(tmp_path / "big.png")
    limit = Image.MAX_IMAGE_PIXELS
    assert "--max-pixels" in fails(Image.new("L", (30, 30)), max_pixels=100)
    assert pixels(tmp_path / "big.png", max_pixels=parse_pixels("109M")).shape == (9000, 12000, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("text", "number"),
    [("300M", 300_000_000), ("50k", 50_000), ("1.5G", 1_500_000_000), ("1e8", 100_000_000), ("100_000", 100_000)],
)
def test_parse_pixels(text: str, number: int):
    assert parse_pixels(text) == number


@pytest.mark.parametrize("text", ["", "many", "-5", "0", "5T", "nan", "M"])
def test_parse_pixels_refuses(text: str):
    with pytest.raises(VLSegError, match="--max-pixels"):
        parse_pixels(text)


class Server(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self):
        self.send_response(200 if self.path == "/a.png" else 404)
        self.end_headers()
        self.wfile.write(self.body if self.path == "/a.png" else b"")

    def log_message(self, *args):
        pass


def test_urls(tmp_path: Path, picture, monkeypatch: pytest.MonkeyPatch):
    picture().save(tmp_path / "a.png")
    Server.body = (tmp_path / "a.png").read_bytes()
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("no_proxy", "*")
    try:
        assert (pixels(f"{root}/a.png") == np.asarray(picture())).all()
        assert "404" in fails(f"{root}/b.png")
        monkeypatch.setattr(images, "URL_MAX_BYTES", 10)
        assert "larger than" in fails(f"{root}/a.png")
    finally:
        server.shutdown()
        server.server_close()
    assert "network" in fails(f"{root}/a.png")
    assert "ftp URLs are not read" in fails("ftp://example.org/a.png")
    assert "no such file" in fails("file:///nowhere/a.png")


def test_a_turned_photograph_is_copied_once(tmp_path: Path, picture, monkeypatch):
    """Very large ones come turned too: beside what is decoded, one copy and not two."""
    exif = Image.Exif()
    exif[0x0112] = 8
    picture().save(tmp_path / "a.png", exif=exif)
    monkeypatch.setattr(images, "_to_rgb", lambda image: pytest.fail("a copy for the colours"))
    turned, _ = open_image(tmp_path / "a.png")
    assert turned.tobytes() == picture().transpose(Image.Transpose.ROTATE_90).tobytes()
    assert (turned.mode, turned.info) == ("RGB", {})
