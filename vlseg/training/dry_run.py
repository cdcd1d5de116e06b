"""What a run will take, before it is started: parameters, memory, tokens, steps, and the time of a few steps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.state import AcceleratorState
from torch import nn

from vlseg.metrics.cost import peak_memory
from vlseg.training.adapters import count_parameters
from vlseg.training.chain import first_run
from vlseg.training.closed import ClosedTrainer
from vlseg.training.config import Sharding, TrainConfig
from vlseg.training.loop import Trainer, trainer
from vlseg.training.optimizer import kind_of
from vlseg.training.samples import SampleBatches
from vlseg.training.workers import feeding
from vlseg.types import VLSegError

MEASURED = 3  # steps, after one that is not timed
TOO_BIG = "does not fit in one process here"
T = TypeVar("T")
GIB = 2**30


@dataclass(slots=True)
class Memory:
    """Bytes that a run holds from step to step, activations not included."""

    weights: int
    gradients: int
    optimizer: int
    average: int

    def on(self, sharding: Sharding, processes: int, accumulate: int = 1) -> int:
        """Bytes on each of N processes: FSDP2 and ZeRO-3 share all of it, ZeRO-2 gradients and optimizer.

        ZeRO holds 4 bytes a trained weight more, as many as its gradients take: measured with DeepSpeed 0.19.8, in
        float32. So does DDP with `optim.accumulate` above 1: gradients that wait for the last part lie outside of the
        buffers in which they are exchanged then.
        """
        if sharding == "fsdp2":
            return (self.weights + self.gradients + self.optimizer + self.average) // processes
        if sharding == "zero3":
            return (self.weights + 2 * self.gradients + self.optimizer + self.average) // processes
        if sharding == "zero2":
            return self.weights + (2 * self.gradients + self.optimizer) // processes + self.average
        waiting = self.gradients if processes > 1 and accumulate > 1 else 0
        return self.weights + self.gradients + waiting + self.optimizer + self.average


def memory_of(model: nn.Module, ema: float, muon: bool = False) -> Memory:
    """What the weights take as they are held, and what AdamW in float32 adds for those that are trained.

    muon: matrices follow it (`optim.matrix_lr`), with one moment instead of two. AdaLoRA's three running importances of
    each adapter weight count to the optimizer.
    """
    weights = sum(_bytes(p) for p in model.parameters()) + sum(b.numel() * b.element_size() for b in model.buffers())
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trained = sum(p.numel() for _, p in learning)
    moments = sum(p.numel() * (4 if kind_of(name, p, muon) == "matrix" else 8) for name, p in learning)
    if any("lora_E" in name for name, _ in learning):
        moments += sum(3 * p.numel() * p.element_size() for name, p in learning if "lora_" in name)
    return Memory(weights, 4 * trained, moments, 4 * trained if ema else 0)


def _bytes(parameter: nn.Parameter) -> int:
    inner = getattr(parameter, "__tensor_flatten__", None)
    if inner is None:
        return parameter.numel() * parameter.element_size()
    names, _ = inner()  # torchao's tensors: values and scales
    return sum(t.numel() * t.element_size() for n in names if (t := getattr(parameter, n, None)) is not None)


def dry_run(config: TrainConfig, sharding: Sharding = "none", processes: int = 1) -> str:
    """What a run will take, as a table. Nothing is written; a few steps are done and forgotten.

    sharding, processes: how the run is meant to be spread; memory is computed for it, time is that of one process here.
    """
    out, config.warmup.steps, config.trackers = config.out, 0, []
    before = first_run(config)
    first, first_line = (0.0, "") if before is None else first_of(before, sharding, processes)
    with tempfile.TemporaryDirectory() as folder:
        config.out = folder
        run = built(config)
        lines = [f"model: {config.model.source or config.model.preset}, out: {out}"]
        closed: Any = run.core if isinstance(run, ClosedTrainer) else None
        counts = count_parameters(run.plain) if closed is None else parts_of(closed.net)
        trained, total = (sum(c[i] for c in counts.values()) for i in (0, 1))
        lines.append(f"parameters: {trained:,} trained of {total:,} ({trained / total:.2%})")
        lines += [f"  {part:<14} {t:>14,} of {n:>14,}" for part, (t, n) in counts.items()]
        memory = memory_of(run.plain, config.optim.ema, bool(config.optim.matrix_lr))
        lines.append(
            f"memory: weights {_gib(memory.weights)}, gradients {_gib(memory.gradients)}, optimizer "
            f"{_gib(memory.optimizer)}, average {_gib(memory.average)}"
        )
        spread = f"{processes} process{'es' * (processes > 1)}" + (f" with {sharding}" if sharding != "none" else "")
        lines.append(
            f"  on each of {spread}: {_gib(memory.on(sharding, processes, config.optim.accumulate))} "
            "and the activations (computed)"
        )
        seconds, queries, tokens, images = measure(run)
        if seconds is None:
            lines.append(f"  peak: not measured, for a step {TOO_BIG}")
        else:
            peak = peak_memory()
            where = "GPU memory" if "gpu" in peak else "this process, libraries included"
            lines.append(f"  peak of {where}: {peak.get('gpu', peak['process']) / 1024:.2f} GiB (measured)")
        if closed is not None:
            lines.append(f"classes: {len(closed.labels)}: {', '.join(closed.labels[:12])}")
        else:
            prefix = fitting(partial(image_tokens, run))
            told = "?" if prefix is None else str(prefix)
            lines.append(f"tokens a row: {told} of image and instruction, {tokens:.0f} of queries and padding")
        if isinstance(run.feed, SampleBatches):
            lines += [f"data: {name}: {times:.3g} times" for name, times in run.feed.epochs().items()]
        lines.append(f"steps: {config.steps:,}, {images:.0f} pictures and {queries:.0f} expressions each")
        if first_line:
            lines.append(first_line)
        if seconds is None:
            lines.append(f"time: not measured, for a step {TOO_BIG}")
        else:
            whole = "" if first is None else f", {_clock(seconds * config.steps + first)} in all"
            whole += ", the first run included" if whole and first_line else ""
            lines.append(f"time: {seconds:.2f} s a step in one process here (measured){whole}")
    return "\n".join(lines)


def fitting(work: Callable[[], T]) -> T | None:
    """What `work` returns; None where there is too little memory for it, on whichever device."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not short and "out of memory" not in words and "DefaultCPUAllocator" not in words:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def built(config: TrainConfig) -> Trainer:
    """The run, on the CPU where its weights do not fit on the GPU. Raises VLSegError where they fit on neither."""
    run = fitting(lambda: trainer(config))
    if run is None and torch.cuda.is_available():
        AcceleratorState._reset_state(True)
        os.environ["ACCELERATE_USE_CPU"] = "true"
        run = fitting(lambda: trainer(config))
    if run is None:
        raise VLSegError(
            f"the model {TOO_BIG}: its weights alone take more memory than there is, and nothing can be told of them; "
            "try the dry run on a larger machine"
        )
    return run


def first_of(config: TrainConfig, sharding: Sharding, processes: int) -> tuple[float | None, str]:
    """The seconds of the run that goes before another, None where it does not fit here, and a line on it."""
    with tempfile.TemporaryDirectory() as folder:
        config.out = folder
        run = built(config)
        memory = memory_of(run.plain, config.optim.ema, bool(config.optim.matrix_lr))
        held = memory.on(sharding, processes, config.optim.accumulate)
        seconds = measure(run)[0]
    AcceleratorState._reset_state()  # the next run may want other plugins
    pace = f"a step of it {TOO_BIG}" if seconds is None else f"{seconds:.2f} s a step (measured)"
    return None if seconds is None else seconds * config.steps, (
        f"first: a run of {config.steps:,} steps goes before this one, {pace}, "
        f"{_gib(held)} and the activations on each process (computed)"
    )


def parts_of(net: nn.Module) -> dict[str, tuple[int, int]]:
    """(trainable, total) numbers of weights of each child."""
    sizes = {part: [(p.numel(), p.requires_grad) for p in module.parameters()] for part, module in net.named_children()}
    return {part: (sum(n for n, on in found if on), sum(n for n, _ in found)) for part, found in sizes.items() if found}


def measure(run: Trainer) -> tuple[float | None, float, float, float]:
    """(seconds, expressions, query tokens a row, pictures) of a step: means over a few, after one to warm up.

    The seconds are None, and the rest that of one step's data, where there is too little memory for a step.
    """
    run.model.train()
    accumulate = run.config.optim.accumulate
    seconds, queries, lengths, images, count = 0.0, 0, 0, 0, 0
    with feeding(run.batches()) as stream:
        for number in range(min(MEASURED + 1, run.config.steps)):
            batches = [next(stream) for _ in range(accumulate)]
            begin = time.perf_counter()
            fits = fitting(partial(run.train_step, batches)) is not None
            if run.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            if number or run.config.steps == 1 or not fits:
                seconds += time.perf_counter() - begin
                queries += int(sum(batch.packed.valid.sum() for batch in batches))
                lengths += sum(batch.packed.ids.shape[1] for batch in batches)
                images += sum(len(batch.pixels) for batch in batches)
                count += 1
            if not fits:
                run.model.zero_grad()
                return None, queries / count, lengths / count / accumulate, images / count
    return seconds / count, queries / count, lengths / count / accumulate, images / count


def image_tokens(run: Trainer) -> int:
    """Tokens in front of the queries, for a picture of the first batch's size."""
    pixels = run.feed[0].pixels[:1].to(run.accelerator.device)
    with torch.no_grad(), run.engine.autocast():
        tokens = run.core.encode_image(run.processor.normalise(pixels)).tokens
    return len(run.core.family.prefix(tokens).ids)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"
