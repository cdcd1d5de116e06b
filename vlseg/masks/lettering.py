"""Text for pictures: fonts that have the letters, cleaning, cutting to a width. Nothing here raises on odd text."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# By file name, as Pillow finds them in the system's font folders; the first that has every letter of a text wins.
# None stands for the font inside Pillow, which has Latin letters only but is always there.
_CANDIDATES = (
    "DejaVuSans.ttf",
    None,
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansDevanagari-Regular.ttf",
    "WenQuanYi Zen Hei.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "arial.ttf",
)
# A code point that no font maps: what is drawn like it is a missing letter.
_MISSING = "\ufffe"


def clean(text: str) -> str:
    """One line without control and formatting characters; lone surrogates, which no font draws, become U+FFFD."""
    text = " ".join(str(text).split())
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text if unicodedata.category(c) not in _HIDDEN)


_HIDDEN = ("Cc", "Cf")


def font_for(text: str, size: int) -> Font:
    """The first known font, at ``size`` pixels, that has all letters of ``text``, else the one that lacks fewest."""
    return _font(min(_CANDIDATES, key=lambda name: _lacking(name, text)), size)


def width(text: str, font: Font) -> float:
    """Advance of the text in pixels."""
    return float(font.getlength(text))


def cut(text: str, font: Font, limit: float) -> str:
    """``text``, or its longest beginning with "…" behind it, in at most ``limit`` pixels; "…" where nothing fits."""
    if width(text, font) <= limit:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width(text[:middle].rstrip() + "…", font) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


@lru_cache(maxsize=64)
def _font(name: str | None, size: int) -> Font:
    if name is not None:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            # Not on this machine: the built-in font stands in (`_lacking` ranks it by the letters it has).
            pass
    return ImageFont.load_default(size)


@lru_cache(maxsize=1024)
def _lacking(name: str | None, text: str) -> int:
    # Very long texts are cut before they are drawn; their beginning decides.
    return sum(not _has(name, c) for c in set(text[:200]) if not c.isspace())


@lru_cache(maxsize=4096)
def _has(name: str | None, character: str) -> bool:
    font = _font(name, 16)
    return bytes(font.getmask(character)) != bytes(font.getmask(_MISSING))
