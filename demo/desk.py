"""What the page asks of Python: find, thresholds, downloads. None of it raises: what is wrong is told on the page."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vlseg.types import VLSegError

from .files import download
from .models import Models
from .shot import Picture, Shot
from .view import alert, message, picture_url, stage
from .words import friendly, read_queries

log = logging.getLogger("vlseg.demo")


@dataclass(frozen=True, slots=True)
class Session:
    """What a visitor's last run left. turn: counts the runs; picture: data URL; loaded: seconds of loading models.

    wrong: why the last try gave nothing, or "". Written by `Desk.find` alone, so that a slider that is moved during a
    run does not put the old answers back.
    """

    turn: int = 0
    shots: tuple[Shot, ...] = ()
    picture: str = ""
    loaded: float = 0.0
    wrong: str = ""


class Desk:
    """The handlers of one page; they give what Gradio writes into their outputs.

    presence: the presence threshold for all models, or None for each one's own.
    """

    def __init__(self, models: Models, max_pixels: int) -> None:
        self.models, self.max_pixels = models, max_pixels

    def find(
        self,
        path: str | None,
        text: str | None,
        model: str | None,
        mode: Any,
        other: str | None,
        mask_threshold: float,
        session: Session | None,
    ) -> Session:
        """Runs the model, or two. Gives the session."""
        before = session or Session()

        def work() -> Session:
            picture, image = Picture.read(path, self.max_pixels)
            queries = read_queries(text)
            names = [model, other] if (other or "").strip() else [model]
            shots, loaded = [], 0.0
            for name in names:
                segmenter, seconds = self.models.get(name)
                loaded += seconds
                shots.append(Shot(segmenter, picture, image, queries, mode or "mask", mask_threshold))
            return Session(before.turn + 1, tuple(shots), picture_url(image, shots[0].view_size), loaded)

        return _guarded(work, lambda text: replace(before, wrong=text), path)

    def show(self, presence: float | None, mask_threshold: float, session: Session | None) -> tuple[Any, Any]:
        """What `find` left. Gives (stage, presence slider)."""
        if session is None:
            return gr.skip(), gr.skip()
        if session.wrong:
            return alert(session.wrong), gr.skip()

        def work() -> tuple[Any, Any]:
            slider = session.shots[0].own_threshold if presence is None else presence
            shown = stage(
                session.shots, presence, mask_threshold, session.turn, picture=session.picture, loaded=session.loaded
            )
            return shown, round(slider, 2)

        return _guarded(work, lambda text: (alert(text), gr.skip()))

    def adjust(self, presence: float | None, mask_threshold: float, session: Session | None) -> Any:
        """A slider was moved. Gives the stage; runs no model."""
        if session is None or not session.shots:
            return gr.skip()
        return _guarded(lambda: stage(session.shots, presence, mask_threshold, session.turn), alert)

    def choose(self, model: str | None) -> tuple[Any, ...]:
        """Another model. Loads it, and gives (presence: its own, slider, button for the own one, modes, stage)."""

        def work() -> tuple[Any, ...]:
            system = self.models.get(model)[0].system
            modes = gr.update(choices=list(system.modes), value=system.modes[0], visible=len(system.modes) > 1)
            own = round(system.presence_threshold, 2)
            return None, own, gr.update(visible=False), modes, message(ready=f"{system.name} is ready.")

        return _guarded(work, lambda text: (*[gr.skip()] * 4, alert(text)))

    def save(
        self, wanted: Any, presence: float | None, mask_threshold: float, session: Session | None
    ) -> tuple[Any, Any]:
        """A download. wanted: {"run", "kind", "shown"} from the page. Gives (courier, stage)."""

        def work() -> tuple[Any, Any]:
            if session is None or not session.shots:
                raise VLSegError("There is nothing to download yet: press Find first.")
            try:
                shot = session.shots[int(wanted["run"])]
                kind, shown = str(wanted["kind"]), [int(index) for index in wanted["shown"]]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise VLSegError("The page has asked for something that is not there; please reload it.") from error
            name, media, data = download(shot, kind, shown, presence, mask_threshold)
            return message(name=name, media=media, data=base64.b64encode(data).decode()), gr.skip()

        return _guarded(work, lambda text: (gr.skip(), alert(text)))


def _guarded(work: Callable[[], Any], otherwise: Callable[[str], Any], path: str | None = None) -> Any:
    """What `work` gives, or `otherwise` with a sentence on what went wrong; what nobody foresaw goes to the log."""
    try:
        return work()
    except Exception as error:
        if not isinstance(error, VLSegError):
            log.exception("a call of the page failed")
        return otherwise(friendly(error, path))
