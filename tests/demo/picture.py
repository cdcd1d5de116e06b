"""Makes docs/images/demo.png: the first example on a running demo, as a desktop shows it.

vlseg demo &
python tests/demo/picture.py http://127.0.0.1:7860 docs/images/demo.png [PRESENCE]
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

COLOURS = 256  # a palette keeps the file below 300 kB


def main(url: str, file: str, presence: str | None = None) -> None:
    """Saves the picture. presence: a presence threshold to set, instead of the model's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 680})
        page.goto(url)
        page.locator("#vp-examples button").first.click()
        page.locator("#vp-image img").wait_for()
        for turn in range(3):  # the time of a model that is warm
            page.get_by_role("button", name="Find").click()
            page.wait_for_timeout(4000 if turn else 8000)
        if presence is not None:
            field = page.get_by_label("number input for Presence threshold")
            field.fill(presence)
            field.press("Enter")
            page.wait_for_timeout(2000)
        page.mouse.move(2, 2)
        page.evaluate("document.activeElement.blur()")
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    image.quantize(COLOURS, kmeans=3, dither=Image.Dither.FLOYDSTEINBERG).save(Path(file), optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
