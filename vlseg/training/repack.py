"""AdaLoRA's run made smaller: after the last pruning the ranks that are gone leave memory, and not only the file.

At that step the run writes a checkpoint and begins anew from it, with adapters of the ranks that are left: optimizer,
averages and the exchange of gradients are then built for what there is. Every later start of the run does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlseg.training import checkpoint
from vlseg.training.adalora import layers
from vlseg.training.adapters import ADAPTER

# The dimension of the ranks in each factor; E weighs what A and B span.
FACTORS = {"lora_A": 0, "lora_E": 0, "lora_B": 1}
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")  # AdamW's and Muon's

Pattern = dict[str, list[bool]]  # by layer: which of the ranks it began with are left


def settled(root: Path) -> Pattern | None:
    """What the last pruning of a run has left, by its newest whole checkpoint in `root`; None before that."""
    state = checkpoint.load_newest(root, lambda line: None)
    if state is None or not state.get("adalora", {}).get("settled"):
        return None
    return by_layer(state["adalora"]["pattern"])


def by_layer(pattern: dict[str, list[bool]]) -> Pattern:
    """peft's pattern, whose keys are names of parameters."""
    return {name.split(".lora_E")[0]: list(mask) for name, mask in pattern.items()}


def places(mask: list[bool]) -> torch.Tensor:
    """The ranks to keep; of a layer that has lost all of them the first one, which stays at zero."""
    kept = torch.tensor(mask).nonzero().flatten()
    return kept if len(kept) else torch.zeros(1, dtype=torch.int64)


def shrink(model: nn.Module, pattern: Pattern) -> None:
    """Take the ranks that are gone out of adapters that have just been attached."""
    for name, layer in layers(model):
        for factor, dimension in FACTORS.items():
            weight = getattr(layer, factor)[ADAPTER]
            weight.data = weight.data.index_select(dimension, places(pattern[name]).to(weight.device))


def shrunk(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, pattern: Pattern) -> None:
    """Take the same ranks out of a checkpoint of the whole adapters, in place.

    model, optimizer: of the run that takes it up, whose parameters have the names and the order of the one before.
    """
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    cuts = {name: cut for name in names.values() if (cut := _cut(name, pattern)) is not None}

    def reduced(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in cuts:
            return tensor
        dimension, kept, alive = cuts[name]
        small = tensor.index_select(dimension, kept.to(tensor.device))
        return small if alive else torch.zeros_like(small)  # an average still remembers it

    state["model"] = {name: reduced(name, tensor) for name, tensor in state["model"].items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    for number, entry in state["optimizer"]["state"].items():
        entry.update({key: reduced(order[number], entry[key]) for key in MOMENTS if key in entry})
    average = state["ema"]["average"]
    state["ema"]["average"] = [reduced(name, t) for name, t in zip(names.values(), average, strict=False)]


def _cut(name: str, pattern: Pattern) -> tuple[int, torch.Tensor, bool] | None:
    """Dimension and places of a parameter's ranks that stay, and whether any is alive; None for one without ranks."""
    layer, found, rest = name.removeprefix("base_model.model.").partition(".lora_")
    factor = f"lora_{rest.partition('.')[0]}"
    if not found or factor not in FACTORS:
        return None
    return FACTORS[factor], places(pattern[layer]), factor != "lora_E" or any(pattern[layer])
