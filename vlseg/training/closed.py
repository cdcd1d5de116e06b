"""Training for a closed set of classes: a `ClosedNet` by cross-entropy and dice, in the loop that the native model has.

The truth of a picture is a map of classes made of its queries' masks: each query is the name of a class, smaller masks
lie on larger ones, what no mask covers is background, what a query ignores is 255 and counts for nothing. So every
class that a picture shows must be among its queries.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.data.files import write_whole
from vlseg.evaluation.calibrate import best_threshold
from vlseg.evaluation.ranks import Ranks
from vlseg.losses.mask import IGNORE
from vlseg.metrics.case import Case
from vlseg.systems.class_names import ClassNames, normal
from vlseg.systems.closed_maps import ClosedImages, ClosedMaps
from vlseg.systems.closed_net import FILE, INSTANCES, ClosedNet, build_net
from vlseg.training import validation
from vlseg.training.batches import Batch
from vlseg.training.checkpoint import Ema
from vlseg.training.config import DataSection, TrainConfig
from vlseg.training.distributed import Engine, make_accelerator
from vlseg.training.journal import Journal
from vlseg.training.loop import Trainer
from vlseg.training.optimizer import build_optimizer
from vlseg.training.schedule import rate
from vlseg.training.sources import first_here, open_feed, open_part
from vlseg.training.step import counted, save_batches
from vlseg.types import VLSegError

BACKGROUND = "background"
MOST = IGNORE  # classes at most: their numbers stand below the one to ignore


class ClosedTrainer(Trainer):
    """One run, as `Trainer`. core: the `ClosedNet`; processor: its pictures and classes."""

    core: Any
    processor: Any
    plain: nn.Module

    def __init__(self, config: TrainConfig):
        refuse(config)
        self.config = config
        self.out = Path(config.out)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator, self.sharding = make_accelerator(config)
        if self.sharding != "none":
            raise VLSegError(f"closed under {self.sharding}: such networks are small; use --launch ddp")
        self.main = self.accelerator.is_main_process
        self.journal = Journal(self.out, self.main, self.accelerator)
        self.core, self.plain = self.start()
        self.processor = ClosedImages(ClassNames(self.core.labels), self.core.image)
        # All queries of a picture: with one left out its pixels would be background.
        all_queries = replace(config, data=replace(config.data, queries=MOST))
        parts = self.accelerator.num_processes * config.optim.accumulate
        self.feed = first_here(self.accelerator, lambda: open_feed(all_queries, self.processor, parts))
        config.steps = self.feed.steps
        self.val = open_part(config.data, config.data.val, config.data.val_split) if config.data.val else None
        self.rounded, self.adapted, self.ranks, self.watch, self.phrases = [], False, None, None, None
        self.prepare_model()
        self.engine = Engine(self.accelerator, self.plain, build_optimizer(self.plain, config.optim), config)
        self.model, self.optimizer = self.engine.model, self.engine.optimizer
        self.ema = Ema(self.plain.parameters(), config.optim.ema)
        self.step, self.seen, self.best = 0, 0, -1.0
        self.presence: dict[str, float] | None = None
        self.stop_signal: int | None = None
        self.stopping = False
        self.problems: set[str] = set()
        self.told: set[str] = set()

    def start(self) -> tuple[ClosedNet, nn.Module]:
        """The network that the run starts from, and the module that holds it and is called in training."""
        net = build(self.config)
        return net, net

    def system(self) -> Any:
        """The network as the `System` that validation asks."""
        return ClosedMaps(self.core, self.out.name)

    def keep_start(self) -> None:
        """The classes of this run, for every later start of it."""
        if self.main:
            (self.out / "start").mkdir(parents=True, exist_ok=True)
            write_whole(self.out / "start" / FILE, self.core.told())
        self.accelerator.wait_for_everyone()

    def export(self, name: str) -> None:
        """Write the averaged weights as the folder `name`, whole or not at all; `Segmenter` loads it."""
        if not self.main:
            return
        if self.presence:
            self.core.threshold = self.presence["threshold"]
        partial = self.out / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with self.ema.applied():
                self.core.save_pretrained(partial)
            shutil.rmtree(self.out / name, ignore_errors=True)
            os.replace(partial, self.out / name)
        except OSError as error:
            reason = error.strerror or error
            raise VLSegError(f"{self.out / name}: cannot be written ({reason}); the checkpoints are whole") from error

    def train_step(self, batches: list[Batch]) -> dict[str, float]:
        """See `Trainer.train_step`."""
        config, accelerator, engine = self.config, self.accelerator, self.engine
        # Chance (dropout) is a function of step and rank, so that a resumed run meets the same.
        torch.manual_seed((config.seed * 1_000_003 + self.step) * 4096 + accelerator.process_index)
        factor = rate(self.step, config.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        queries, _ = counted(self, batches)
        losses = self.passes(batches)

        def check(norm: torch.Tensor) -> None:
            if not torch.isfinite(norm):
                file = save_batches(self, batches)
                raise VLSegError(f"step {self.step}: the gradient is not finite; the batch is in {file}")

        norm = engine.step(check)
        self.step += 1
        engine.clear()
        self.ema.update()
        self.seen += int(queries)
        lr = config.optim.lr * factor
        return {**losses, "loss": sum(losses.values()), "grad_norm": norm, "lr": lr}

    def passes(self, batches: list[Batch]) -> dict[str, float]:
        """Forward and backward passes of a step; its losses by name, of all ranks.

        Cross-entropy is divided by the pixels that count, dice by the classes that pictures show, of all ranks and
        accumulated batches.
        """
        config, accelerator, engine = self.config, self.accelerator, self.engine
        device, classes = accelerator.device, len(self.core.labels)
        truths = [class_map(batch, self.core.labels).to(device) for batch in batches]  # looks at many numbers
        mine = [[(truth != IGNORE).sum(), shown(truth, classes).sum()] for truth in truths]
        own = torch.tensor(mine, dtype=torch.float64, device=device).sum(0)
        pixels, pairs = accelerator.reduce(own, "sum").clamp(min=1).tolist()
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for i, (batch, truth) in enumerate(zip(batches, truths, strict=True)):
            last = i == len(batches) - 1
            with engine.part(last):
                with engine.autocast():
                    logits = self.model(self.processor.normalise(batch.pixels).to(device))
                entropy, dice = loss_sums(logits.float(), truth)
                entropy = entropy * (config.closed.cross_entropy / pixels)
                dice = dice * (config.closed.dice / pairs)
                # ranks' gradients are averaged, so the sum over ranks needs their number back
                engine.backward((entropy + dice) * accelerator.num_processes, last)
            sums += torch.stack([entropy.detach(), dice.detach()])
        entropy, dice = accelerator.reduce(sums, "sum").tolist()
        return {"cross_entropy": entropy, "dice": dice}

    def finish(self) -> None:
        """Write the folder `final`."""
        self.export("final")
        self.accelerator.wait_for_everyone()

    def judge(self, score: bool, draw: bool) -> None:
        """Validate the averaged weights, draw their answers, log, and keep the best ones. Every rank must call it."""
        if self.val is None:
            return
        better, scores = torch.zeros((), device=self.accelerator.device), dict[str, float]()
        system = self.system()
        with self.ema.applied():
            if score:
                here = self.accelerator
                ranks = Ranks(here.process_index, here.num_processes, here.local_process_index)
                limit = self.config.data.val_limit
                cases = validation.score_dataset(system, self.val, limit, ranks, self.out / ".val")
                if cases:
                    scores = validation.scores_of(cases)
                    self.journal.write({"step": self.step, "val": {k: round(v, 4) for k, v in scores.items()}})
                    self.presence = fitting(cases)
                    if scores.get("mIoU", 0.0) > self.best:
                        better += 1
            if draw and self.main:
                sheet = validation.answer_grid(system, self.val)
                if sheet is not None:
                    self.journal.picture("grids", sheet, self.step)
        self.core.train()
        if self.accelerator.reduce(better, "sum") > 0:
            with self.journal.going_on("best"):
                self.export("best")
                self.best = scores.get("mIoU", self.best)  # else the next good ones are kept
        self.accelerator.wait_for_everyone()


def train(config: TrainConfig) -> None:
    """Run a training configuration of a closed set of classes in this process (one rank)."""
    closed_trainer(config).run()


def closed_trainer(config: TrainConfig) -> ClosedTrainer:
    """The run that a configuration of a closed set asks for: of instances, or of a class for every pixel."""
    if config.closed.architecture == INSTANCES:
        from vlseg.training.closed_instances import InstanceTrainer  # which is a ClosedTrainer

        return InstanceTrainer(config)
    return ClosedTrainer(config)


def refuse(config: TrainConfig) -> None:
    """Raises VLSegError, in one line, for settings that a closed set of classes has no use for."""
    wrong = {
        "adapter.kind": config.adapter.kind != "none",
        "qat.kind": config.qat.kind != "none",
        "model.base": config.model.base != "float32",
        "model.checkpointing": config.model.checkpointing,
        "model.compile": config.model.compile,
        "paths.on": config.paths.on,
        "warmup.steps": bool(config.warmup.steps),
        "first": bool(config.first),
        "export_dtype": config.export_dtype != "float32",
        "optim.matrix_lr": bool(config.optim.matrix_lr),
        "reinforce.on": config.reinforce.on,
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise VLSegError(
                f"{key}: not for a closed set of classes (closed={config.closed.architecture}); leave it out"
            )
    if not config.data.parts:
        raise VLSegError("data: say what to train on, such as data.train=my.jsonl; a closed set needs class names")


def build(config: TrainConfig) -> ClosedNet:
    """The network that a run starts from: `model.source`, a folder of such a network, or one with random weights.

    A run that has begun keeps the classes it began with. Raises VLSegError.
    """
    closed = config.closed
    torch.manual_seed(config.seed)
    area = {"area": config.model.area} if config.model.area else {}
    if config.model.source:
        net = ClosedNet.from_pretrained(Path(config.model.source).expanduser())
        if net.architecture != closed.architecture:
            raise VLSegError(f"model={config.model.source}: is a {net.architecture}; say closed={net.architecture}")
        net.image |= closed.image | area
        return net
    image = closed.image | area
    return build_net(
        str(closed.architecture), labels_of(config), closed.encoder, closed.weights, image, **closed.options
    )


def labels_of(config: TrainConfig) -> list[str]:
    """The names of the classes of a run: those that it began with, those given, or those of the data."""
    begun = Path(config.out) / "start"
    labels = ClosedNet.labels_in(begun) if (begun / FILE).exists() else config.closed.classes
    labels = labels or classes_of(config.data)
    if len(labels) > MOST:
        raise VLSegError(f"closed.classes: {len(labels)} classes, and {MOST} are the most")
    return labels


def classes_of(data: DataSection) -> list[str]:
    """ "background" and the queries of the training data, sorted. Raises VLSegError for more than a closed set has."""
    found: set[str] = set()
    for part in data.parts:
        source = open_part(data, part.data, part.split)
        labels = getattr(source, "labels", source.__getitem__)
        for i in range(len(source)):
            try:
                found |= {normal(query.text) for query in labels(i).queries if query.masks is not None}
            except VLSegError:
                continue  # the feed names what cannot be read
        if len(found) >= MOST:
            raise VLSegError(
                f"{part.data}: more than {MOST - 1} different queries, which look like referring expressions; give the "
                "names of the classes in closed.classes, or leave closed out"
            )
    return [BACKGROUND, *sorted(found - {BACKGROUND, ""})]


def class_map(batch: Batch, labels: list[str]) -> torch.Tensor:
    """(B, H, W) int64: the class of every pixel, `IGNORE` where it counts for nothing."""
    rest = 0 if labels and normal(labels[0]) == BACKGROUND else IGNORE
    maps = torch.full(
        (len(batch.pixels), *batch.regions.shape[-2:]), rest, dtype=torch.int64, device=batch.regions.device
    )
    areas = batch.regions.flatten(2).sum(-1, dtype=torch.int64)
    for b in range(len(maps)):
        owned = [
            (int(areas[b, m]), int(batch.packed.ids[b, k]), m)
            for k in range(batch.targets.shape[1])
            if batch.packed.valid[b, k]
            for m in batch.targets[b, k].nonzero().flatten().tolist()
        ]
        for _, label, m in sorted(owned, reverse=True):
            maps[b][batch.regions[b, m] > 0] = label
        if batch.ignored is not None:
            maps[b][batch.ignored[b].any(0)] = IGNORE
    return maps


def shown(truth: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, C) bool: which classes a picture shows."""
    return one_hot(truth, classes).flatten(2).any(-1)


def one_hot(truth: torch.Tensor, classes: int) -> torch.Tensor:
    """(B, H, W) to (B, C, H, W) bool; nothing where a pixel is ignored."""
    numbers = torch.arange(classes, device=truth.device)
    return truth[:, None] == numbers[None, :, None, None]


def loss_sums(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cross-entropy summed over pixels that count, 1 - dice summed over the classes that pictures show).

    logits: (B, C, H, W); truth: (B, H, W). Soft dice (V-Net, arXiv 1606.04797) with +1 smoothing, a picture and class.
    """
    entropy = F.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="sum")
    inside = one_hot(truth, logits.shape[1])
    p = logits.softmax(1) * (truth != IGNORE)[:, None]
    overlap = (p * inside).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (p.sum((-2, -1)) + inside.sum((-2, -1)) + 1)
    return entropy, (dice * inside.flatten(2).any(-1)).sum()


def fitting(cases: list[Case]) -> dict[str, float] | None:
    """The presence threshold that tells best what is there; None where the cases are too few."""
    scored = [case for case in cases if case.score is not None]
    there = sum(not case.absent for case in scored)
    if min(there, len(scored) - there) < validation.ENOUGH:
        return None
    import numpy as np

    score = np.array([case.score for case in scored], float)
    return {"threshold": best_threshold(score, np.array([not case.absent for case in scored], bool))}
