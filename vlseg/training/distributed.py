"""One run on one or many processes: plain, DDP, FSDP2 and DeepSpeed ZeRO through Accelerate, on GPUs and on CPUs."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import nn
from transformers.integrations import unset_hf_deepspeed_config

from vlseg.training.adapters import base_of
from vlseg.training.config import Sharding, TrainConfig
from vlseg.training.refusals import refuse
from vlseg.training.shared_out import check_shared
from vlseg.types import VLSegError

# One rank may validate, or write a large checkpoint, while the others wait.
PATIENCE = datetime.timedelta(hours=6)


def asked_sharding() -> Sharding:
    """What whoever started this process wants sharded, by the variables that `accelerate launch` sets."""
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return "zero3" if stage == "3" else "zero2"
    return "fsdp2" if _flag("ACCELERATE_USE_FSDP") else "none"


def make_accelerator(config: TrainConfig) -> tuple[Accelerator, Sharding]:
    """This process's Accelerator.

    Raises VLSegError for settings that do not go together, for lost processes, and for an `out` that not all of them
    see.
    """
    sharding = asked_sharding()
    refuse(config, sharding)
    on_cpu = not torch.cuda.is_available() or _flag("ACCELERATE_USE_CPU")
    trackers: Any = [name for name in config.trackers if name != "tensorboard"]
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            close = difflib.get_close_matches(str(name), list(LOGGER_TYPE_TO_CLASS), n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(LOGGER_TYPE_TO_CLASS)}"
            raise VLSegError(f"trackers: Accelerate knows no {name}; {hint}")
    options: dict[str, Any] = {
        "log_with": trackers or None,
        "project_dir": config.out,
        "kwargs_handlers": [InitProcessGroupKwargs(timeout=PATIENCE)],
    }
    if sharding == "fsdp2":
        accelerator = Accelerator(mixed_precision=config.mixed_precision, **_fsdp2(on_cpu), **options)
    elif sharding != "none":
        plugin = _deepspeed(config)
        if on_cpu:
            # Accelerate 1.15 lets DeepSpeed drop out wherever it is told to use the CPU.
            os.environ.update(ACCELERATE_USE_CPU="false", ACCELERATE_TORCH_DEVICE="cpu")
            options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo", timeout=PATIENCE)]
        accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=plugin, **options)
        # Else transformers and peft shard while they build; the model is built whole, and sharded when it is prepared.
        unset_hf_deepspeed_config()
    else:
        # Gradients lie in the buffers in which they are exchanged: else there would be two of each.
        options["kwargs_handlers"].append(DistributedDataParallelKwargs(gradient_as_bucket_view=True))
        accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu, **options)
    lost = [name for name in trackers if name not in {str(getattr(t, "value", t)) for t in accelerator.log_with}]
    if lost:
        raise VLSegError(f"trackers: {lost[0]} is not installed; pip install {lost[0]}")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise VLSegError(f"{started} processes were started, and {accelerator.num_processes} found each other")
    wanted = {"none": None, "fsdp2": DistributedType.FSDP}.get(sharding, DistributedType.DEEPSPEED)
    if wanted is not None and accelerator.distributed_type != wanted:
        raise VLSegError(f"{sharding} was asked for, and Accelerate came up as {accelerator.distributed_type.value}")
    check_shared(accelerator, Path(config.out))
    return accelerator, sharding


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def _fsdp2(on_cpu: bool) -> dict[str, Any]:
    from accelerate import FullyShardedDataParallelPlugin, PartialState

    plugin = FullyShardedDataParallelPlugin()  # from the variables that `accelerate launch` sets
    if plugin.fsdp_version != 2:
        raise VLSegError("fsdp_version: only FSDP2 is supported; set fsdp_version: 2 in the accelerate config")
    if on_cpu:
        # Accelerate 1.15 makes plain DDP of FSDP on a CPU, unless it takes the processes for GPU ones.
        PartialState(cpu=True, timeout=PATIENCE)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return {"fsdp_plugin": plugin}


def _deepspeed(config: TrainConfig) -> Any:
    from accelerate import DeepSpeedPlugin

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        # Accelerate says less clearly that it is missing.
        from deepspeed.runtime.zero import parameter_offload
    except ImportError as error:
        raise VLSegError(f"zero2, zero3: {error.name} is not installed; pip install 'vlseg[deepspeed]'") from error
    # ZeRO-3 looks into what modules return by `vars`, which dataclasses with slots do not have.
    parameter_offload.vars = _fields
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = 1  # only says how to print speeds; batches are made by vlseg
    settings["gradient_accumulation_steps"] = 1  # every loss is divided by the queries of the whole step already
    settings["gradient_clipping"] = config.optim.clip
    settings["zero_force_ds_cpu_optimizer"] = False
    settings["steps_per_print"] = 10**9
    return plugin


def _fields(output: Any) -> dict[str, Any]:
    """What a module's output holds, by name."""
    return {f.name: getattr(output, f.name) for f in fields(output)} if is_dataclass(output) else vars(output)


class Engine:
    """Backward passes and optimizer steps, the same to call however the model is spread.

    model: as prepared; optimizer: likewise; sharding: see `Sharding`.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig
    ):
        self.accelerator, self.config, self.fresh = accelerator, config, True
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            optimizer = widened(model, optimizer)
        if accelerator.distributed_type == DistributedType.FSDP:
            # Layers are sharded one by one; the rest of the model is one unit more.
            accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layer_classes(model)
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing here writes into it
            hide_tied_rows(model)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The number type of a forward pass. DeepSpeed's own would turn every weight into bfloat16."""
        if not self.deepspeed:
            return self.accelerator.autocast()
        from deepspeed.runtime.zero import parameter_offload

        # ZeRO-3's stack of the modules that are running, of which the first is the model. Recomputing stops in the
        # middle of modules and leaves them there, and what the model returns of its own weights would become theirs.
        del parameter_offload.FWD_MODULE_STACK[1:]
        on = self.config.mixed_precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=on)

    @contextlib.contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around forward and backward of an accumulated batch; ranks exchange gradients in the last one only."""
        if last or self.deepspeed:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Gradients, averaged over the ranks in the `last` part of a step."""
        if self.deepspeed:
            engine: Any = self.model
            engine.set_gradient_accumulation_boundary(last)
            engine.backward(loss)
        else:
            self.accelerator.backward(loss)

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """A parameter's whole gradient between `backward` and `step`; every rank must ask."""
        if self.deepspeed:
            from deepspeed.utils import safe_get_full_grad

            gradient: torch.Tensor | None = safe_get_full_grad(parameter)
            return gradient
        full = getattr(parameter.grad, "full_tensor", None)
        return parameter.grad if full is None else full()

    def step(self, check: Callable[[torch.Tensor], None], before: Callable[[], None] = lambda: None) -> float:
        """Clip, `check` the norm of the gradient (before clipping), move; the norm. Gradients are left in place.

        before: called with whole gradients in place, unclipped.
        """
        if self.fresh and not self.deepspeed:
            self.fresh = False
            lacking = [n for n, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
            if lacking and self.accelerator.num_processes > 1:
                raise VLSegError(
                    f"{len(lacking)} trained weights take no part in the loss ({lacking[0]}, ...), and the processes "
                    "would wait for each other's gradients of them for ever; train in one process, or report the model"
                )
        before()
        if self.deepspeed:
            engine: Any = self.model
            engine.step()
            norm = torch.as_tensor(engine.get_global_grad_norm())
            check(norm)
            return float(norm)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        check(norm)
        self.optimizer.step()
        return float(norm)

    def clear(self) -> None:
        """Drop the gradients of a step."""
        if not self.deepspeed:
            self.optimizer.zero_grad(set_to_none=True)


def widened(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give weights that are single numbers a dimension, without which nothing can be sharded; the optimizer follows.

    Their names without those of peft's wrappers are kept as `VLSegModel.widened` (see `merge.merged_state`).
    """
    changed: dict[int, nn.Parameter] = {}
    names = set()
    for path, module in base_of(model).named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                wide = nn.Parameter(parameter.detach()[None].clone(), requires_grad=parameter.requires_grad)
                changed[id(parameter)] = wide
                setattr(module, name, wide)
                names.add(f"{path}.{name}".replace(".modules_to_save.default", "").replace(".original_module", ""))
    for group in optimizer.param_groups:
        group["params"] = [changed.get(id(p), p) for p in group["params"]]
    core: Any = base_of(model)
    core.widened = sorted(names)
    return optimizer


def hide_tied_rows(model: Any) -> None:
    """Leave embedding and head, where they are one matrix, in the unit of all that is no layer.

    Accelerate gives each a unit of its own, and does not see that they are one where peft has wrapped the head.
    """
    vlm = base_of(model).vlm
    rows = [getattr(part, "token_adapter", part) for part in (vlm.get_input_embeddings(), vlm.get_output_embeddings())]
    if len({id(getattr(part, "base_layer", part).weight) for part in rows}) == 1:
        model.get_input_embeddings = model.get_output_embeddings = lambda: None


def layer_classes(model: nn.Module) -> list[str]:
    """Class names of the repeated layers, for sharding and compiling one by one."""
    core = base_of(model)
    names = core._no_split_modules or ()
    return sorted({type(m).__name__ for m in core.modules() if type(m).__name__ in names})


def sharded_parameters(model: nn.Module) -> tuple[int, int]:
    """(weights on this rank, weights in all): equal where nothing is sharded."""
    mine = total = 0
    parameter: Any
    for parameter in model.parameters():
        if hasattr(parameter, "to_local"):
            mine += parameter.to_local().numel()
            total += parameter.numel()
        elif hasattr(parameter, "ds_id"):
            mine += parameter.ds_tensor.numel()
            total += parameter.ds_numel
        else:
            mine += parameter.numel()
            total += parameter.numel()
    return mine, total
