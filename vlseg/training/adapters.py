"""Low-rank adapters on a native model, by peft: where they go, what is trained beside them, whether they learn."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlseg.models.modeling import VLSegModel
from vlseg.models.path_head import codec_of
from vlseg.training.config import AdapterSection, Place, TrainConfig
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"  # the name that peft gives to a model's only adapter
DECODER = ("vlm.model.language_model.", "vlm.model.text_model.")


def place_of(name: str) -> Place | None:
    """Which place a module of `VLSegModel` belongs to; None: neither decoder nor tower."""
    if name.startswith(DECODER):
        return "decoder"
    if name.startswith("vlm.model."):
        return "vision"  # the tower, and what leads from it to the decoder
    return "pixel" if name.startswith("pixel_encoder.") else None


def linear_layers(
    model: VLSegModel, where: Sequence[Place], without: Iterable[str] = (), pointwise: bool = True
) -> list[str]:
    """Names of the linear layers at these places, in order.

    without: names of modules that are left out with all they hold; modules that a forward pass never runs are left out
    anyway. pointwise: 1x1 convolutions, which are linear layers over channels, count too.
    """
    idle = {id(module) for part in model.family.idle(model.vlm) for module in part.modules()}
    barred = tuple(f"{name}." for name in without)
    names = []
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or (
            pointwise and isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        )
        if linear and place_of(name) in where and id(module) not in idle and not f"{name}.".startswith(barred):
            names.append(name)
    return names


def base_of(model: nn.Module) -> VLSegModel:
    """The `VLSegModel` inside a model with or without adapters; layers with adapters stay in it."""
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    if not isinstance(inner, VLSegModel):
        raise TypeError(f"not a VLSegModel: {type(inner).__name__}")
    return inner


def attach(model: VLSegModel, config: TrainConfig, new: Sequence[str] = (), rounded: Sequence[str] = ()) -> PeftModel:
    """The model with adapters as `config.adapter` says; nothing else of it is trained.

    new: parts with random weights, trained whole with those of `adapter.whole`. rounded: names of layers that
    quantisation-aware training rounds: there the adapter is added to the weight before it is rounded, as it will be
    when all is merged and quantised. Raises VLSegError for parts that do not exist and where nothing is left to adapt.
    """
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    section = config.adapter
    whole = _whole(model, [*section.whole, *new])
    names = linear_layers(model, section.where, whole)
    names = [name for name in names if not any(part in name for part in section.leave_out)]
    if not names:
        raise VLSegError(f"adapter.where: no linear layer of {', '.join(section.where)} is left to adapt")
    paths = config.paths.on or config.reinforce.on
    common: dict[str, Any] = {
        "target_modules": [name for name in names if name not in set(rounded)],
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "modules_to_save": whole,
        "trainable_token_indices": token_rows(model, paths) if section.tokens else None,
    }
    if rounded and section.dropout:
        raise VLSegError("adapter.dropout: must be 0 with qat, where adapters are added to the weights themselves")
    if section.kind == "adalora":
        settings: Any = AdaLoraConfig(**common, **adalora_settings(section, config.steps))
    else:
        shared = [f"{name}.weight" for name in names if name in set(rounded)]
        settings = LoraConfig(r=section.rank, target_parameters=shared or None, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will go
        adapted = get_peft_model(model, settings)
    settings.base_model_name_or_path = config.model.source
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # whatever the frozen weights are held in, what is trained is exact
            parameter.data = parameter.data.float()
    return adapted


def adalora_settings(section: AdapterSection, steps: int) -> dict[str, Any]:
    """The schedule of AdaLoRA for a run of so many optimizer steps. Raises VLSegError where it leaves no time."""
    first, last = round(section.grow * steps), round(section.settle * steps)
    if steps - first - last < max(1, section.every) or steps - last < 2:  # the last pruning needs a step to judge by
        raise VLSegError(
            f"adapter: {steps} steps leave no time to prune: adapter.grow takes {first}, adapter.settle {last}, "
            f"adapter.every is {section.every}; train longer or make these smaller"
        )
    return {
        "init_r": section.start_rank,
        "target_r": section.rank,
        "tinit": first,
        "tfinal": last,
        "deltaT": section.every,
        "total_step": steps,
        "orth_reg_weight": section.orthogonal,
    }


def token_rows(model: VLSegModel, paths: bool = False) -> dict[str, list[int]]:
    """Whose rows of [SEG] and [REJ] are trained, as peft's `trainable_token_indices`, by full module name.

    The tokens are predicted, never fed, so what learns are the rows of the language model's head; a plain list would
    mean the embedding, which gets no gradient. Where both are one matrix, the head's rows stand for both.

    paths: those of the path tokens, too, which are fed as well; raises VLSegError for a model without path mode, and
    where both are one matrix, for then the embedding would not see what the head has learned.
    """
    ids = [model.config.seg_token_id, model.config.rej_token_id]
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.vlm.get_input_embeddings(), model.vlm.get_output_embeddings()
    if paths:
        codec_of(model.config)  # says so where there is no path mode
        if embedding.weight is head.weight:
            raise VLSegError(
                "path tokens with adapters: this language model's embedding is its head, whose rows adapters cannot "
                "train for both; train the model whole (adapter=none), leave all rows of tokens as they are "
                "(adapter.tokens=false), or take another model"
            )
        first = model.config.paths["first"]
        ids += range(first, first + len(model.path_grammar))
    rows = {names[id(head)]: ids}
    if embedding.weight is not head.weight:
        rows[names[id(embedding)]] = ids
    return rows


def _whole(model: VLSegModel, names: Sequence[str]) -> list[str]:
    """The names, each once, without those inside another. Raises VLSegError for one that is no module."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            parts = [key for key, module in model.named_children() if any(True for _ in module.parameters())]
            raise VLSegError(f"adapter.whole: the model has no part {name!r}; it has {', '.join(parts)}")
    distinct = [n for n in dict.fromkeys(names) if any(True for _ in known[n].parameters())]
    return [n for n in distinct if not any(n.startswith(f"{other}.") for other in distinct)]


class GradientWatch:
    """Whether everything that should learn gets a gradient; an adapter that never does is an error, not a warning.

    bitsandbytes on some CPUs, a checkpointed block without its inputs' gradients, a plain list of token ids: all of
    them train "successfully" without a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        patience: int,
        gradient: Callable[[nn.Parameter], torch.Tensor | None] = lambda parameter: parameter.grad,
    ):
        """gradient: gives a parameter's whole gradient, where the model is sharded."""
        self.patience, self.steps, self.gradient = patience, 0, gradient
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.waiting = {name: p for name, p in trained if "lora_" in name or "trainable_tokens_delta" in name}
        # Rows of the embedding are fed only in sequences that hold the tokens, which only paths do.
        self.waiting = {n: p for n, p in self.waiting.items() if not ("token_adapter" in n and "embed" in n)}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a run that is resumed has seen what it has seen."""
        return {"steps": self.steps, "waiting": list(self.waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps = state["steps"]
        self.waiting = {name: p for name, p in self.waiting.items() if name in state["waiting"]}

    def look(self) -> None:
        """To be called with the gradients of a step in place. Raises VLSegError when patience is over."""
        if not self.patience or not self.waiting:
            return
        self.steps += 1
        for name, parameter in list(self.waiting.items()):
            found = self.gradient(parameter)
            if found is not None and bool(found.any()):
                del self.waiting[name]
        if self.steps >= self.patience:
            self.conclude()

    def conclude(self) -> None:
        """Also at the end of a run shorter than patience. Raises VLSegError where something had no gradient so far."""
        if self.patience and self.waiting and self.steps > 1:  # in its first step half of LoRA's factors have none
            some = ", ".join(list(self.waiting)[:3])
            raise VLSegError(
                f"{len(self.waiting)} adapter weights have had no gradient in {self.steps} steps and never learn "
                f"({some}); take them out with adapter.leave_out=[part of a name], or see docs/fine-tuning.md"
            )


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(trainable, total) numbers of weights by part: the children of `VLSegModel`, the language model's in two."""
    counts: dict[str, list[int]] = {}
    for name, parameter in base_of(model).named_parameters():
        if ".original_module." in name:
            continue  # what a part trained whole was at the start, kept by peft
        part = {"decoder": "decoder", "vision": "vision tower"}.get(place_of(name) or "", name.split(".")[0])
        part = "token rows" if part == "vlm" else part
        state = getattr(parameter, "quant_state", None)  # 4-bit weights lie two a byte
        size = state.shape.numel() if state is not None else getattr(parameter, "ds_numel", parameter.numel())
        entry = counts.setdefault(part, [0, 0])
        entry[0] += size if parameter.requires_grad else 0
        entry[1] += size
    return {part: (trained, total) for part, (trained, total) in counts.items()}


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a run with adapters changes, by full name; all that its checkpoints need to hold."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def base_fingerprint(model: nn.Module, sample: int = 64) -> str:
    """Of the weights that an adapted model keeps as they were: names, shapes and some bytes of each, not all of them.

    Adapters mean nothing on another base, and their checkpoints do not hold it.
    """
    found = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not parameter.numel():
            continue
        inner = getattr(parameter, "__tensor_flatten__", None)  # torchao's tensors are made of plain ones
        parts = [parameter] if inner is None else [getattr(parameter, part) for part in inner()[0]]
        found = zlib.crc32(f"{name} {tuple(parameter.shape)}".encode(), found)
        for part in parts:
            flat = part.detach().flatten()
            some = flat[:: max(1, len(flat) // sample)].contiguous().view(torch.uint8).cpu().numpy().tobytes()
            found = zlib.crc32(some, found)
    return f"{found:08x}"


def load_trained_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The inverse of `trained_state`. Raises VLSegError where the run was of another kind."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if trained.keys() != state.keys():
        odd = sorted(trained.keys() ^ state.keys())
        raise VLSegError(
            f"the checkpoint is of a run with other adapters ({len(odd)} weights differ, such as {odd[0]}); "
            "go on with the settings it began with, or choose another folder with out="
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(state[name])
