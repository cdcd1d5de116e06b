"""Reinforcement of path mode: the model draws paths, learns what they are worth, and comes to write the better ones.

One mask has many good paths, and cross-entropy with one of them says nothing of how good the others are. Here every
query gets a group of paths (`reinforce_rollouts`), each path its reward (`reinforce_rewards`), and a path that is
better than its group becomes likelier (`policy_terms` in `vlseg/losses/path.py`), while the model is held near to what
it was.

The decoder and its token rows are trained. Towers and mask head stay as they are: an image is encoded once for drawing,
for learning and for the model as it was. The supervised losses of the same batch keep scores and masks in place.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vlseg.losses.path import advantages, policy_terms
from vlseg.masks import rle
from vlseg.models.modeling import ImageFeatures, VLSegModel
from vlseg.models.path_head import codec_of
from vlseg.training.adapters import DECODER
from vlseg.training.batches import Batch
from vlseg.training.config import TrainConfig
from vlseg.training.loop import Trainer
from vlseg.training.objective import loss_sums
from vlseg.training.reinforce_rewards import Rewards
from vlseg.training.reinforce_rollouts import Drawn, choose, draw, log_probabilities
from vlseg.training.schedule import rate
from vlseg.types import VLSegError

TRAINED = (*DECODER, "vlm.lm_head.")


@dataclass(slots=True)
class Lesson:
    """A batch, its images encoded, and the paths that were drawn for it (None: no query of it has a target).

    advantage, reference: (n,) float32, of every token that the model chose the advantage of its path and the
    log-probability before all reinforcement. before: log-probabilities by the model that drew. told: sums over the
    paths, for the log; "written": the n.
    """

    batch: Batch
    features: ImageFeatures
    drawn: Drawn | None = None
    advantage: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    before: torch.Tensor | None = None
    told: dict[str, float] | None = None


class Reinforcer(Trainer):
    """One run, as `Trainer`, whose steps learn from what the model itself writes.

    reference: the model as it was, frozen; None where adapters, switched off, give it. Raises VLSegError for a model
    without path mode and for settings that do not go together.
    """

    def __init__(self, config: TrainConfig):
        refuse(config)
        self.reference: VLSegModel | None = None
        super().__init__(config)
        if self.sharding != "none":
            raise VLSegError(f"reinforce under {self.sharding}: paths are drawn with whole weights; use --launch ddp")
        section = config.reinforce
        self.rewards = Rewards(codec_of(self.core.config), section.boundary, section.cost, section.workers)

    def prepare_model(self) -> None:
        """See `Trainer.prepare_model`; all but the decoder is frozen, and a copy of the model kept."""
        super().prepare_model()
        codec_of(self.core.config)  # says so where there is no path mode
        for name, parameter in self.plain.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and any(part in name for part in TRAINED))
        if not self.adapted:
            self.reference = copy.deepcopy(self.core).requires_grad_(False).eval()
            self.reference.to(self.accelerator.device)  # the model itself is moved when it is prepared

    def run(self) -> None:
        """See `Trainer.run`."""
        try:
            super().run()
        finally:
            self.rewards.close()

    @contextlib.contextmanager
    def as_it_was(self) -> Iterator[VLSegModel]:
        """The model before all reinforcement."""
        if self.reference is not None:
            yield self.reference
            return
        adapted: Any = self.plain
        trained = [(parameter, parameter.requires_grad) for parameter in adapted.parameters()]
        with adapted.disable_adapter():
            yield self.core
        for parameter, was in trained:  # peft switches on whatever belongs to an adapter
            parameter.requires_grad_(was)

    def train_step(self, batches: list[Batch]) -> dict[str, float]:
        """Draw paths for this rank's batches, and move the weights by them `reinforce.updates` times; what to log."""
        config, section, engine = self.config, self.config.reinforce, self.engine
        self.model.eval()  # no dropout: what draws and what learns are the same
        factor = rate(self.step, config.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        lessons = [self.lesson(batch.to(self.accelerator.device), part) for part, batch in enumerate(batches)]
        queries = sum(float(batch.packed.valid.sum()) for batch in batches)
        told = self.shared(lessons, queries)
        norms, terms = [], []
        for _ in range(section.updates):
            terms.append(self.backward(lessons, told))
            norms.append(engine.step(self.check, self.watch.look if self.watch else lambda: None))
            engine.clear()
        self.step += 1
        self.ema.update()
        self.seen += int(told["queries"])
        record = {name: told[name] / max(told["paths"], 1) for name in ("reward", "iou", "boundary", "tokens")}
        record |= {name: sum(term[name] for term in terms) / len(terms) for name in terms[0]}
        return {**record, "grad_norm": sum(norms) / len(norms), "lr": config.optim.lr * factor}

    def lesson(self, batch: Batch, part: int) -> Lesson:
        """Encode a batch, draw paths, and find what they are worth. part: its number among this step's batches."""
        section, engine = self.config.reinforce, self.engine
        # A function of step and place in it: a resumed run draws the same, and so do two processes in place of one.
        place = part * self.accelerator.num_processes + self.accelerator.process_index
        chance = np.random.default_rng([self.config.seed, self.step, place])
        with torch.no_grad(), engine.autocast():
            lesson = Lesson(batch, self.core.encode_image(self.processor.normalise(batch.pixels)))
        chosen = choose(batch, section.queries, chance)
        if not chosen:
            return lesson
        with engine.autocast():
            lesson.drawn = draw(
                self.core,
                lesson.features,
                batch,
                chosen,
                section.group,
                section.temperature,
                self.processor.pad_id,
                chance,
            )
        drawn = lesson.drawn
        worth = self.rewards(
            [(rle.encode(truth), paths) for truth, paths in zip(drawn.truths, drawn.paths, strict=True)]
        )
        device = self.accelerator.device
        better = advantages(torch.tensor([[path.reward for path in group] for group in worth], dtype=torch.float64))
        lesson.advantage = better.flatten().to(device)[drawn.path_of]
        lesson.told = {"paths": float(better.numel()), "written": float(len(drawn.path_of))}
        for name in ("reward", "iou", "boundary", "tokens"):
            lesson.told[name] = float(sum(getattr(path, name) for group in worth for path in group))
        with torch.no_grad(), engine.autocast(), self.as_it_was() as before:
            lesson.reference = log_probabilities(before, lesson.features, drawn)
        return lesson

    def shared(self, lessons: list[Lesson], queries: float) -> dict[str, float]:
        """Sums over all ranks of what the lessons tell, and of the queries; sees whether to stop."""
        names = ("paths", "written", "reward", "iou", "boundary", "tokens")
        mine = [sum(lesson.told[name] for lesson in lessons if lesson.told) for name in names]
        sums = torch.tensor(
            [*mine, queries, float(self.stop_signal is not None)], dtype=torch.float64, device=self.accelerator.device
        )
        *values, queries, stops = self.accelerator.reduce(sums, "sum").tolist()
        self.stopping = stops > 0
        return {**dict(zip(names, values, strict=True)), "queries": queries}

    def backward(self, lessons: list[Lesson], told: dict[str, float]) -> dict[str, float]:
        """Gradients of one update, of all ranks; its losses over all ranks.

        The objective is a mean over the tokens that the model chose, the supervised losses are means over queries, as
        in `optimizer_step`.
        """
        section, engine, accelerator = self.config.reinforce, self.engine, self.accelerator
        device, ranks = accelerator.device, accelerator.num_processes
        names = ("policy", "divergence", "clipped", "supervised")
        sums = dict.fromkeys(names, torch.zeros((), device=device))
        for lesson in lessons:
            total = torch.zeros((), device=device)
            if lesson.drawn is not None:
                assert lesson.advantage is not None
                assert lesson.reference is not None
                with engine.autocast():
                    now = log_probabilities(self.core, lesson.features, lesson.drawn)
                if lesson.before is None:
                    lesson.before = now.detach()
                terms = policy_terms(
                    now, lesson.before, lesson.reference, lesson.advantage, section.clip, section.divergence
                )
                policy = terms.loss.sum() / told["written"]
                total = total + policy
                sums["policy"] = sums["policy"] + policy.detach()
                sums["divergence"] = sums["divergence"] + terms.divergence.sum() / told["written"]
                sums["clipped"] = sums["clipped"] + terms.clipped.sum() / told["written"]
            if section.supervised:
                batch = lesson.batch
                with engine.autocast():
                    output = self.core(image_features=lesson.features, **batch.packed.tensors())
                losses = loss_sums(output, batch, self.core.config, self.losses)
                supervised = section.supervised * torch.stack(list(losses.values())).sum() / told["queries"]
                total = total + supervised
                sums["supervised"] = sums["supervised"] + supervised.detach()
            if total.requires_grad:
                # Not through the wrapper that exchanges gradients, which knows one forward pass a step: see below.
                engine.backward(total * ranks, False)
        if ranks > 1:
            for parameter in self.plain.parameters():
                if parameter.requires_grad:
                    mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = accelerator.reduce(mine, "mean")
        values = accelerator.reduce(torch.stack([sums[name].double() for name in names]), "sum").tolist()
        record = dict(zip(names, values, strict=True))
        return {**record, "loss": record["policy"] + record["supervised"]}

    def check(self, norm: torch.Tensor) -> None:
        """Raises VLSegError for a gradient that is not finite."""
        if not torch.isfinite(norm):
            raise VLSegError(f"step {self.step}: the gradient is not finite; lower optim.lr, or reinforce.updates")


def refuse(config: TrainConfig) -> None:
    """Raises VLSegError, in one line, for what does not go with reinforcement."""
    if config.adapter.kind == "adalora":
        raise VLSegError("reinforce with adapter=adalora: its pruning reads supervised gradients; use adapter=lora")
    if config.warmup.steps:
        raise VLSegError("reinforce with warmup: towers are frozen here; set warmup.steps=0")
    if config.paths.on:  # paths would be drawn behind the true ones
        raise VLSegError("reinforce with paths.on=true: the model draws its paths itself here; set paths.on=false")
