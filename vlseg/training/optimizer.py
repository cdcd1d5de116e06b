"""Which parameters follow which rule at which rate."""

from __future__ import annotations

import torch
from torch import nn

from vlseg.training.config import OptimSection
from vlseg.training.muon import MuonAdamW, is_matrix


def build_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.Optimizer:
    """AdamW, or with `optim.matrix_lr` Muon for the matrices. A group's `base`: its rate before the schedule.

    Matrices and kernels decay; biases, norms, scales, embeddings and prototypes do not. Token embeddings have their own
    rate: a word's row moves only when the word is there.
    """
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "decay": [], "free": [], "rows": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "embed_tokens" in name:
            groups["rows"].append(parameter)
        elif optim.matrix_lr and is_matrix(name, parameter):
            groups["matrix"].append(parameter)
        elif parameter.ndim < 2 or name.endswith(".gamma") or "prototypes" in name:
            groups["free"].append(parameter)
        else:
            groups["decay"].append(parameter)
    base = {"matrix": optim.matrix_lr, "rows": optim.lr * optim.embedding_scale}
    decay = {"matrix": optim.weight_decay, "decay": optim.weight_decay}
    arguments = [
        {
            "params": parameters,
            "lr": base.get(name, optim.lr),
            "base": base.get(name, optim.lr),
            "weight_decay": decay.get(name, 0.0),
            "matrix": name == "matrix",
        }
        for name, parameters in groups.items()
        if parameters
    ]
    kind = MuonAdamW if groups["matrix"] else torch.optim.AdamW
    return kind(arguments, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), fused=True)
