"""Pictures: what is coloured, what is left alone, and text that never raises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from vlseg.masks import lettering, palette
from vlseg.masks import rle as codec
from vlseg.masks.drawing import mask_png, overlay
from vlseg.masks.svg import path_data
from vlseg.types import Answer, Result, Segment, VLSegError


def found(text: str, mask: np.ndarray, score: float | None = 0.9) -> Answer:
    rle = codec.encode(mask)
    return Answer(
        text, "found", score, mask.shape, None, [Segment(0.9, codec.bbox(rle), codec.area(rle), rle, path_data(mask))]
    )


def box(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


GREY = (120, 120, 120)


def test_fill_contour_and_untouched_background():
    mask = box((100, 120), 30, 40, 70, 90)
    result = Result("x", (100, 120), "m", [found("a", mask)])
    image = Image.new("RGB", (120, 100), GREY)
    out = np.asarray(overlay(image, result, opacity=0.5, labels=False))
    paint = np.array(palette.color(0))
    np.testing.assert_allclose(out[50, 60], (paint + 120) / 2, atol=1)
    np.testing.assert_array_equal(out[30, 50], paint)
    np.testing.assert_array_equal(out[31, 50], paint)
    assert (out[32, 50] != paint).any(), "the contour is 2 px wide"
    changed = (out != 120).any(axis=-1)
    assert (changed & ~box((100, 120), 29, 39, 71, 91)).sum() == 0
    assert np.asarray(image)[50, 60].tolist() == list(GREY), "the input was drawn on"


def test_plates_and_captions_only_where_asked():
    mask = box((200, 240), 90, 80, 150, 190)
    answers = [found("the mug", mask), Answer("the zebra", "absent", 0.1, (200, 240))]
    result = Result("x", (200, 240), "m", answers)
    image = Image.new("RGB", (240, 200), GREY)
    plain = np.asarray(overlay(image, result, labels=False, captions=False))
    labelled = np.asarray(overlay(image, result, captions=False))
    captioned = np.asarray(overlay(image, result, labels=False))
    assert (labelled != plain)[60:90].any()
    assert not (labelled != plain)[160:].any()
    assert (captioned != plain)[185:].any()
    assert not (captioned != plain)[:160].any()


def test_plates_do_not_cover_each_other():
    size = (300, 300)
    masks = [box(size, 100, 100, 200, 200)] * 4
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    image = Image.new("RGB", (300, 300), GREY)
    answers = [found(f"same place {i}", m) for i, m in enumerate(masks)]
    out = np.asarray(overlay(image, Result("x", size, "m", answers), 0.0, contours=False, colors=colors))
    counts = [int((out == c).all(axis=-1).sum()) for c in colors]
    assert min(counts) > 0.7 * max(counts)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (24, 24), (256, 256), (200, 9)])
@pytest.mark.parametrize(
    "text",
    ["", "the mug", "x" * 3000, "左边的猫 и собака", "شير", "🦓👩‍🚀", "a\nb\tc\x00\u202e", "\ud800 alone", "e\u0301"],
)
def test_any_text_on_any_size(size: tuple[int, int], text: str):
    mask = np.ones(size, dtype=bool)
    answers = [
        found(text, mask, None),
        found(text, mask),
        Answer(text, "absent", 0.2, size),
        Answer(text, "failed", None, size, text),
        Answer(text, "failed", None, size),
    ]
    out = overlay(Image.new("L", size[::-1]), Result("x", size, "m", answers))
    assert out.size == size[::-1]
    assert out.mode == "RGB"


def test_wrong_size_and_opacity():
    result = Result("x", (10, 20), "m", [])
    with pytest.raises(VLSegError, match=r"20 x 10 \(H x W\), the result 10 x 20"):
        overlay(Image.new("RGB", (10, 20)), result)
    with pytest.raises(VLSegError, match="opacity"):
        overlay(Image.new("RGB", (20, 10)), result, opacity=2)


def test_mask_png():
    mask = box((5, 6), 1, 2, 3, 4)
    picture = mask_png(mask)
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), mask * 255)
    with pytest.raises(VLSegError):
        mask_png(np.zeros((2, 2)))


def test_palette():
    colors = [palette.color(i) for i in range(24)]
    assert len(set(colors)) == 24
    distances = [np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(colors[:8], 2)]
    assert min(distances) > 60
    for color in colors:
        levels = sorted([palette.luminance(color), palette.luminance(palette.text_color(color))])
        assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 4.5, "WCAG AA"
    assert palette.hexadecimal((255, 0, 16)) == "#ff0010"


def test_cutting():
    font = lettering.font_for("the mug", 14)
    assert lettering.cut("the mug", font, 1000) == "the mug"
    short = lettering.cut("the mug on the left", font, 60)
    assert short.endswith("…")
    assert lettering.width(short, font) <= 60
    assert lettering.cut("the mug", font, 0) == "…"
    assert lettering.clean(" a\n b\x00\u202e ") == "a b"
