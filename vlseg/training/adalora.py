"""AdaLoRA beyond what peft does by itself: pruning on real steps, orthogonality in the loss, ranks told and re-packed.

peft's `update_and_allocate` must see the gradients of every optimizer step, its orthogonality term only enters where a
model returns its own loss, and its pruned ranks stay in memory as zeros.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.adalora.layer import AdaLoraLayer
from PIL import Image, ImageDraw
from torch import nn

from vlseg.data.files import write_whole
from vlseg.masks import lettering
from vlseg.training.adapters import ADAPTER, base_of

COLUMNS = 150  # of the plot, at most


def layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name in `VLSegModel`, layer) of every layer with an AdaLoRA adapter, in order."""
    for name, module in base_of(model).named_modules():
        if isinstance(module, AdaLoraLayer):
            yield name, module


class RankSchedule:
    """The pruning of one run.

    orthogonality: the term of the loss, already weighted; `step` follows every optimizer step while its gradients are
    still there; `ranks`: what is left; `history`: [step, ranks in the order of `names`] after each pruning. settled:
    the last pruning is over; packed: and the adapters hold nothing else any more (`vlseg/training/repack.py`).
    """

    def __init__(self, model: nn.Module, packed: bool = False):
        self.model: Any = model
        self.packed = self.settled = packed
        self.pattern: dict[str, list[bool]] = {}  # by E's name, as peft keeps it
        adapted: Any = model
        self.settings: Any = adapted.peft_config[ADAPTER]
        self.allocator: Any = adapted.base_model.rankallocator
        self.names = [name for name, _ in layers(model)]
        self.history: list[tuple[int, list[int]]] = [(0, [layer.r[ADAPTER] for _, layer in layers(model)])]

    def orthogonality(self) -> torch.Tensor:
        """Weight times the mean over all A and B of the Frobenius norms of A A^T - I, B^T B - I (arXiv 2303.10512)."""
        terms = []
        for _, layer in layers(self.model):
            a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
            eye = torch.eye(len(a), device=a.device)
            terms += [torch.linalg.matrix_norm(a @ a.t() - eye), torch.linalg.matrix_norm(b.t() @ b - eye)]
        return self.settings.orth_reg_weight * torch.stack(terms).mean()

    def step(self, step: int) -> None:
        """Weigh the ranks by the gradients of optimizer step number `step` (from 1), and prune where it is time."""
        if self.packed:
            self.hold_the_dead()
            return
        self.model.base_model.update_and_allocate(step)
        self.pattern = self.settings.rank_pattern or {}
        self.settled = step >= self.settings.total_step - self.settings.tfinal and bool(self.pattern)
        ranks = self.ranks()
        if ranks != self.history[-1][1]:
            self.history.append((step, ranks))

    @torch.no_grad()
    def hold_the_dead(self) -> None:
        """Of a layer without any rank left one is still there, and must not come back."""
        for (_, layer), rank in zip(layers(self.model), self.history[-1][1], strict=True):
            if rank == 0:
                layer.lora_E[ADAPTER].zero_()

    def ranks(self) -> list[int]:
        """What is left of each adapter: singular values that no pruning has set to zero."""
        if not self.pattern:
            return list(self.history[0][1])
        left = {key.split(".lora_E")[0]: sum(mask) for key, mask in self.pattern.items()}
        return [left[name] for name in self.names]

    @contextlib.contextmanager
    @torch.no_grad()
    def pruned(self) -> Iterator[None]:
        """Within the block what is pruned is zero, although an average, or a step since, may say otherwise."""
        singular = {} if self.packed else {name: layer.lora_E[ADAPTER] for name, layer in layers(self.model)}
        before = {name: values.detach().clone() for name, values in singular.items()}
        for key, mask in self.pattern.items():
            values = singular.get(key.split(".lora_E")[0])
            if values is not None:
                values.mul_(torch.tensor(mask, device=values.device).view(-1, 1))
        try:
            yield
        finally:
            for name, values in singular.items():
                values.copy_(before[name])

    def summary(self) -> dict[str, float]:
        """For the log: the mean rank, and the lowest and highest."""
        ranks = self.history[-1][1]
        return {"rank": round(sum(ranks) / len(ranks), 3), "rank_min": min(ranks), "rank_max": max(ranks)}

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and lists for a checkpoint: smoothed importances, what is pruned, the history."""
        names = ("ipt", "exp_avg_ipt", "exp_avg_unc")
        kept = {name: dict(getattr(self.allocator, name)) for name in names}
        told = {"pattern": self.pattern, "settled": self.settled, "packed": self.packed, "history": self.history}
        return {**kept, **told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.pattern = state["pattern"]
        if not self.packed:  # else there is nothing to prune any more
            places = {name: p.device for name, p in self.allocator_parameters()}
            for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
                setattr(self.allocator, name, {key: value.to(places[key]) for key, value in state[name].items()})
            self.settings.rank_pattern = state["pattern"] or None
        self.history = [(step, list(ranks)) for step, ranks in state["history"]]

    def allocator_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters as peft's allocator names them."""
        return self.model.base_model.model.named_parameters()

    def plot(self, file: Path) -> None:
        """Draw the history: a row a layer, a column a pruning, darker for more ranks."""
        write_whole(file, heat_map(self.names, self.history))


def kept_ranks(layer: Any, mask: Sequence[bool] | None) -> torch.Tensor:
    """Positions of a layer's ranks that are worth keeping: not pruned, and not zero."""
    values = layer.lora_E[ADAPTER].detach().flatten()
    keep = values != 0
    if mask is not None:
        keep &= torch.tensor(list(mask), device=values.device)
    return keep.nonzero().flatten()


def as_lora(layer: Any, mask: Sequence[bool] | None) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """A layer as plain LoRA of its true rank r: A (r, in, ...), B (out, r, ...), and the alpha that peft scales with.

    (B diag(E) A) scaling / ranks at the start = (B (E A)) alpha / r. None where nothing is left of it.
    """
    keep = kept_ranks(layer, mask)
    if not len(keep):
        return None
    a = (layer.lora_A[ADAPTER] * layer.lora_E[ADAPTER]).detach()[keep]
    b = layer.lora_B[ADAPTER].detach()[:, keep]
    alpha = float(layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].item() + 1e-5) * len(keep))
    if isinstance(layer.get_base_layer(), nn.Conv2d):
        a, b = a[..., None, None], b[..., None, None]
    return a.contiguous(), b.contiguous(), alpha


def heat_map(names: Sequence[str], history: Sequence[tuple[int, list[int]]]) -> bytes:
    """The ranks of all layers over the steps, as PNG."""
    if len(history) > COLUMNS:
        history = [history[round(i * (len(history) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    cell_w, cell_h, left, top = max(6, min(28, 900 // len(history))), 12, 340, 24
    most = max(1, max(max(ranks) for _, ranks in history))
    image = Image.new("RGB", (left + cell_w * len(history) + 60, top + cell_h * len(names) + 24), "white")
    draw = ImageDraw.Draw(image)
    font = lettering.font_for("0", 10)
    draw.text((8, 6), f"ranks of the adapters (0 white to {most} dark)", font=font, fill="black")
    for row, name in enumerate(names):
        y = top + row * cell_h
        short = name if lettering.width(name, font) <= left - 10 else "…" + name[-50:]
        draw.text((left - 6, y + cell_h / 2), short, font=font, fill="black", anchor="rm")
        for column, (_, ranks) in enumerate(history):
            shade = ranks[row] / most
            colour = tuple(round(255 + shade * (dark - 255)) for dark in (20, 60, 110))
            box = (left + column * cell_w, y, left + (column + 1) * cell_w - 1, y + cell_h - 2)
            draw.rectangle(box, fill=colour)
        end = left + len(history) * cell_w + 6
        draw.text((end, y + cell_h / 2), str(history[-1][1][row]), font=font, fill="black", anchor="lm")
    steps = f"step {history[0][0]} to {history[-1][0]}; at the right the rank at the end"
    draw.text((8, image.height - 18), steps, font=font, fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
