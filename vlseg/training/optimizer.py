"""Which parameters follow which rule at which rate."""

from __future__ import annotations

import torch
from torch import nn

from vlseg.training.config import OptimSection
from vlseg.training.muon import MuonAdamW, is_matrix

HEAD = ("mask_head.", "pixel_decoder.")


def build_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.Optimizer:
    """AdamW, or with `optim.matrix_lr` Muon for the matrices. A group's `base`: its rate before the schedule.

    Matrices and kernels decay; biases, norms, scales, embeddings and prototypes do not. Token embeddings have their own
    rate: a word's row moves only when the word is there. So may mask head and pixel decoder (`optim.head_scale`).
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    scaled = optim.head_scale != 1.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = kind_of(name, parameter, bool(optim.matrix_lr))
            head = scaled and any(part in name for part in HEAD)
            groups.setdefault((kind, head), []).append(parameter)
    base = {"matrix": optim.matrix_lr, "rows": optim.lr * optim.embedding_scale}
    decay = {"matrix": optim.weight_decay, "decay": optim.weight_decay}
    order = [(kind, head) for kind in ("matrix", "decay", "free", "rows") for head in (False, True)]
    arguments = []
    for kind, head in order:
        if (kind, head) in groups:
            rate = base.get(kind, optim.lr) * (optim.head_scale if head else 1.0)
            arguments.append(
                {
                    "params": groups[kind, head],
                    "lr": rate,
                    "base": rate,
                    "weight_decay": decay.get(kind, 0.0),
                    "matrix": kind == "matrix",
                }
            )
    muon = any(kind == "matrix" for kind, _ in groups)
    made = MuonAdamW if muon else torch.optim.AdamW
    optimizer = made(arguments, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), fused=True)
    if isinstance(optimizer, MuonAdamW):
        optimizer.keeps_gradients = any("lora_E" in name for name, _ in model.named_parameters())
    return optimizer


def kind_of(name: str, parameter: nn.Parameter, muon: bool) -> str:
    """Which rule a parameter follows: "rows" (of tokens), "matrix" (Muon's), "free" of decay, or "decay"."""
    if "embed_tokens" in name or "token_adapter" in name:
        return "rows"
    if muon and is_matrix(name, parameter):
        return "matrix"
    if parameter.ndim < 2 or name.endswith(".gamma") or "prototypes" in name:
        return "free"
    return "decay"
