"""The training loop: explicit, on Accelerate, resumable at every checkpoint to the same weights."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from vlseg.config import dump_yaml
from vlseg.evaluation.scenes import score_scenes
from vlseg.metrics.referring import by_kind, summary
from vlseg.models.configuration import VLSegConfig
from vlseg.models.cpu_speed import prefer_float32_depthwise
from vlseg.models.modeling import VLSegModel
from vlseg.models.presets import build_preset, fresh
from vlseg.models.processing import VLSegProcessor
from vlseg.training.batches import Batch, SceneBatches
from vlseg.training.checkpoint import Ema, append_line, drop_lines_after, load_newest, save, step_folders
from vlseg.training.config import TrainConfig
from vlseg.training.objective import loss_sums
from vlseg.training.optimizer import build_optimizer
from vlseg.training.phrases import phrases
from vlseg.training.schedule import rate
from vlseg.training.warmup import warm_up
from vlseg.types import VLSegError
from vlseg.worlds.sprites import SpriteWorld


def build_model(config: TrainConfig) -> tuple[VLSegModel, VLSegProcessor]:
    """The model that a run starts from: a checkpoint folder, or a preset with fresh weights.

    A preset's run that has begun keeps the shape and the vocabulary it began with (`start/`), whatever the world says
    today.
    """
    if config.model.source:
        folder = Path(config.model.source)
        if not (folder / "config.json").exists():
            raise VLSegError(f"model.source={folder}: no config.json there; name a checkpoint folder")
        model = VLSegModel.from_pretrained(folder, dtype=torch.float32)
        if config.model.head:
            weights = model.state_dict()
            model.config.head.update(config.model.head)
            model = fresh(model.config, config.seed)
            model.load_state_dict(weights, strict=False)
        return model, VLSegProcessor.from_pretrained(folder)
    if config.model.preset is None:
        raise VLSegError("model: give model.preset or model.source")
    start = Path(config.out) / "start"
    if (start / VLSegProcessor.FILE).exists():
        return fresh(VLSegConfig.from_pretrained(start), config.seed), VLSegProcessor.from_pretrained(start)
    world = SpriteWorld(styles="train")
    return build_preset(config.model.preset, world.vocabulary(), len(world.nouns), config.seed)


def cast_state(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in another dtype. Tied tensors stay one tensor, or a file would hold both."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for value in state.values():
        key = (value.data_ptr(), value.shape)
        done.setdefault(key, value.to(dtype) if value.is_floating_point() else value)
    return {name: done[value.data_ptr(), value.shape] for name, value in state.items()}


class Trainer:
    """One run. `run()` trains from the last whole checkpoint in `config.out` to `config.steps`."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.out = Path(config.out)
        if config.threads:
            torch.set_num_threads(config.threads)
        on_cpu = not torch.cuda.is_available()
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu)
        self.main = self.accelerator.is_main_process
        self.plain, self.processor = build_model(config)
        if config.model.area:
            self.plain.config.image["area"] = self.processor.image["area"] = config.model.area
        if on_cpu:
            prefer_float32_depthwise(self.plain)
            nn.Module.to(self.plain, memory_format=torch.channels_last)
        optimizer = build_optimizer(self.plain, config.optim)
        if config.warmup.steps and not step_folders(self.out / "checkpoints"):
            self.keep_start()
            warm_up(config, self.plain, self.processor, self.accelerator, self.log_warmup)
        self.model, self.optimizer = self.accelerator.prepare(self.plain, optimizer)
        named = self.plain.noun_prototypes is not None and config.loss.word_noun
        table = phrases(self.processor, len(self.plain.noun_prototypes)) if named else None
        self.phrases = None if table is None else table.to(self.accelerator.device)
        self.ema = Ema(self.plain, config.optim.ema)
        self.step, self.seen, self.best = 0, 0, -1.0
        self.stop_signal: int | None = None

    def keep_start(self) -> None:
        """Shape and vocabulary of this run, for every later start of it."""
        if self.main:
            self.plain.config.save_pretrained(self.out / "start")
            self.processor.save_pretrained(self.out / "start")
        self.accelerator.wait_for_everyone()

    def log_warmup(self, record: dict[str, Any]) -> None:
        """One line of the warm-up, to `warmup.jsonl` and stderr."""
        if self.main:
            append_line(self.out / "warmup.jsonl", record)
            self.say(" ".join(f"{k}={v}" for k, v in record.items()))

    # state -----------------------------------------------------------------------------------------------------------
    def resume(self) -> None:
        """Go back to the newest whole checkpoint of `config.out`, if there is one."""
        state = load_newest(self.out / "checkpoints", self.say)
        if state is not None:
            self.plain.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.step, self.seen, self.best = state["step"], state["seen"], state["best"]
            torch.set_rng_state(state["rng"])
            self.say(f"resumed at step {self.step}")
        if self.main:
            drop_lines_after(self.out / "metrics.jsonl", self.step)

    def checkpoint(self) -> None:
        """Write `checkpoints/step-N`."""
        if self.main:
            state = {
                "model": self.plain.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict(),
                "step": self.step,
                "seen": self.seen,
                "best": self.best,
                "rng": torch.get_rng_state(),
            }
            save(self.out / "checkpoints", self.step, state, self.config.keep)
        self.accelerator.wait_for_everyone()

    def export(self, name: str) -> None:
        """Write the averaged weights as a checkpoint folder that `Segmenter` loads, in `config.export_dtype`."""
        if not self.main:
            return
        with self.ema.applied():
            state = cast_state(self.plain.state_dict(), getattr(torch, self.config.export_dtype))
            self.plain.save_pretrained(self.out / name, state_dict=state)
        self.processor.save_pretrained(self.out / name)

    def say(self, text: str) -> None:
        """One line on stderr, from the main process, without breaking a progress bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    # data ------------------------------------------------------------------------------------------------------------
    def batches(self) -> Iterator[Batch]:
        """This rank's batches from the current step on: batch i of rank r is part i x ranks + r of its step."""
        ranks, rank, accumulate = (
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.config.optim.accumulate,
        )
        per_step = ranks * accumulate
        data = SceneBatches(self.config.data, self.config.stages, self.processor, self.config.steps, per_step)
        numbers = range(self.step * per_step + rank, self.config.steps * per_step, ranks)
        workers = self.config.data.workers
        loader = DataLoader(
            data, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=6 if workers else None
        )
        return iter(loader)

    # the loop --------------------------------------------------------------------------------------------------------
    def train_step(self, batches: list[Batch]) -> dict[str, float]:
        """One optimizer step. Every loss is a sum divided by the queries of all ranks and accumulated batches."""
        config, accelerator = self.config, self.accelerator
        factor = rate(self.step, config.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        count = torch.tensor(float(sum(b.packed.valid.sum().item() for b in batches)), device=accelerator.device)
        count = accelerator.reduce(count, "sum")
        sums: dict[str, torch.Tensor] = {}
        for i, batch in enumerate(batches):
            batch = batch.to(accelerator.device)
            pixels = self.processor.normalise(batch.pixels)
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    output = self.model(pixel_values=pixels, **batch.packed.tensors())
                losses = loss_sums(output, batch, self.plain.config, config.loss)
                if self.phrases is not None:
                    queries = batch.packed.valid.sum()
                    losses["word_noun"] = config.loss.word_noun * queries * self.phrases.loss(self.plain)
                # ranks' gradients are averaged, so the sum over ranks needs their number back
                accelerator.backward(sum(losses.values()) * (accelerator.num_processes / count))
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        if not torch.isfinite(norm):
            self.save_batch(batches)
            raise VLSegError(
                f"step {self.step}: the gradient is not finite; the batch is in {self.out / 'bad-batch.pt'}"
            )
        # what is logged is the loss of the whole step, not this rank's share of it
        shared = accelerator.reduce(torch.stack(list(sums.values())), "sum") / count
        totals = dict(zip(sums, shared.tolist(), strict=True))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step += 1
        self.seen += int(count.item())
        return {**totals, "loss": sum(totals.values()), "grad_norm": float(norm), "lr": config.optim.lr * factor}

    def save_batch(self, batches: list[Batch]) -> None:
        """Keep what led to a broken loss."""
        parts = [
            {"pixels": b.pixels, "regions": b.regions, "targets": b.targets, **b.packed.tensors()} for b in batches
        ]
        torch.save(parts, self.out / "bad-batch.pt")

    def validate(self) -> dict[str, float]:
        """Scores of the averaged weights on unseen scenes."""
        data = self.config.data
        world = SpriteWorld(styles="train")
        size = (data.val_size[0], data.val_size[1])
        scenes = (world.scene(data.val_seed, i, size, data.queries) for i in range(data.val_scenes))
        with self.ema.applied():
            cases = score_scenes(self.plain, self.processor, scenes)
        kinds = {f"mIoU/{kind}": s["mIoU"] for kind, s in by_kind(cases).items() if "mIoU" in s}
        return {**summary(cases), **kinds}

    def run(self) -> None:
        """Train to the end. A signal saves first; raises KeyboardInterrupt after an interrupted run was saved."""
        config = self.config
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.yaml").write_text(dump_yaml(config))
        self.keep_start()
        self.resume()
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(self.out / "tensorboard")) if self.main else None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not (self.main and sys.stderr.isatty()))
        self.model.train()
        recent: list[dict[str, float]] = []  # what happened since the last line of the log
        stream, since, seen = self.batches(), time.perf_counter(), self.seen
        while self.step < config.steps:
            record = self.train_step([next(stream) for _ in range(config.optim.accumulate)])
            recent.append(record)
            bar.update()
            done = self.step == config.steps
            if self.step % config.log_every == 0 or done:
                now = time.perf_counter()
                speed = (self.seen - seen) / (now - since)
                since, seen = now, self.seen
                means = {k: round(sum(r[k] for r in recent) / len(recent), 5) for k in record}
                recent.clear()
                self.write(board, {"step": self.step, "seen": self.seen, "expr_per_s": round(speed, 1), **means})
                bar.set_postfix_str(f"loss {means['loss']:.3f} {speed:.0f} expr/s")
            if (config.eval_every and self.step % config.eval_every == 0) or done:
                self.judge(board)
                since, seen = time.perf_counter(), self.seen
            if self.step % config.save_every == 0 or done or self.stop_signal:
                self.checkpoint()
            if self.stop_signal and not done:
                self.say(
                    f"stopped by signal {self.stop_signal} at step {self.step}; the same command goes on from here"
                )
                raise KeyboardInterrupt
        self.export("final")
        bar.close()
        if board:
            board.close()

    def judge(self, board: Any) -> None:
        """Validate on the main process, log, and keep the best weights."""
        if self.main:
            scores = self.validate()
            self.write(board, {"step": self.step, "val": {k: round(v, 4) for k, v in scores.items()}})
            if scores.get("mIoU", 0.0) > self.best:
                self.best = scores["mIoU"]
                self.export("best")
        self.accelerator.wait_for_everyone()

    def write(self, board: Any, record: dict[str, Any]) -> None:
        """One record to metrics.jsonl, TensorBoard and, without a progress bar, stderr."""
        if not self.main:
            return
        flat = {k: v for k, v in record.items() if k != "val"} | {
            f"val/{k}": v for k, v in record.get("val", {}).items()
        }
        append_line(self.out / "metrics.jsonl", record)
        for key, value in flat.items():
            if key != "step":
                board.add_scalar(key, value, record["step"])
        if not sys.stderr.isatty():
            shown = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in flat.items()}
            print(" ".join(f"{k}={v}" for k, v in shown.items()), file=sys.stderr, flush=True)

    def _stop(self, number: int, frame: Any) -> None:
        del frame
        if self.stop_signal:  # the second signal does not wait
            os._exit(128 + number)
        self.stop_signal = number


def train(config: TrainConfig) -> None:
    """Run a training configuration in this process (one rank)."""
    Trainer(config).run()
