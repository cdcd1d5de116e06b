"""The page in a real browser (headless Chromium): what a visitor does, and that nothing leaves this machine."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import urllib.parse
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vlseg.masks.svg import path_to_mask
from vlseg.types import Result

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.slow,  # minutes in a browser on two cores
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
]

WAIT = 90_000  # ms; two busy cores are slow
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Visitor:
    """One tab. Requests that leave this machine are refused and listed in `strayed`; errors of scripts in `broken`."""

    def __init__(self, browser, url: str, size: tuple[int, int] = (1280, 900), **options):
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self.strayed: list[str] = []
        self.broken: list[str] = []
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.broken.append(str(error)))
        self.page.on("console", lambda m: self.broken.append(m.text) if m.type == "error" else None)
        # Playwright turns the dialogue off when first listened for, and a key may come sooner than that has happened
        self.page.on("filechooser", lambda chooser: None)
        self.page.goto(url)
        for part in (".vs-empty", "#vp-image button", "#vp-opacity input >> nth=0", "#vp-examples button[aria-label]"):
            self.page.locator(part).first.wait_for()
        self.stage = self.page.locator("#vp-stage")

    def _route(self, route):
        host = urllib.parse.urlsplit(route.request.url).hostname
        if host in LOOPBACK or route.request.url.startswith(("data:", "blob:")):
            route.continue_()
        else:
            self.strayed.append(route.request.url)
            route.abort()

    def give(self, file: Path) -> None:
        """Upload a picture in place of the one that is there."""
        clear = self.page.locator("#vp-image button[aria-label='Clear'], #vp-image button[title='Clear']")
        if clear.count():
            clear.first.click()
        self.page.locator("#vp-image input[type=file]").set_input_files(str(file))
        self.page.locator("#vp-image img").wait_for(state="attached")

    def ask(self, *queries: str) -> None:
        self.page.get_by_label("What to find").fill("\n".join(queries))

    def find(self) -> None:
        """Press Find and wait for the answers."""
        self.page.get_by_role("button", name="Find").click()
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_function("!document.querySelector('#vp-stage .vs-busy')")
        self.page.locator(".vs-run").first.wait_for()

    def rows(self, run: int = 0) -> list[str]:
        return self.page.locator(".vs-run").nth(run).locator(".vs-row").all_inner_texts()

    def paths(self, run: int = 0) -> dict[int, str]:
        shapes = self.page.locator(".vs-run").nth(run).locator(".vs-shape")
        pairs = shapes.evaluate_all(
            "nodes => nodes.map(n => [n.dataset.query, n.querySelector('.vs-fill').getAttribute('d')])"
        )
        return {int(query): path for query, path in pairs}

    def slide(self, label: str, value: float) -> None:
        """A value typed into the number field of a slider."""
        field = self.page.get_by_label(f"number input for {label}")
        field.fill(str(value))
        field.press("Enter")

    def until(self, condition: str, argument=None) -> None:
        self.page.wait_for_function(condition, arg=argument)

    def download(self, name: str, run: int = 0) -> tuple[str, bytes]:
        with self.page.expect_download(timeout=WAIT) as waiting:
            self.page.locator(".vs-run").nth(run).get_by_role("button", name=name, exact=True).click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def alert(self) -> str:
        self.until("document.querySelector('.vs-alert').textContent !== ''")
        text = self.page.get_by_role("alert").filter(has_text=re.compile(".")).first.inner_text()
        assert "Traceback" not in text
        assert "/" not in text.replace("org/name", "")
        return text

    def leave(self) -> None:
        self.context.close()
        assert self.strayed == []
        assert self.broken == []


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser, server):
    visitor = Visitor(browser, server.url)
    yield visitor
    visitor.leave()


def masks_drawn(visitor: Visitor, run: int = 0) -> dict[int, np.ndarray]:
    return {query: path_to_mask(path, (120, 160)) for query, path in visitor.paths(run).items()}


def test_two_queries(visitor, segmenter, photo, queries, assert_foreground):
    direct = segmenter(photo, queries[:3])
    assert_foreground(direct)
    assert {answer.status for answer in direct} == {"found", "absent"}
    visitor.give(photo)
    visitor.ask(*queries[:3])
    visitor.find()
    for row, answer in zip(visitor.rows(), direct, strict=True):
        assert answer.text in row
        assert f"{answer.score:.2f}" in row
        assert ("not in the picture" in row) == (answer.status == "absent")
    drawn = masks_drawn(visitor)
    assert sorted(drawn) == [k for k, answer in enumerate(direct) if answer.status == "found"]
    for k, mask in drawn.items():
        assert np.array_equal(mask, direct[k].mask)
    status = visitor.page.get_by_role("status").filter(has_text="found").first
    assert status.get_attribute("aria-live") == "polite"
    absent = next(answer.text for answer in direct if answer.status == "absent")
    assert f"Not in the picture: {absent}" in status.inner_text()
    assert re.search(r"3 queries in \d+ ms|3 queries in \d", visitor.page.locator(".vs-timing").inner_text())


def test_sliders_act_without_a_new_run(visitor, segmenter, photo, queries):
    visitor.give(photo)
    visitor.ask(*queries)
    visitor.find()
    timing = visitor.page.locator(".vs-timing").inner_text()
    own = visitor.page.get_by_label("number input for Presence threshold").input_value()
    assert float(own) == pytest.approx(segmenter.system.presence_threshold, abs=0.005)
    visitor.slide("Presence threshold", 1)
    visitor.until("document.querySelectorAll('.vs-shape').length === 0")
    assert all("not in the picture" in row for row in visitor.rows())
    visitor.slide("Presence threshold", 0)
    visitor.until("document.querySelectorAll('.vs-shape').length === 5")
    for level in (0.3, 0.7):
        before = visitor.paths()
        visitor.slide("Mask threshold", level)
        visitor.until("d => document.querySelector('.vs-fill').getAttribute('d') !== d", before[0])
        direct = segmenter(photo, queries, 0.0, level)
        for k, mask in masks_drawn(visitor).items():
            assert 0.01 < mask.mean() < 0.99
            assert np.array_equal(mask, direct[k].mask)
    visitor.page.get_by_role("button", name="Use the model's own presence threshold").click()
    visitor.until("document.querySelectorAll('.vs-shape').length < 5")
    found = [k for k, answer in enumerate(segmenter(photo, queries)) if answer.status == "found"]
    assert sorted(visitor.paths()) == found
    visitor.slide("Opacity", 0.9)
    visitor.until("getComputedStyle(document.querySelector('.vs-fill')).fillOpacity === '0.9'")
    assert visitor.page.locator(".vs-timing").inner_text() == timing


def test_hide_show_and_hover(visitor, photo, queries):
    visitor.give(photo)
    visitor.ask(*queries)
    visitor.find()
    visitor.slide("Presence threshold", 0)
    visitor.until("document.querySelectorAll('.vs-shape').length === 5")
    row = visitor.page.get_by_role("button", name=queries[1])
    shape = visitor.page.locator(".vs-shape[data-query='1']")
    assert row.get_attribute("aria-pressed") == "true"
    row.click()
    assert row.get_attribute("aria-pressed") == "false"
    assert not shape.is_visible()
    visitor.slide("Mask threshold", 0.6)  # what is hidden stays hidden when all is drawn anew
    visitor.page.wait_for_timeout(1500)
    assert not shape.is_visible()
    row.click()
    assert shape.is_visible()
    # the last query's shape lies on top of the others
    x, y = visitor.page.locator(".vs-badge[data-query='4']").evaluate(
        """badge => {
            const box = badge.parentElement.getBoundingClientRect();
            const at = (side, length) => (parseFloat(badge.style[side]) / 100) * length;
            return [box.left + at("left", box.width), box.top + at("top", box.height)];
        }"""
    )
    visitor.page.mouse.move(x, y)
    tip = visitor.page.locator(".vs-tip.vs-on")
    tip.wait_for()
    assert re.fullmatch(re.escape(queries[4]) + r" \(\d\.\d\d\)", tip.inner_text())
    visitor.page.mouse.down()
    visitor.page.mouse.up()
    assert not visitor.page.locator(".vs-shape[data-query='4']").is_visible()
    assert visitor.page.get_by_role("button", name=queries[4]).get_attribute("aria-pressed") == "false"


def test_downloads_reopen(visitor, segmenter, photo, queries):
    direct = segmenter(photo, queries, 0.0, 0.45)
    visitor.give(photo)
    visitor.ask(*queries)
    visitor.find()
    visitor.slide("Presence threshold", 0)
    visitor.until("document.querySelectorAll('.vs-shape').length === 5")
    before = visitor.paths()
    visitor.slide("Mask threshold", 0.45)
    visitor.until("d => document.querySelector('.vs-fill').getAttribute('d') !== d", before[0])
    for hidden in (0, 3):
        visitor.page.get_by_role("button", name=queries[hidden]).click()
    shown = [1, 2, 4]
    union = np.any([direct[k].mask for k in shown], axis=0)
    assert 0.05 < union.mean() < 0.95

    name, data = visitor.download("JSON")
    assert name == "blocks.json"
    result = Result.from_dict(json.loads(data))
    for told, answer in zip(result, direct, strict=True):
        assert told.segments[0].rle == answer.segments[0].rle
        assert told.score == pytest.approx(answer.score, abs=1e-5)
    name, data = visitor.download("COCO RLE")
    rows = json.loads(data)
    assert name == "blocks.coco.json"
    assert [row["query"] for row in rows] == [queries[k] for k in shown]
    for row, k in zip(rows, shown, strict=True):
        assert np.array_equal(coco_mask.decode(row["segmentation"]).astype(bool), direct[k].mask)
    name, data = visitor.download("SVG")
    assert name == "blocks.svg"
    paths = [node.get("d") for node in ET.fromstring(data).iter("{http://www.w3.org/2000/svg}path")]
    for path, k in zip(paths, shown, strict=True):
        assert np.array_equal(path_to_mask(path, (120, 160)), direct[k].mask)
    name, data = visitor.download("Mask PNG")
    assert name == "blocks.mask.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), union * 255)
    name, data = visitor.download("Cut-out PNG")
    assert name == "blocks.cutout.png"
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels[..., 3], union * 255)
    assert np.array_equal(pixels[..., :3], np.asarray(Image.open(photo)))
    assert visitor.download("Cut-out PNG") == (name, data)  # the same once more


def choose(visitor: Visitor, label: str, text: str) -> None:
    box = visitor.page.get_by_role("combobox", name=label)
    box.click()
    box.fill(text)
    box.press("Enter")
    box.press("Tab")


def test_two_models_side_by_side(visitor, segmenter, photo, queries):
    visitor.give(photo)
    visitor.ask(*queries)
    choose(visitor, "Compare with", "vlseg-mini")
    visitor.find()
    runs = visitor.page.locator(".vs-run")
    assert runs.count() == 2
    assert [text.strip() for text in visitor.page.locator(".vs-model").all_inner_texts()] == [
        segmenter.name,
        "vlseg-mini",
    ]
    left, right = runs.nth(0).bounding_box(), runs.nth(1).bounding_box()
    assert right["x"] >= left["x"] + left["width"]
    visitor.slide("Presence threshold", 0)
    visitor.until("document.querySelectorAll('.vs-run')[0].querySelectorAll('.vs-shape').length === 5")
    direct = segmenter(photo, queries, 0.0)
    for k, mask in masks_drawn(visitor, 0).items():
        assert np.array_equal(mask, direct[k].mask)
    mini = json.loads(visitor.download("JSON", 1)[1])
    assert mini["model"] == "vlseg-mini"
    drawn = masks_drawn(visitor, 1)
    for k, mask in drawn.items():
        assert mini["answers"][k]["segments"][0]["area"] == mask.sum()
        overlap = (mask & direct[k].mask).sum() / (mask | direct[k].mask).sum()
        assert f"{overlap:.0%} overlap with the first" in visitor.rows(1)[k]
    # one model again
    choose(visitor, "Compare with", "no comparison")
    visitor.find()
    visitor.until("document.querySelectorAll('.vs-run').length === 1")


def blank_png(width: int, height: int) -> bytes:
    """A grey PNG of any size, of few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_errors_are_friendly(visitor, photo, queries, tmp_path):
    press = visitor.page.get_by_role("button", name="Find")
    press.click()
    assert "Add a picture first" in visitor.alert()
    visitor.give(photo)
    press.click()
    visitor.until("document.querySelector('.vs-alert').textContent.includes('what to look for')")
    visitor.ask(*queries[:2])
    whole = photo.read_bytes()
    cases = {
        "cut.png": (whole[: len(whole) // 2], "is broken"),
        "notes.png": (b"no picture at all", "is no picture"),
        "poster.png": (blank_png(7000, 6000), "7000 × 6000"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        visitor.give(tmp_path / name)
        press.click()
        visitor.until("w => document.querySelector('.vs-alert').textContent.includes(w)", words)
        assert visitor.alert().startswith(name)
    visitor.broken.clear()  # the browser says that it cannot show them, too
    visitor.give(photo)
    visitor.find()
    assert visitor.page.get_by_role("alert").filter(has_text=re.compile(".")).count() == 0
    choose(visitor, "Model", "vlsegmini")
    visitor.until("document.querySelector('.vs-alert').textContent.includes('did you mean vlseg-mini?')")
    assert "“vlsegmini” cannot be used" in visitor.alert()
    assert visitor.page.locator(".vs-run").count() == 1  # the last answers stay
    press.click()
    visitor.page.wait_for_timeout(500)
    visitor.until("!document.querySelector('#vp-stage .vs-busy')")
    assert "“vlsegmini” cannot be used" in visitor.alert()
    choose(visitor, "Model", "vlseg-mini")
    visitor.until("document.querySelector('.vs-status').textContent.includes('vlseg-mini is ready')")
    visitor.page.get_by_role("button", name=queries[0]).or_(visitor.page.locator(".vs-row").first).first.wait_for()
    visitor.slide("Presence threshold", 1)
    visitor.until("document.querySelectorAll('.vs-shape').length === 0")
    visitor.page.get_by_role("button", name="Mask PNG").click()
    assert "file would be empty" in visitor.alert()


def test_words_are_text_and_nothing_else(visitor, photo):
    evil = "<img src=x onerror=window.hacked=1> & ${1+1} {{2}} `x`"
    visitor.give(photo)
    visitor.ask(evil)
    visitor.find()
    assert evil in visitor.rows()[0]
    assert visitor.page.evaluate("window.hacked") is None


def test_an_example_on_a_phone(browser, server):
    visitor = Visitor(browser, server.url, (390, 844), has_touch=True, is_mobile=True)
    page = visitor.page
    page.locator("#vp-examples button").first.tap()
    visitor.until("document.querySelector('#vp-queries textarea').value.includes('peacock')")
    page.get_by_role("button", name="Find").tap()
    visitor.settle()
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture = page.locator(".vs-picture").bounding_box()
    assert picture["y"] + picture["height"] < 844  # brought into view, together with the sliders
    assert page.locator("#vp-presence").bounding_box()["y"] >= -1
    boxes = page.locator("#vp-find, .vs-toggle, .vs-button").evaluate_all(
        "nodes => nodes.map(n => n.getBoundingClientRect()).map(r => [r.left, r.right, r.height])"
    )
    queries = page.get_by_label("What to find").input_value().splitlines()
    assert len(boxes) == len(queries) + 6  # Find and five downloads
    for left, right, height in boxes:
        assert left >= 0
        assert right <= 390
        assert height >= 44
    assert len(visitor.rows()) == len(queries)
    visitor.leave()


def test_keyboard_alone(visitor, segmenter, photo, queries):
    page = visitor.page

    def tab_to(selector: str, most: int = 40) -> None:
        for _ in range(most):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            page.keyboard.press("Tab")
        pytest.fail(f"Tab does not reach {selector}")

    tab_to("#vp-image button")
    with page.expect_file_chooser() as waiting:
        page.keyboard.press("Enter")
    waiting.value.set_files(str(photo))
    page.locator("#vp-image img").wait_for(state="attached")
    tab_to("#vp-queries textarea")
    page.keyboard.type("\n".join(queries))
    page.keyboard.press("Shift+Enter")
    visitor.settle()
    tab_to("#vp-find")
    tab_to("button.vs-toggle")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    query = page.evaluate("document.activeElement.dataset.query")
    shape = page.locator(f".vs-shape[data-query='{query}']")
    page.keyboard.press("Space")
    assert not shape.is_visible()
    page.keyboard.press("Enter")
    assert shape.is_visible()
    tab_to(".vs-button")
    with page.expect_download() as saving:
        page.keyboard.press("Enter")
    assert saving.value.suggested_filename == "blocks.json"
    tab_to("#vp-presence input")
    tab_to("#vp-level input[type=range]")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    level = float(page.get_by_label("number input for Mask threshold").input_value())
    assert level == pytest.approx(0.7)
    first = next(answer for answer in segmenter(photo, queries, None, level) if answer.segments)
    visitor.until("d => document.querySelector('.vs-fill').getAttribute('d') === d", first.segments[0].path)


def test_everything_has_a_name(visitor, photo, queries):
    """Whatever can be focused says what it is: text, aria-label, or a label for it."""
    visitor.give(photo)
    visitor.ask(*queries)
    visitor.find()
    nameless = visitor.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, select, a[href], [tabindex="0"]')]
            .filter(n => n.offsetParent !== null)
            .filter(n => !(n.innerText || n.getAttribute('aria-label') || n.title || (n.labels && n.labels.length)
                           || n.getAttribute('aria-labelledby')
                           || n.querySelector('[aria-label], img[alt]:not([alt=""])')))
            .map(n => n.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert visitor.page.evaluate("document.documentElement.lang") == "en"
    assert visitor.page.locator("h1").count() == 1
    image = visitor.page.locator(".vs-picture svg")
    assert image.get_attribute("role") == "img"
    assert image.get_attribute("aria-label").startswith("blocks.png, with the outlines of ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(browser, server, photo, queries, scheme):
    """Contrast of at least 4.5 : 1 (WCAG 2.1, AA) between text and what lies behind it."""
    visitor = Visitor(browser, server.url, color_scheme=scheme)
    visitor.give(photo)
    visitor.ask(*queries)
    visitor.find()
    pale = visitor.page.evaluate(CONTRAST)
    dark = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
    visitor.leave()
    assert pale["looked_at"] > 20
    assert pale["wrong"] == []


CONTRAST = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => {
    const [r, g, b] = c.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const c = rgb(getComputedStyle(n).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const wrong = [];
  let looked_at = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility({ visibilityProperty: true })) continue;
    if (['SCRIPT', 'STYLE'].includes(node.tagName) || node.closest('.vs-unseen')) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color).slice(0, 3)), light(behind(node))].sort((x, y) => y - x);
    looked_at += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) wrong.push([walker.currentNode.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
  }
  return { looked_at, wrong };
}"""


def test_visitors_do_not_meet(browser, server, segmenter, photo, picture, queries, tmp_path):
    other_photo = tmp_path / "others.png"
    picture(2).save(other_photo)
    first, second = Visitor(browser, server.url), Visitor(browser, server.url)
    for visitor, file in ((first, photo), (second, other_photo)):
        visitor.give(file)
    first.ask(*queries)
    first.find()
    assert second.page.locator(".vs-run").count() == 0
    assert second.page.locator(".vs-empty").is_visible()
    second.ask(queries[0])
    second.find()
    second.slide("Presence threshold", 0)
    second.until("document.querySelectorAll('.vs-shape').length === 1")
    for visitor, file, count in ((first, photo, 5), (second, other_photo, 1)):
        name, data = visitor.download("JSON")
        told = json.loads(data)
        assert name == file.with_suffix(".json").name
        assert len(told["answers"]) == count
    direct = segmenter(photo, queries)
    assert sorted(first.paths()) == [k for k, answer in enumerate(direct) if answer.status == "found"]
    assert np.array_equal(masks_drawn(second)[0], segmenter(other_photo, queries[0], 0.0)[0].mask)
    first.leave()
    second.leave()


def test_the_server_stayed_at_home(server):
    """Runs last: after all of the above."""
    assert server.process.poll() is None
    assert server.noted.read_text() == ""
    assert not any("Traceback" in line for line in server.log), "".join(server.log)
    kept = [path for path in server.temporary.rglob("*") if path.is_file()]
    assert all(os.path.commonpath([path, server.temporary]) == str(server.temporary) for path in kept)
