"""Before the run proper: the towers learn what things are called, on crowded pictures and without a language model.

A convolutional tower from nothing needs millions of views of objects before a word can be tied to what it sees. A
mosaic shows four times the objects of a scene, and a step without language model and mask head costs less than half:
several times the views a second. The pixel encoder learns; the language model's own tower, where it has the same shape,
starts from a copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vlseg.losses.contrast import dense_noun_loss, noun_labels
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.training.batches import share
from vlseg.training.checkpoint import load_newest, save
from vlseg.training.config import OptimSection, TrainConfig, WarmupSection
from vlseg.training.optimizer import build_optimizer
from vlseg.training.schedule import rate
from vlseg.training.workers import feeding, leave_signals
from vlseg.types import VLSegError
from vlseg.worlds.mosaic import mosaic


class MosaicBatches(Dataset):
    """Batch n is part `n % parts` of step `n // parts`.

    An item: pixels (B, H, W, 3) uint8, ids (B, H, W) uint8, glyphs (B, M) int64 with -1 for none.
    """

    def __init__(self, seed: int, section: WarmupSection, parts: int):
        self.seed, self.section, self.parts = seed, section, parts

    def __len__(self) -> int:
        return self.section.steps * self.parts

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Plain drawings first: in new styles from the start, names stay near chance five times longer.
        step, part = divmod(index, self.parts)
        restyled = min(1.0, step / max(1.0, self.section.plain * self.section.steps))
        height, width = self.section.size
        images = share(self.section.images, self.parts, part)
        made = [mosaic(self.seed, 1024 * step + i, (height, width), restyled) for i in images]
        glyphs = np.full((len(made), max(len(m[2]) for m in made)), -1, np.int64)
        for row, (_, _, names) in zip(glyphs, made, strict=True):
            row[: len(names)] = names
        pixels, ids = np.stack([m[0] for m in made]), np.stack([m[1] for m in made])
        return torch.from_numpy(pixels), torch.from_numpy(ids), torch.from_numpy(glyphs)


class NounTower(nn.Module):
    """The part of a model that names pixels."""

    def __init__(self, model: VLSegModel):
        super().__init__()
        if model.noun_prototypes is None:
            raise VLSegError("warmup.steps: this model has no noun prototypes to learn with")
        if model.pixel_encoder.levels:
            raise VLSegError("warmup.steps: this model has no pixel encoder of its own to warm up (pixel_encoder: vlm)")
        self.encoder, self.decoder = model.pixel_encoder, model.pixel_decoder
        self.prototypes = model.noun_prototypes

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) to noun embeddings (B, N, H/8, W/8) and the prototypes (nouns + 1, N)."""
        nouns = self.decoder(pixels, self.encoder(pixels)).nouns
        return nouns, self.prototypes


def cell_nouns(ids: torch.Tensor, glyphs: torch.Tensor, size: tuple[int, int], background: int) -> torch.Tensor:
    """Noun of every cell, (B, h, w) int64, as in `noun_labels`. ids: (B, H, W) uint8; glyphs: (B, M) int64."""
    regions = (
        ids[:, None] == torch.arange(1, glyphs.shape[1] + 1, device=ids.device, dtype=ids.dtype)[None, :, None, None]
    )
    return noun_labels(regions, glyphs, size, background)


def copy_tower(model: VLSegModel) -> int:
    """Copy the pixel encoder into the language model's own tower; returns the number of tensors that fitted."""
    tower, trunk = model.family.tower(model.vlm), model.pixel_encoder.trunk
    if tower is None or trunk is None:
        return 0
    mine, theirs = trunk.state_dict(), tower.state_dict()
    fits = {k: v for k, v in mine.items() if k in theirs and theirs[k].shape == v.shape}
    if len(fits) == len(mine):
        tower.load_state_dict(fits, strict=False)
        return len(fits)
    return 0


def warm_up(
    config: TrainConfig, model: VLSegModel, processor: VLSegProcessor, accelerator: Accelerator, log: Any
) -> None:
    """Run or resume `config.warmup`, leaving the model with warm towers. log: takes a record with its step."""
    section, folder = config.warmup, Path(config.out) / "warmup"
    tower = NounTower(model)
    idle = freeze_idle(tower, processor)
    parameters = [p for p in tower.parameters() if p.requires_grad]
    optim = OptimSection(
        lr=section.lr, matrix_lr=section.matrix_lr, weight_decay=0.02, warmup=200, schedule="constant-decay", decay=0.3
    )
    optimizer = build_optimizer(tower, optim)
    wrapped, optimizer = accelerator.prepare(tower, optimizer)
    step = 0
    if (state := load_newest(folder, print)) is not None:
        tower.load_state_dict(state["tower"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    ranks, rank = accelerator.num_processes, accelerator.process_index
    data = MosaicBatches(config.data.seed, section, ranks)
    numbers = range(step * ranks + rank, section.steps * ranks, ranks)
    workers = config.data.workers
    ahead = 4 if workers else None
    loader = DataLoader(
        data, None, sampler=numbers, num_workers=workers, prefetch_factor=ahead, worker_init_fn=leave_signals
    )
    recent: list[tuple[float, float]] = []
    with feeding(iter(loader)) as stream:
        for pixels, ids, glyphs in stream:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * rate(step, section.steps, optim)
            with accelerator.autocast():
                nouns, prototypes = wrapped(processor.normalise(pixels.to(accelerator.device)))
            background = len(prototypes) - 1
            labels = cell_nouns(ids, glyphs, (nouns.shape[-2], nouns.shape[-1]), background).to(nouns.device)
            loss = dense_noun_loss(nouns.float(), labels, prototypes).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            recent.append((loss.item(), accuracy(nouns, labels, prototypes)))
            if step % config.log_every == 0 or step == section.steps:
                loss_mean, right = (round(float(v), 4) for v in np.mean(recent, 0))
                log({"warmup_step": step, "loss": loss_mean, "noun_accuracy": right})
                recent.clear()
            if (step % config.save_every == 0 or step == section.steps) and accelerator.is_main_process:
                save(folder, step, {"tower": tower.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, 2)
    for parameter in idle:
        parameter.requires_grad_(True)
    if not copy_tower(model):
        log({"warmup_step": step, "copied": 0})


@torch.no_grad()
def accuracy(nouns: torch.Tensor, labels: torch.Tensor, prototypes: torch.Tensor) -> float:
    """Share of object cells whose nearest prototype is their own."""
    keep = (labels >= 0) & (labels < len(prototypes) - 1)
    nearest = (nouns.float().permute(0, 2, 3, 1)[keep] @ nn.functional.normalize(prototypes, dim=-1).t()).argmax(-1)
    return float((nearest == labels[keep]).float().mean()) if keep.any() else 0.0


def freeze_idle(tower: NounTower, processor: VLSegProcessor) -> list[nn.Parameter]:
    """Freeze what naming does not use (finer levels of the pyramid), so that no rank waits for its gradient."""
    nouns, prototypes = tower(processor.normalise(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)))
    (nouns.sum() + prototypes.sum()).backward()
    idle = [p for p in tower.parameters() if p.requires_grad and p.grad is None]
    for parameter in idle:
        parameter.requires_grad_(False)
    tower.zero_grad(set_to_none=True)
    return idle
