"""What a run tells: metrics.jsonl, TensorBoard, other trackers, a progress bar, lines on stderr. Main process only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlseg.config import to_dict
from vlseg.data.files import whole_file
from vlseg.training.checkpoint import append_line
from vlseg.training.config import TrainConfig
from vlseg.training.storage import unwritten


class Journal:
    """The log of one run. main: whether this process speaks; on others nothing happens.

    accelerator: whose trackers are told too, where it has any.
    """

    def __init__(self, out: Path, main: bool, accelerator: Any = None):
        self.out, self.main, self.accelerator = out, main, accelerator
        self.board: Any = None
        self.bar: Any = None
        self.lost: set[str] = set()  # what could not be written, as far as it was told

    def open(self, first: int, config: TrainConfig) -> None:
        """Begin to log a run that has done `first` steps."""
        if self.main and "tensorboard" in config.trackers:
            from torch.utils.tensorboard import SummaryWriter

            with self.going_on("tensorboard"):  # what a run that was killed told of later steps goes
                self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=first + 1 if first else None)
        if self.accelerator is not None and set(config.trackers) - {"tensorboard"}:
            self.accelerator.init_trackers("vlseg", flattened(to_dict(config)))
        quiet = not (self.main and sys.stderr.isatty())
        self.bar = tqdm(total=config.steps, initial=first, unit="step", disable=quiet)

    def say(self, text: str) -> None:
        """One line on stderr, without breaking a progress bar."""
        if self.main:
            with contextlib.suppress(OSError):  # a log file on a full disk: nobody is left to tell
                tqdm.write(text, file=sys.stderr)

    @contextlib.contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Around the writing of something that a run can do without: that it failed is told once, and the run goes on.

        what: its name. Errors of other kinds are raised (see `storage.unwritten`).
        """
        try:
            yield
        except Exception as error:
            reason = unwritten(error)
            if reason is None:
                raise
            if what not in self.lost:
                self.lost.add(what)
                self.say(f"{self.out / what}: cannot be written ({reason}); going on without")

    def on_board(self, work: Callable[[Any], Any]) -> None:
        """`work` with TensorBoard's writer, where there is one; one that has failed stays broken, and is dropped."""
        board, self.board = self.board, None
        if board is not None:
            with self.going_on("tensorboard"):
                work(board)
                self.board = board

    def write(self, record: dict[str, Any]) -> None:
        """One record, with its "step", to all; nested ones such as "val" are flattened but in metrics.jsonl."""
        if not self.main:
            return
        with self.going_on("metrics.jsonl"):
            append_line(self.out / "metrics.jsonl", record)
        flat = flattened(record)
        step = flat.pop("step")
        self.on_board(lambda board: [board.add_scalar(key, value, step) for key, value in flat.items()])
        if self.accelerator is not None and self.accelerator.trackers:
            with self.going_on("trackers"):
                self.accelerator.log(flat, step=step)
        if not sys.stderr.isatty():
            shown = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in flat.items()}
            self.say(f"step={step} " + " ".join(f"{k}={v}" for k, v in shown.items()))

    def picture(self, name: str, image: Any, step: int) -> None:
        """A PIL image as `name/step-N.png`, and to TensorBoard."""
        with self.going_on(name):
            folder = self.out / name
            folder.mkdir(exist_ok=True)
            with whole_file(folder / f"step-{step}.png") as file:
                image.save(file, "PNG")
        self.on_board(lambda board: board.add_image(name, np.asarray(image), step, dataformats="HWC"))

    def advance(self, note: str | None = None) -> None:
        """A step is done."""
        self.bar.update()
        if note:
            self.bar.set_postfix_str(note)

    def close(self) -> None:
        """The end of the run."""
        if self.bar is not None:
            self.bar.close()
        self.on_board(lambda board: board.close())
        if self.accelerator is not None and self.accelerator.trackers:
            with self.going_on("trackers"):
                self.accelerator.end_training()


def flattened(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"val": {"mIoU": 0.5}} to {"val/mIoU": 0.5}."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        flat.update(flattened(value, f"{name}/") if isinstance(value, dict) else {name: value})
    return flat


def summarised(recent: Sequence[tuple[str, dict[str, float]]], mixed: bool) -> dict[str, Any]:
    """Means of the records of several steps, and the loss of each data set. recent: (data set, record) of each."""
    names = list(dict.fromkeys(name for _, record in recent for name in record))
    values = {name: [record[name] for _, record in recent if name in record] for name in names}
    out: dict[str, Any] = {name: round(sum(found) / len(found), 5) for name, found in values.items()}
    if mixed:
        sources = sorted({source for source, _ in recent})
        losses = {s: [record["loss"] for source, record in recent if source == s] for s in sources}
        out["loss_of"] = {s: round(sum(found) / len(found), 5) for s, found in losses.items()}
    return out
