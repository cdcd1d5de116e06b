"""The training loop: explicit, on Accelerate, resumable at every checkpoint to the same weights."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader

from vlseg.config import dump_yaml
from vlseg.data.files import write_whole
from vlseg.models.cpu_speed import prefer_eager_attention, prefer_float32_depthwise
from vlseg.models.modeling import VLSegModel
from vlseg.training import qat, state
from vlseg.training.adapters import GradientWatch, attach, base_fingerprint
from vlseg.training.batches import Batch
from vlseg.training.chain import first_run
from vlseg.training.checkpoint import Ema, append_line, step_folders
from vlseg.training.config import TrainConfig
from vlseg.training.distributed import Engine, asked_sharding, layer_classes, make_accelerator
from vlseg.training.journal import Journal, summarised
from vlseg.training.judging import judge
from vlseg.training.optimizer import build_optimizer
from vlseg.training.outcome import finish
from vlseg.training.paths import PathTargets
from vlseg.training.phrases import phrases
from vlseg.training.refusals import refuse_all
from vlseg.training.samples import SampleBatches
from vlseg.training.sources import describe, first_here, open_feed, open_part
from vlseg.training.start import build_model
from vlseg.training.step import optimizer_step
from vlseg.training.warmup import warm_up
from vlseg.training.workers import feeding, leave_signals
from vlseg.types import VLSegError

# Seconds in which further signals are the first one again: a scheduler tells every process of a job, and the launcher
# among them hands on what it was told.
ECHO = 3.0


class Trainer:
    """One run. `run()` trains from the last whole checkpoint in `config.out` to `config.steps`.

    plain: the model, with adapters where there are any; core: the `VLSegModel` in it; model: as the ranks share it.
    """

    stop_time = 0.0  # when the signal came

    def __init__(self, config: TrainConfig):
        self.config = config
        self.out = Path(config.out)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator, self.sharding = make_accelerator(config)
        self.main = self.accelerator.is_main_process
        self.journal = Journal(self.out, self.main, self.accelerator)
        start = build_model(config, self.accelerator.device, self.main, self.accelerator.wait_for_everyone)
        self.core, self.processor = start.model, start.processor
        parts = self.accelerator.num_processes * config.optim.accumulate
        self.feed = first_here(self.accelerator, lambda: open_feed(config, self.processor, parts))
        if config.paths.on:
            price, effort, part = config.paths.price, config.paths.effort, config.paths.share
            self.feed.paths = PathTargets(self.core.config, self.processor.pad_id, price, effort, part)
        config.steps = self.feed.steps
        self.val = open_part(config.data, config.data.val, config.data.val_split) if config.data.val else None
        self.rounded = qat.prepare(self.core, config.qat) if config.qat.kind != "none" else []
        self.adapted = config.adapter.kind != "none"
        torch.manual_seed(config.seed)  # of the adapters' first weights, whatever was drawn before
        self.plain: nn.Module = attach(self.core, config, start.new, self.rounded) if self.adapted else self.core
        left = None
        if config.adapter.kind == "adalora":
            from vlseg.training import repack

            left = repack.settled(self.out / "checkpoints")
            if left is not None:
                repack.shrink(self.plain, left)
        self.prepare_model()
        optimizer = build_optimizer(self.plain, config.optim)
        if config.warmup.steps and not step_folders(self.out / "checkpoints"):
            self.keep_start()
            warm_up(config, self.core, self.processor, self.accelerator, self.log_warmup)
        self.base = base_fingerprint(self.plain) if self.adapted else ""  # while its weights are whole
        self.engine = Engine(self.accelerator, self.plain, optimizer, config)
        self.model, self.optimizer = self.engine.model, self.engine.optimizer
        self.ranks = None
        if config.adapter.kind == "adalora":
            from vlseg.training.adalora import RankSchedule

            self.ranks = RankSchedule(self.plain, packed=left is not None)
        self.watch = GradientWatch(self.plain, config.adapter.patience, self.engine.gradient) if self.adapted else None
        self.losses = config.loss
        if isinstance(self.feed, SampleBatches):  # of a data set's samples nobody knows what else is in the picture
            self.losses = replace(config.loss, pixel_noun=0.0, token_noun=0.0, query_noun=0.0, word_noun=0.0)
        nouns = self.core.noun_prototypes
        table = phrases(self.processor, len(nouns)) if nouns is not None and self.losses.word_noun else None
        self.phrases = None if table is None else table.to(self.accelerator.device)
        average = [p for p in self.plain.parameters() if p.requires_grad or not self.adapted]
        self.ema = Ema(average, config.optim.ema)
        self.step, self.seen, self.best = 0, 0, -1.0
        self.presence: dict[str, float] | None = None  # calibration of the presence score by the last validation
        self.stop_signal: int | None = None
        self.stopping = False
        self.problems: set[str] = set()  # what this rank had to leave out
        self.told: set[str] = set()  # and all of them, as far as it was named

    def prepare_model(self) -> None:
        """Memory layout, recomputed activations and compiled blocks."""
        config = self.config
        if self.accelerator.device.type == "cpu" and self.sharding == "none":
            # FSDP2 hands layers their weights in bfloat16, and refuses those that are not contiguous.
            if config.model.base == "float32":
                prefer_float32_depthwise(self.plain)
            for kernel in (p for p in self.plain.parameters() if p.ndim == 4):
                kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
            if config.mixed_precision == "bf16":
                prefer_eager_attention(self.core.vlm)
        if config.model.checkpointing:
            vlm = self.core.vlm  # newer versions of transformers have the first name
            enable = getattr(vlm, "activation_checkpointing_enable", None) or vlm.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            recompute: Any = getattr(self.core.pixel_encoder.trunk, "set_grad_checkpointing", None)
            if recompute is not None:  # a tower of timm
                recompute(True)
        if config.model.compile:
            names = layer_classes(self.plain)
            blocks = [module for module in self.core.modules() if type(module).__name__ in names]
            for module in blocks:
                module.compile()
            if not blocks:
                self.journal.say("model.compile: this model names no repeated blocks; nothing is compiled")

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block the model is what the run would leave: its averages, without the ranks that are pruned."""
        with self.ema.applied(), self.ranks.pruned() if self.ranks else contextlib.nullcontext():
            yield

    def keep_start(self) -> None:
        """Shape and vocabulary of this run, for every later start of it."""
        if self.main:
            self.core.config.save_pretrained(self.out / "start")
            self.processor.save_pretrained(self.out / "start")
        self.accelerator.wait_for_everyone()

    def log_warmup(self, record: dict[str, Any]) -> None:
        """One line of the warm-up, to `warmup.jsonl` and stderr."""
        if self.main:
            with self.journal.going_on("warmup.jsonl"):
                append_line(self.out / "warmup.jsonl", record)
            self.journal.say(" ".join(f"{k}={v}" for k, v in record.items()))

    # data ------------------------------------------------------------------------------------------------------------
    def batches(self) -> Iterator[Batch]:
        """This rank's batches from the current step on: batch i of rank r is part i x ranks + r of its step."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        parts, workers = self.feed.parts, self.config.data.workers
        numbers = range(self.step * parts + rank, self.config.steps * parts, ranks)
        ahead = 6 if workers else None
        loader = DataLoader(
            self.feed, None, sampler=numbers, num_workers=workers, prefetch_factor=ahead, worker_init_fn=leave_signals
        )
        return iter(loader)

    # the loop --------------------------------------------------------------------------------------------------------
    def train_step(self, batches: list[Batch]) -> dict[str, float]:
        """One optimizer step, of one batch an accumulation; what to log of it."""
        return optimizer_step(self, batches)

    def run(self) -> None:
        """Train to the end. A signal saves first; raises `Stopped` after an interrupted run was saved."""
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(self.out / "config.yaml", dump_yaml(self.config))
        self.keep_start()
        state.resume(self)
        for line in describe(self.feed):
            self.journal.say(line)
        if self.ranks and self.ranks.packed:
            began, left = (sum(self.ranks.history[place][1]) for place in (0, -1))
            self.journal.say(f"adapters: {left} of {began} ranks are left; the others take no memory")
        if self.forgets_paths():
            self.journal.say("paths: this run does not train the model's path mode (paths.on=true does)")
        self.journal.open(self.step, self.config)
        if self.config.grid_every and self.val is None:
            self.journal.say("grid_every: nothing is drawn without data.val")
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with feeding(self.batches()) as stream:
                self.train(stream)
            self.finish()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.journal.close()

    def train(self, stream: Iterator[Batch]) -> None:
        """The steps that are left, with what happens every so many of them. stream: of `batches`."""
        config = self.config
        self.model.train()
        recent: list[tuple[str, dict[str, float]]] = []  # what happened since the last line of the log, by data set
        since, first, seen = time.perf_counter(), self.step, self.seen
        while self.step < config.steps:
            batches = [following(stream) for _ in range(config.optim.accumulate)]
            recent.append((batches[0].source, self.train_step(batches)))
            self.problems.update(problem for batch in batches for problem in batch.problems)
            self.stopping |= self.stop_signal is not None and self.accelerator.num_processes == 1
            note, done = None, self.step == config.steps
            if self.step % config.log_every == 0 or done:
                now = time.perf_counter()
                speed = (self.seen - seen) / (now - since)
                left = (config.steps - self.step) * (now - since) / (self.step - first)
                since, first, seen = now, self.step, self.seen
                record = {**summarised(recent, bool(config.data.mix)), **self.more_to_tell()}
                recent.clear()
                pace = {"expr_per_s": round(speed, 1), "seconds_left": round(left)}
                self.journal.write({"step": self.step, "seen": self.seen, **pace, **record})
                note = f"loss {record['loss']:.3f} {speed:.0f} expr/s"
            self.journal.advance(note)
            judged = done or bool(config.eval_every and self.step % config.eval_every == 0)
            drawn = bool(config.grid_every) and (done or self.step % config.grid_every == 0)
            if judged or drawn:
                self.judge(judged, drawn)
                since, first, seen = time.perf_counter(), self.step, self.seen
            if self.step % config.save_every == 0 or done or self.stopping:
                state.write(self)
            if self.stopping and not done:
                by = f"signal {self.stop_signal}" if self.stop_signal else "a signal to another process"
                self.journal.say(f"stopped by {by} at step {self.step}; the same command goes on from here")
                raise Stopped
            if self.ranks and self.ranks.settled and not self.ranks.packed and not done:
                self.pack()

    def pack(self) -> None:
        """After AdaLoRA's last pruning: go on without the ranks that are gone. Raises `Repacked`."""
        folder = self.out / "checkpoints" / f"step-{self.step}"
        if not folder.exists():
            state.write(self)
        if folder.exists():  # a full disk lets the run go on as it is
            raise Repacked

    def forgets_paths(self) -> bool:
        """Whether the model writes paths and this run moves its weights without a loss of theirs."""
        learns = self.config.paths.on or self.config.reinforce.on
        return isinstance(self.core, VLSegModel) and bool(self.core.config.paths) and not learns

    def judge(self, score: bool, draw: bool) -> None:
        """See `judging.judge`."""
        judge(self, score, draw)

    def finish(self) -> None:
        """See `outcome.finish`."""
        finish(self)

    def more_to_tell(self) -> dict[str, Any]:
        """For the log: ranks of the adapters, and how much data had to be left out so far; what is new is named."""
        record: dict[str, Any] = {"adapters": self.ranks.summary()} if self.ranks else {}
        if isinstance(self.feed, SampleBatches):
            several = self.accelerator.num_processes > 1
            everyone = set(gather_object(sorted(self.problems)) if several else self.problems)
            for problem in sorted(everyone - self.told):
                self.journal.say(f"left out: {problem}")
            self.told |= everyone
            record["left_out"] = len(self.told)
        return record

    def _stop(self, number: int, frame: Any) -> None:
        del frame
        now = time.monotonic()
        if self.stop_signal is None:
            self.stop_signal, self.stop_time = number, now
        elif now - self.stop_time > ECHO:  # somebody does not want to wait
            os._exit(128 + number)


class Repacked(Exception):
    """The run is to be built anew from its last checkpoint, with smaller adapters (`vlseg/training/repack.py`)."""


class Stopped(KeyboardInterrupt):
    """A run was interrupted, is saved, and has said so."""


def following(stream: Iterator[Batch]) -> Batch:
    """The next batch. Raises VLSegError in one line, which a loading process would wrap in a traceback."""
    try:
        return next(stream)
    except VLSegError as error:
        raise VLSegError(str(error).strip().rpartition("VLSegError: ")[2]) from error


def train(config: TrainConfig) -> None:
    """Run a training configuration in this process (one rank), first the run that it begins with, if any."""
    before = first_run(config)
    refuse_all(config, asked_sharding())  # the second run's reasons, too, before the first takes its time
    if before is not None:
        if not (Path(before.out) / "final").exists():
            train(before)
            AcceleratorState._reset_state()  # the next run may want other plugins
        # what the first run has built is part of its checkpoint
        config.model.source, config.model.build, config.model.head = str(Path(before.out) / "final"), {}, {}
    try:
        trainer(copy.deepcopy(config)).run()
    except Repacked:
        AcceleratorState._reset_state()
        trainer(config).run()


def trainer(config: TrainConfig) -> Trainer:
    """The run that a configuration asks for: supervised, of reinforcement, or for a closed set of classes."""
    if config.closed.architecture:
        from vlseg.training.closed import closed_trainer  # whose trainers are Trainers

        return closed_trainer(config)
    if config.reinforce.on:
        from vlseg.training.reinforce import Reinforcer  # which is a Trainer

        return Reinforcer(config)
    return Trainer(config)
