"""Colours for answers: well apart from each other, for the colour-blind too, and the text that is legible on them."""

from __future__ import annotations

import colorsys

RGB = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), brightened where they vanish on photographs, the strongest first;
# its black, which is lost in shadows, replaced by a light violet.
_FIRST: tuple[RGB, ...] = (
    (230, 92, 0),
    (38, 140, 230),
    (0, 178, 120),
    (240, 228, 66),
    (214, 96, 172),
    (96, 205, 240),
    (245, 170, 30),
    (160, 120, 255),
)


def color(index: int) -> RGB:
    """The colour of answer ``index`` (>= 0), 0-255 each: eight fixed ones, then as many as are asked for."""
    if index < len(_FIRST):
        return _FIRST[index]
    # Steps of the golden angle never repeat a hue; lightness in three levels keeps neighbours apart for all eyes.
    extra = index - len(_FIRST)
    red, green, blue = colorsys.hls_to_rgb((0.08 + 0.61803398875 * extra) % 1.0, (0.45, 0.68, 0.56)[extra % 3], 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def luminance(rgb: RGB) -> float:
    """Relative luminance in 0-1 (WCAG 2.1)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_color(background: RGB) -> RGB:
    """Black or white, whichever has the greater contrast (WCAG 2.1) on ``background``."""
    level = luminance(background)
    return (0, 0, 0) if (level + 0.05) / 0.05 >= 1.05 / (level + 0.05) else (255, 255, 255)


def hexadecimal(rgb: RGB) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
