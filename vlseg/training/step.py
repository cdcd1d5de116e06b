"""One optimizer step of a run: forward and backward passes, losses over all ranks, a check of the gradient."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from vlseg.data.files import whole_file
from vlseg.models.packing import PADDING
from vlseg.training.batches import Batch
from vlseg.training.objective import loss_sums
from vlseg.training.schedule import rate
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.training.loop import Trainer


def optimizer_step(run: Trainer, batches: list[Batch]) -> dict[str, float]:
    """Move the weights by this rank's `batches`; what to log of it.

    Every loss is a sum divided by the queries of all ranks and accumulated batches. Raises VLSegError where the
    gradient is not finite, with the batches saved.
    """
    config, accelerator, engine = run.config, run.accelerator, run.engine
    # Chance (dropout) is a function of step and rank, so that a resumed run meets the same.
    torch.manual_seed((config.seed * 1_000_003 + run.step) * 4096 + accelerator.process_index)
    run.core.set_progress(run.step / config.steps)
    factor = rate(run.step, config.steps, config.optim)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base"] * factor
    count, padding = counted(run, batches)
    sums: dict[str, torch.Tensor] = {}
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with engine.part(last):
            losses = batch_losses(run, batch.to(accelerator.device))
            # ranks' gradients are averaged, so the sum over ranks needs their number back
            total = sum(losses.values()) * (accelerator.num_processes / count)
            if last and run.ranks:
                total = total + run.ranks.orthogonality()
            engine.backward(total, last)
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach()

    def check(norm: torch.Tensor) -> None:
        if not torch.isfinite(norm):
            file = save_batches(run, batches)
            raise VLSegError(f"step {run.step}: the gradient is not finite; the batch is in {file}")

    norm = engine.step(check, run.watch.look if run.watch else lambda: None)
    # what is logged is the loss of the whole step, not this rank's share of it
    totals = accelerator.reduce(torch.stack(list(sums.values())), "sum") / count
    record = dict(zip(sums, totals.tolist(), strict=True))
    run.step += 1
    if run.ranks:
        run.ranks.step(run.step)
    engine.clear()
    run.ema.update()
    run.seen += int(count)
    loss = sum(record.values())
    return {**record, "loss": loss, "grad_norm": norm, "lr": config.optim.lr * factor, "padding": padding}


def batch_losses(run: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
    """The losses of one batch by name, each a sum over its queries."""
    with run.engine.autocast():
        output = run.model(pixel_values=run.processor.normalise(batch.pixels), **batch.packed.tensors())
    losses = loss_sums(output, batch, run.core.config, run.losses)
    if run.phrases is not None:
        losses["word_noun"] = run.losses.word_noun * batch.packed.valid.sum() * run.phrases.loss(run.core)
    return losses


def counted(run: Trainer, batches: list[Batch]) -> tuple[float, float]:
    """Queries of the step over all ranks, and the share of padding in their rows; sees whether to stop."""
    owners = [batch.packed.owner for batch in batches]
    mine = [
        sum(batch.packed.valid.sum().item() for batch in batches),
        sum((owner == PADDING).sum().item() for owner in owners),
        sum(owner.numel() for owner in owners),
        float(run.stop_signal is not None),
    ]
    shared = torch.tensor(mine, dtype=torch.float64, device=run.accelerator.device)
    queries, padding, tokens, stops = run.accelerator.reduce(shared, "sum").tolist()
    run.stopping = stops > 0  # on all ranks after the same step, whichever of them heard the signal first
    return queries, padding / tokens


def save_batches(run: Trainer, batches: list[Batch]) -> str:
    """Keep all that led to a broken gradient, each rank its own; where they lie."""
    parts = [
        {**{f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "packed"}, **batch.packed.tensors()}
        for batch in batches
    ]
    rank, ranks = run.accelerator.process_index, run.accelerator.num_processes
    file = run.out / ("bad-batch.pt" if ranks == 1 else f"bad-batch-{rank}.pt")
    with run.journal.going_on(file.name), whole_file(file) as opened:
        torch.save(parts, opened)
    return str(file if ranks == 1 else run.out / "bad-batch-*.pt")
