"""From a model in training to what is saved: plain weights with everything merged, and the adapter as a PEFT folder."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vlseg.data.files import write_whole
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.systems.quiet import quiet_loading
from vlseg.training.adapters import ADAPTER, base_of
from vlseg.types import VLSegError

BASE = "base.json"  # beside an adapter: how the weights it was trained on were held


def base_kind(model: nn.Module) -> str:
    """How the language model's layers are held: "nf4", "int8" or "float"."""
    if any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        return "nf4"
    return "int8" if any("torchao" in type(p).__module__ for p in model.parameters()) else "float"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its shards; every rank must ask."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach()


def own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the CPU in memory of its own: averages are in the model only while they are looked at."""
    return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor)


@contextlib.contextmanager
def gathered(module: Any, recurse: bool = True) -> Iterator[None]:
    """Within the block ZeRO-3's partitioned parameters of a module are whole; nothing to do for others."""
    sharded = [p for p in module.parameters(recurse=recurse) if hasattr(p, "ds_id")]
    if not sharded:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(sharded):
        yield


def dequantised(layer: nn.Module) -> torch.Tensor:
    """A linear layer's weight in floating point, whatever it is held in."""
    from peft.utils.integrations import dequantize_module_weight

    return whole(dequantize_module_weight(layer))


def merged_state(model: nn.Module, held: bool = True) -> dict[str, torch.Tensor]:
    """The weights of a plain `VLSegModel` that answers as this model does, on the CPU.

    Adapters are added to the (dequantised) weights, rows of tokens put in their place, parts trained whole copied as
    they are. Under sharding every rank must call it, those that do not need the weights with held=False: they take part
    and hold no copy of the model, of which a machine would else have one a GPU. The model itself is left as it is.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    state: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: Any) -> None:
        value = whole(tensor)
        if held:
            state[name] = own_copy(value)

    def walk(module: Any, prefix: str) -> None:
        if isinstance(module, ModulesToSaveWrapper):
            walk(module.modules_to_save[ADAPTER], prefix)
        elif isinstance(module, TrainableTokensWrapper):
            with gathered(module):
                adapter = module.token_adapter
                rows = torch.tensor(adapter.token_indices[ADAPTER])
                keep(f"{prefix}weight", adapter.base_layer.weight)
                changed = whole(adapter.trainable_tokens_delta[ADAPTER])
                if held:
                    before = state[f"{prefix}weight"]
                    state[f"{prefix}weight"] = before.index_copy(0, rows, changed.cpu().to(before))
        elif isinstance(module, LoraLayer):
            with gathered(module):
                base = module.get_base_layer()
                delta = _delta(module)
                weight = dequantised(base)
                keep(f"{prefix}weight", (weight.to(delta) + delta).to(_dtype(weight)))
                if base.bias is not None:
                    keep(f"{prefix}bias", base.bias)
        elif isinstance(module, nn.Linear) and not torch.is_floating_point(module.weight.data):
            keep(f"{prefix}weight", dequantised(module))
            if module.bias is not None:
                keep(f"{prefix}bias", module.bias)
        else:
            with gathered(module, recurse=False):
                own: dict[str, torch.Tensor] = {}
                module._save_to_state_dict(own, prefix, keep_vars=False)
                for name, value in own.items():
                    keep(name, dequantised(module) if "torchao" in type(value).__module__ else value)
            for name, child in module.named_children():
                walk(child, f"{prefix}{name}.")

    core = base_of(model)
    with torch.no_grad():
        walk(core, "")
    if not held:
        return state
    for name in getattr(core, "widened", ()):  # see `distributed.widened`
        state[name] = state[name].view(())
    for copy_name, name in core.all_tied_weights_keys.items():
        # Of two tied matrices the head's is the one whose rows are trained (see `adapters.token_rows`).
        state[name] = state[copy_name]
    return state


def _dtype(weight: torch.Tensor) -> torch.dtype:
    return weight.dtype if weight.dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32


def _delta(layer: Any) -> torch.Tensor:
    """What an adapter adds to its layer's weight, float32, from whole factors."""
    from peft.tuners.adalora.layer import AdaLoraLayer

    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    if isinstance(layer, AdaLoraLayer):
        left, right = b, a * layer.lora_E[ADAPTER]
        scale = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].item() + 1e-5)
    else:
        left, right, scale = whole(b.weight), whole(a.weight), layer.scaling[ADAPTER]
    product = left.float().flatten(1) @ right.float().flatten(1)
    shape = layer.get_base_layer().weight.shape
    return (product * scale).view(shape) if len(shape) == 4 else product * scale  # 4-bit weights have a shape of bytes


def shell(model: nn.Module) -> VLSegModel:
    """A plain model of the same shape without weights: it knows how to save a state and to write the card."""
    config = copy.deepcopy(base_of(model).config)
    for part in (config, config.vlm):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    with torch.device("meta"):
        return VLSegModel(config)


def plain_model(model: nn.Module, state: dict[str, torch.Tensor], dtype: torch.dtype) -> VLSegModel:
    """What `merged_state` gave as a model of its own, on the CPU. Raises ValueError for a state that does not fit."""
    with quiet_loading():
        plain, found = VLSegModel.from_pretrained(
            None, config=shell(model).config, state_dict=dict(state), dtype=dtype, output_loading_info=True
        )
    wrong = {kind: sorted(map(str, found[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ValueError(f"not the weights of this model: {wrong}")
    return cast(VLSegModel, plain)


def cast_state(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Floating tensors in another dtype. Tied tensors stay one tensor, or a file would hold both."""
    done: dict[int, torch.Tensor] = {}
    for value in state.values():
        done.setdefault(id(value), value.to(dtype) if value.is_floating_point() else value)
    return {name: done[id(value)] for name, value in state.items()}


def save_merged(
    model: nn.Module,
    state: dict[str, torch.Tensor],
    processor: VLSegProcessor,
    folder: Path,
    dtype: torch.dtype,
    name: Path | None = None,
) -> None:
    """Write merged weights as a checkpoint folder that `Segmenter` loads. name: what its card calls it."""
    shell(model).save_pretrained(folder, state_dict=cast_state(state, dtype), card_name=str(name or folder))
    processor.save_pretrained(folder)


def adapter_state(model: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The adapter as plain LoRA: settings that differ from layer to layer, and the tensors as a PEFT folder has them.

    AdaLoRA is re-packed to its true ranks, layers of which nothing is left are left out. Under sharding every rank must
    call it.
    """
    from peft.tuners.adalora.layer import AdaLoraLayer
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    from vlseg.training.adalora import as_lora

    core = base_of(model)
    masks = getattr(settings_of(model), "rank_pattern", None) or {}
    settings: dict[str, Any] = {"target_modules": [], "rank_pattern": {}, "alpha_pattern": {}}
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: Any) -> None:
        value = own_copy(whole(tensor))
        tensors[f"base_model.model.{name}"] = value.view(()) if name in getattr(core, "widened", ()) else value

    module: Any
    for name, module in core.named_modules():
        if isinstance(module, AdaLoraLayer):
            packed = as_lora(module, masks.get(f"{name}.lora_E.{ADAPTER}"))
            if packed is None:
                continue
            keep(f"{name}.lora_A.weight", packed[0])
            keep(f"{name}.lora_B.weight", packed[1])
            settings["target_modules"].append(name)
            settings["rank_pattern"][name] = len(packed[0])
            settings["alpha_pattern"][name] = packed[2]
        elif isinstance(module, LoraLayer):
            with gathered(module):
                keep(f"{name}.lora_A.weight", module.lora_A[ADAPTER].weight)
                keep(f"{name}.lora_B.weight", module.lora_B[ADAPTER].weight)
            settings["target_modules"].append(name)
        elif isinstance(module, ModulesToSaveWrapper):
            inner = module.modules_to_save[ADAPTER]
            with gathered(inner):
                for key, value in inner.state_dict().items():
                    keep(f"{name}.{key}", value)
        elif isinstance(module, TrainableTokensWrapper):
            with gathered(module):
                keep(
                    f"{name}.token_adapter.trainable_tokens_delta", module.token_adapter.trainable_tokens_delta[ADAPTER]
                )
    return settings, tensors


def settings_of(model: Any) -> Any:
    """peft's configuration of the adapter."""
    return model.peft_config[ADAPTER]


def save_adapter(model: nn.Module, packed: tuple[dict[str, Any], dict[str, torch.Tensor]], folder: Path) -> None:
    """Write what `adapter_state` gave as a PEFT folder, which peft itself can load on the base.

    `BASE` in it tells how the base was held, which decides what the adapter is merged into. Raises VLSegError where
    the rows of the control tokens are trained and not among the tensors.
    """
    from peft import LoraConfig
    from safetensors.torch import save

    settings, tensors = packed
    trained = settings_of(model)
    for name in trained.trainable_token_indices or {}:
        if f"base_model.model.{name}.token_adapter.trainable_tokens_delta" not in tensors:
            raise VLSegError(
                f"{folder}: the trained rows of {name} are not in the adapter; it would reload without them"
            )
    written = LoraConfig(
        r=getattr(trained, "target_r", None) or trained.r,
        lora_alpha=trained.lora_alpha,
        lora_dropout=trained.lora_dropout,
        modules_to_save=trained.modules_to_save,
        trainable_token_indices=trained.trainable_token_indices,
        base_model_name_or_path=trained.base_model_name_or_path,
        inference_mode=True,
        **settings,
    )
    folder.mkdir(parents=True, exist_ok=True)
    written.save_pretrained(str(folder))
    write_whole(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    write_whole(folder / BASE, json.dumps({"base": base_kind(base_of(model))}) + "\n")
