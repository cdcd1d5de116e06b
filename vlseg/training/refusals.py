"""Settings that do not go together: refused in one line before anything is loaded."""

from __future__ import annotations

from vlseg.training.chain import first_run
from vlseg.training.config import Sharding, TrainConfig
from vlseg.types import VLSegError


def refuse_all(config: TrainConfig, sharding: Sharding) -> None:
    """`refuse` for a run and for the one that goes before it, whichever would meet it first."""
    before = first_run(config)
    if before is not None:
        refuse_all(before, sharding)
    refuse(config, sharding)


def refuse(config: TrainConfig, sharding: Sharding) -> None:
    """Raises VLSegError, in one line, for what is known not to work; elsewhere much of it fails without a word."""
    from vlseg.models.precision import QUANTISED

    adapter, base = config.adapter.kind, config.model.base
    if base != "float32" and adapter == "none":
        raise VLSegError(f"model.base={base} is for frozen weights: choose adapter.kind, or model.base=float32")
    if base == "bfloat16" and config.mixed_precision != "bf16":
        raise VLSegError("model.base=bfloat16 needs mixed_precision=bf16")
    if base in QUANTISED and sharding in ("zero3", "fsdp2"):
        raise VLSegError(
            f"model.base={base} under {sharding}: quantised weights cannot be sharded; use --launch ddp or zero2"
        )
    if adapter == "adalora" and sharding != "none":
        raise VLSegError(
            f"adapter=adalora under {sharding}: pruning needs every gradient whole; use --launch ddp, or adapter=lora"
        )
    if config.optim.matrix_lr and sharding != "none":
        raise VLSegError(
            f"optim.matrix_lr under {sharding}: Muon needs whole matrices; use --launch ddp, or 0 for AdamW"
        )
    if config.optim.ema and sharding in ("zero2", "zero3"):
        raise VLSegError(f"optim.ema under {sharding}: the average needs whole weights; set optim.ema=0")
    if config.warmup.steps and sharding != "none":
        raise VLSegError(f"warmup.steps under {sharding}: warm the towers up with --launch ddp")
    if config.qat.kind != "none":
        if adapter == "adalora":
            raise VLSegError("qat with adalora: prune first, then round; see configs/train/adalora-qat.yaml")
        if base in QUANTISED:
            raise VLSegError(f"qat with model.base={base}: the weights are rounded already; use model.base=float32")
        if adapter != "none" and sharding != "none":
            raise VLSegError(f"qat with adapters under {sharding}: the weights must be whole; use --launch ddp")
