"""The page: what stands where, and what leads to what."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from vlseg.systems.registry import EMBEDDED

from .desk import Desk, Session
from .examples import examples
from .models import Models

STATIC = Path(__file__).resolve().parent / "static"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")
OPACITY = 0.45
KEEP = 3600  # seconds that an upload and a session's answers are kept
SWEEP = 600  # seconds between looks for uploads that are older
BUSY = "() => { window.dispatchEvent(new Event('vlseg-busy')); }"
OPAQUE = "(value) => { window.dispatchEvent(new CustomEvent('vlseg-opacity', { detail: value })); }"
# Gradio's buttons of examples hold a picture and no words, and come a little after the page.
NAME_EXAMPLES = """(names) => {
  const name = () => {
    const buttons = document.querySelectorAll("#vp-examples button.gallery-item");
    buttons.forEach((button, at) => button.setAttribute("aria-label", names[at]));
    if (buttons.length < names.length) setTimeout(name, 200);
  };
  name();
}"""


def theme() -> gr.themes.Base:
    """Calm and legible, fonts of the visitor's machine."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.zinc, font=FONTS, font_mono=MONO
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="1px",
        block_radius="12px",
        button_large_radius="10px",
        button_primary_background_fill="#1d4ed8",
        button_primary_background_fill_hover="#1e40af",
        button_primary_background_fill_dark="#2563eb",
        button_primary_background_fill_hover_dark="#1d4ed8",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        # the defaults are too pale for small text
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def build(desk: Desk) -> gr.Blocks:
    """The page for these handlers, not yet launched."""
    with gr.Blocks(title="vlseg: words in, masks out", analytics_enabled=False, delete_cache=(SWEEP, KEEP)) as page:
        gr.HTML('<div class="vp-title"><h1>vlseg</h1><p>Words in, masks out.</p></div>', elem_id="vp-title")
        first = desk.models.get(desk.models.names[0])[0].system
        parts = SimpleNamespace(session=gr.State(None, time_to_live=KEEP), presence=gr.State(None))
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                _ask(parts, desk.models, first.modes)
            with gr.Column(scale=9, min_width=320):
                _answer(parts, round(first.presence_threshold, 2))
        _wire(parts, desk)
        names = json.dumps([f"Example: {file.stem}" for file, _ in examples()])
        page.load(None, js=f"() => {{ ({NAME_EXAMPLES})({names}); }}", api_visibility="private")
    return page


def _ask(parts: SimpleNamespace, models: Models, modes: tuple[str, ...]) -> None:
    """Picture, queries, examples, models."""
    parts.image = _image()
    parts.queries = gr.Textbox(
        label="What to find",
        info="One thing a line. Shift + Enter starts.",
        placeholder="the red mug\nthe dog on the left",
        lines=4,
        max_lines=10,
        elem_id="vp-queries",
    )
    parts.find = gr.Button("Find", variant="primary", size="lg", elem_id="vp-find")
    samples = [[str(file), text] for file, text in examples()]
    if samples:
        gr.Examples(
            samples,
            [parts.image, parts.queries],
            cache_examples=False,
            visible_columns=[0],
            api_visibility="private",
            elem_id="vp-examples",
        )
    hint = "Or type the folder of a checkpoint, or org/name. " if models.typed else ""
    note = f"{EMBEDDED} knows drawn scenes, not photographs." if EMBEDDED in models.names else ""
    named: dict[str, Any] = {"allow_custom_value": models.typed}
    parts.model = gr.Dropdown(
        models.names, value=models.names[0], label="Model", info=hint + note, elem_id="vp-model", **named
    )
    none = [("no comparison", "")]
    both = [*none, *((name, name) for name in models.names)]
    parts.other = gr.Dropdown(both, value="", label="Compare with", elem_id="vp-other", **named)
    parts.mode = gr.Radio(list(modes), value=modes[0], label="Answers as", visible=len(modes) > 1, elem_id="vp-mode")


def _answer(parts: SimpleNamespace, threshold: float) -> None:
    """The stage, and above it, in sight of the picture, what acts on it."""
    look: dict[str, Any] = {"step": 0.01, "buttons": [], "min_width": 220}
    with gr.Row(elem_id="vp-dials"):
        parts.slider = gr.Slider(
            0, 1, threshold, label="Presence threshold", info="found from this score on", elem_id="vp-presence", **look
        )
        parts.level = gr.Slider(
            0.05, 0.95, 0.5, label="Mask threshold", info="inside above this probability", elem_id="vp-level", **look
        )
        parts.opacity = gr.Slider(0, 1, OPACITY, label="Opacity", info="of the fill", elem_id="vp-opacity", **look)
    parts.own = gr.Button(
        "Use the model's own presence threshold", size="sm", min_width=0, visible=False, elem_id="vp-own"
    )
    parts.stage = gr.HTML(
        value=None,
        html_template=_static("stage.html"),
        js_on_load=_static("stage.js"),
        apply_default_css=False,
        elem_id="vp-stage",
    )
    parts.courier = gr.HTML(
        value=None, html_template="<div></div>", js_on_load=_static("courier.js"), elem_id="vp-courier"
    )


def _wire(parts: SimpleNamespace, desk: Desk) -> None:
    """What leads to what. One run at a time, whoever asks; what runs no model does not wait for it."""
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    heavy: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", **quiet}
    light: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "page", **quiet}
    at = [parts.presence, parts.level, parts.session]
    asked = [parts.image, parts.queries, parts.model, parts.mode, parts.other, parts.level, parts.session]
    for start in (parts.find.click, parts.queries.submit):
        start(None, js=BUSY, **quiet)
        start(desk.find, asked, parts.session, **heavy).then(desk.show, at, [parts.stage, parts.slider], **light)
    parts.model.input(
        desk.choose, parts.model, [parts.presence, parts.slider, parts.own, parts.mode, parts.stage], **heavy
    )
    parts.slider.input(
        lambda value, level, session: (value, gr.update(visible=True), desk.adjust(value, level, session)),
        [parts.slider, parts.level, parts.session],
        [parts.presence, parts.own, parts.stage],
        trigger_mode="always_last",
        **light,
    )
    parts.level.input(desk.adjust, at, parts.stage, trigger_mode="always_last", **light)
    parts.own.click(lambda: (None, gr.update(visible=False)), None, [parts.presence, parts.own], **light).then(
        desk.show, at, [parts.stage, parts.slider], **light
    )
    parts.opacity.input(None, parts.opacity, js=OPAQUE, **quiet)

    def save(presence: float | None, level: float, session: Session | None, event: gr.EventData) -> tuple[Any, Any]:
        return desk.save(event._data, presence, level, session)

    parts.stage.save(save, at, [parts.courier, parts.stage], **light)


def _image() -> gr.Image:
    image = gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        height=260,
        buttons=["fullscreen"],
        alt_text="The picture to look at",
        elem_id="vp-image",
    )
    # Gradio would open the file itself, and meet a broken one with a traceback; ours says what is wrong with it. It has
    # made sure that the path is one of its own uploads. (A subclass would have a .pyi file written beside it.)
    image.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign]
    return image


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
