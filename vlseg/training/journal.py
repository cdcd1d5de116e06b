"""What a run tells: metrics.jsonl, TensorBoard, other trackers, a progress bar, lines on stderr. Main process only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlseg.config import to_dict
from vlseg.training.checkpoint import append_line
from vlseg.training.config import TrainConfig


class Journal:
    """The log of one run. main: whether this process speaks; on others nothing happens.

    accelerator: whose trackers are told too, where it has any.
    """

    def __init__(self, out: Path, main: bool, accelerator: Any = None):
        self.out, self.main, self.accelerator = out, main, accelerator
        self.board: Any = None
        self.bar: Any = None

    def open(self, first: int, config: TrainConfig) -> None:
        """Begin to log a run that has done `first` steps."""
        if self.main and "tensorboard" in config.trackers:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.out / "tensorboard"))
        if self.accelerator is not None and set(config.trackers) - {"tensorboard"}:
            self.accelerator.init_trackers("vlseg", flattened(to_dict(config)))
        quiet = not (self.main and sys.stderr.isatty())
        self.bar = tqdm(total=config.steps, initial=first, unit="step", disable=quiet)

    def say(self, text: str) -> None:
        """One line on stderr, without breaking a progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def write(self, record: dict[str, Any]) -> None:
        """One record, with its "step", to all; nested ones such as "val" are flattened but in metrics.jsonl."""
        if not self.main:
            return
        append_line(self.out / "metrics.jsonl", record)
        flat = flattened(record)
        step = flat.pop("step")
        for key, value in flat.items():
            if self.board:
                self.board.add_scalar(key, value, step)
        if self.accelerator is not None and self.accelerator.trackers:
            self.accelerator.log(flat, step=step)
        if not sys.stderr.isatty():
            shown = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in flat.items()}
            print(f"step={step} " + " ".join(f"{k}={v}" for k, v in shown.items()), file=sys.stderr, flush=True)

    def picture(self, name: str, image: Any, step: int) -> None:
        """A PIL image as `name/step-N.png`, and to TensorBoard."""
        folder = self.out / name
        folder.mkdir(exist_ok=True)
        image.save(folder / f"step-{step}.png")
        if self.board:
            self.board.add_image(name, np.asarray(image), step, dataformats="HWC")

    def advance(self, note: str | None = None) -> None:
        """A step is done."""
        self.bar.update()
        if note:
            self.bar.set_postfix_str(note)

    def close(self) -> None:
        """The end of the run."""
        if self.bar is not None:
            self.bar.close()
        if self.board:
            self.board.close()
        if self.accelerator is not None and self.accelerator.trackers:
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
