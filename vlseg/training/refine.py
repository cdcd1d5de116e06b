"""Train the refiner: `python -m vlseg.training.refine out=runs/refiner a.b=c ...`, settings as in `RefineTraining`.

    python -m vlseg.training.refine out=runs/refiner start=vlseg/weights/vlseg-mini
    python -m vlseg.training.refine rollouts out=runs/rollouts model=FOLDER mode=path     its own masks as examples
    python -m vlseg.training.refine out=runs/refiner rollouts=[runs/rollouts]

Killed at any instant, the same command goes on from the last whole checkpoint and reaches the same weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlseg.config import describe, dump_yaml, load, to_dict
from vlseg.data.files import write_whole
from vlseg.losses.refine import iou_of, refine_loss
from vlseg.models.cpu_speed import prefer_float32_depthwise
from vlseg.models.refiner import Refiner, RefinerConfig, start_trunk
from vlseg.systems.devices import pick_device
from vlseg.training.checkpoint import Ema, append_line, drop_lines_after, load_newest, save
from vlseg.training.config import OptimSection
from vlseg.training.optimizer import build_optimizer
from vlseg.training.refine_examples import Example, crops, load_examples, rollouts, save_examples, scene_examples
from vlseg.training.schedule import rate
from vlseg.types import VLSegError

VALIDATION_SEED = 905_001
CHECKED = 64  # examples of a validation


def _optim() -> OptimSection:
    return OptimSection(lr=1e-3, matrix_lr=5e-3, weight_decay=0.03, warmup=50, schedule="constant-decay", decay=0.4)


@dataclass
class RefineTraining:
    """A run, on the first GPU where there is one.

    start: folder of a refiner of this shape, or of a `VLSegModel` with the same tower, whose trunk is taken; "": random
    weights.
    batch: crops a step; sizes: sides in pixels of the crops, one drawn a step; iterations: how many are run, one number
    drawn a step. rollouts: folders of examples that `rollouts` has written, rollout_share: theirs of every batch.
    """

    out: str = "runs/refiner"
    start: str = ""
    seed: int = 11
    steps: int = 2000
    batch: int = 24
    sizes: list[int] = field(default_factory=lambda: [96, 128])
    iterations: list[int] = field(default_factory=lambda: [1, 2, 2, 3])
    rollouts: list[str] = field(default_factory=list)
    rollout_share: float = 0.25
    bfloat16: bool = True
    threads: int = 0
    log_every: int = 20
    eval_every: int = 200
    save_every: int = 100
    model: RefinerConfig = field(default_factory=RefinerConfig)
    optim: OptimSection = field(default_factory=_optim)


@dataclass
class RolloutRun:
    """Roll-outs to write. data: as of `vlseg data info`; model: folder of a checkpoint, or a name.

    temperature: above 0, with mode=path, paths are drawn at it, which depends on the seed; 0: the likeliest ones.
    """

    out: str = "runs/rollouts"
    model: str = "vlseg-mini"
    mode: str = "mask"
    temperature: float = 0.0
    seed: int = 0
    data: str = "sprites?n=200&seed=12&size=256x256&queries=8"


class RefinerTrainer:
    """One run, from the last whole checkpoint in `config.out` to `config.steps`. A step sees what its number says."""

    def __init__(self, config: RefineTraining):
        if min(config.sizes) < 32 or any(size % 16 for size in config.sizes):
            raise VLSegError(f"sizes={config.sizes}: sides of crops are multiples of 16, from 32 on")
        self.config, self.out = config, Path(config.out)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = Refiner(config.model)
        if config.start:
            _begin(self.model, Path(config.start))
        prefer_float32_depthwise(self.model)
        self.model.to(pick_device(None)).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.ema = Ema(self.model.parameters(), config.optim.ema)
        self.pool = [example for folder in config.rollouts for example in load_examples(Path(folder))]
        self.step = 0

    def examples(self, step: int) -> list[Example]:
        """The examples of a step: roll-outs first, then objects of scenes that no other step shows."""
        config, found = self.config, []
        if self.pool:
            random = np.random.default_rng((config.seed, step, 1))
            count = round(config.batch * config.rollout_share)
            found = [self.pool[i] for i in random.integers(len(self.pool), size=count)]
        return found + scene_examples(config.seed, step * config.batch, config.batch - len(found))

    def train_step(self) -> dict[str, float]:
        """One optimizer step; what to log of it."""
        config, random = self.config, np.random.default_rng((self.config.seed, self.step, 2))
        at = replace(config.model, size=int(random.choice(config.sizes)))
        iterations = int(random.choice(config.iterations))
        pixels, coarse, truth = (part.to(self.model.device) for part in crops(self.examples(self.step), at, random))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.model.train()
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=config.bfloat16):
            steps = self.model(pixels, coarse, iterations)
        losses = refine_loss([(step.logits, step.iou) for step in steps], truth)
        losses["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        if not torch.isfinite(norm):
            raise VLSegError(f"step {self.step}: the gradient is no number; lower optim.lr and optim.matrix_lr")
        factor = rate(self.step, config.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.step += 1
        before = iou_of(coarse - 0.5, truth).mean()
        return {**{key: float(value.detach()) for key, value in losses.items()}, "coarse": float(before)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean IoU, in cells of the crop, of unseen examples: coarse, and after 1, 2, 3 iterations of the averaged
        weights."""
        examples = scene_examples(VALIDATION_SEED, 0, CHECKED, size=(256, 256))
        pixels, coarse, truth = (part.to(self.model.device) for part in crops(examples, self.config.model))
        self.model.eval()
        with self.ema.applied():
            steps = self.model(pixels, coarse, 3)
        values = [coarse - 0.5, *(step.best for step in steps)]
        return {f"iou_{n}": round(float(iou_of(value, truth).mean()), 4) for n, value in enumerate(values)}

    def run(self) -> None:
        """Train to the end and write `final/`. Raises VLSegError in the folder of a run with other settings."""
        config = self.config
        self.out.mkdir(parents=True, exist_ok=True)
        settings = self.out / "config.yaml"
        state = load_newest(self.out / "checkpoints", log=_say)
        if state is not None:
            check_same(load(RefineTraining, settings), config, settings)
        write_whole(settings, dump_yaml(config))
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.step = state["step"]
            _say(f"goes on from step {self.step}")
        metrics = self.out / "metrics.jsonl"
        drop_lines_after(metrics, self.step)
        recent: list[dict[str, float]] = []
        since = time.perf_counter()
        while self.step < config.steps:
            recent.append(self.train_step())
            done = self.step == config.steps
            if self.step % config.log_every == 0 or done:
                record = {key: round(float(np.mean([r[key] for r in recent])), 4) for key in recent[0]}
                pace = (time.perf_counter() - since) / len(recent)
                record |= {"step": self.step, "seconds_a_step": round(pace, 3)}
                self._log(metrics, record)
                recent, since = [], time.perf_counter()
            if self.step % config.eval_every == 0 or done:
                self._log(metrics, {"step": self.step, **self.validate()})
                since = time.perf_counter()
            if self.step % config.save_every == 0 or done:
                self._save()
        with self.ema.applied():
            self.model.save_pretrained(self.out / "final")

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save(self.out / "checkpoints", self.step, {**state, "ema": self.ema.state_dict(), "step": self.step}, keep=2)

    def _log(self, metrics: Path, record: dict[str, float]) -> None:
        append_line(metrics, record)
        _say(" ".join(f"{key}={value}" for key, value in record.items()))


def check_same(begun: RefineTraining, config: RefineTraining, file: Path) -> None:
    """Raises VLSegError, in one line, where a run that has begun would go on with other settings.

    begun: those it began with, read from `file`. What moves no weight may change, and the number of steps.
    """
    free = ("out", "steps", "threads", "log_every", "eval_every", "save_every")
    were, are = _by_key(begun), _by_key(config)
    other = [f"{key}={were[key]}, now {are[key]}" for key in are if key not in free and were[key] != are[key]]
    if other:
        raise VLSegError(
            f"{file}: this run began with {'; '.join(other[:3])}; go on with the settings it began with, or choose "
            "another folder with out="
        )
    if begun.steps != config.steps:
        _say(f"steps={config.steps}, where the run began with {begun.steps}: the schedule is that of the former now")


def _by_key(config: RefineTraining) -> dict[str, Any]:
    """All values by the names that overrides give them."""
    tree = to_dict(config)
    inner = {f"{part}.{key}": value for part in ("model", "optim") for key, value in tree.pop(part).items()}
    return {**tree, **inner}


def _begin(model: Refiner, folder: Path) -> None:
    weights = _weights(folder)
    if any(key.startswith("pixel_encoder.") for key in weights):
        start_trunk(model, weights)
        return
    try:
        model.load_state_dict({key: value.float() for key, value in weights.items()})
    except RuntimeError as error:
        raise VLSegError(f"start={folder}: no refiner of this shape, and no pixel encoder; see `model.*`") from error


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise VLSegError(f"start={folder}: no model.safetensors that can be read there ({error})") from error


def _write_rollouts(config: RolloutRun) -> int:
    from vlseg.data.registry import open_dataset
    from vlseg.systems.quiet import quiet_loading
    from vlseg.systems.registry import load_system

    with quiet_loading():
        system = load_system(config.model)
    if config.mode not in system.modes:
        raise VLSegError(f"mode={config.mode}: {system.name} has {', '.join(system.modes)}")
    found = rollouts(system, open_dataset(config.data), config.mode, config.temperature, config.seed)
    return save_examples(found, Path(config.out))


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if any(argument in ("-h", "--help") for argument in arguments):
            print(f"{__doc__}\n{describe(RefineTraining)}\nrollouts:\n{describe(RolloutRun)}")
        elif arguments[:1] == ["rollouts"]:
            _say(f"{_write_rollouts(load(RolloutRun, None, arguments[1:]))} examples")
        else:
            RefinerTrainer(load(RefineTraining, None, arguments)).run()
    except VLSegError as error:
        _say(f"vlseg: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
