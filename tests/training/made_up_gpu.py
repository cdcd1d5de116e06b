"""A GPU made up on the CPU: tensors that say they are on "cuda:0", hold their values, and mix with others as real ones.

torch's own FakeTensorMode knows no values, on which losses, matching and decoding depend, and cannot run `backward`
without a driver. Here every operation is computed on the CPU, after a look at where its arguments are said to be: what
a GPU would refuse ("Expected all tensors to be on the same device") is refused. Kernels, and what they round, are not
those of a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
# Whose results lie where Python asked for them; what C++ makes for itself lies where the operation is.
FACTORIES = {
    *(torch.tensor, torch.as_tensor, torch.from_numpy, torch.zeros, torch.ones, torch.full, torch.empty, torch.arange),
    *(torch.eye, torch.rand, torch.randn, torch.randint, torch.linspace, torch.randperm, torch.tril_indices),
    *(torch.triu_indices, torch.scalar_tensor),
}
aten = torch.ops.aten
# Operations whose arguments may lie on different devices.
CROSSING = {aten.copy_, aten._to_copy, aten._foreach_copy_, aten._foreach_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_}


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU. held: its values, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        # to the autograd engine it is on the CPU, for there is no other queue
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def plain(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device on which a real one would lie. Raises RuntimeError as CUDA does."""
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
    gpu = [t for t in tensors if isinstance(t, OnGpu)]
    cpu = [t for t in tensors if not isinstance(t, OnGpu) and not hasattr(t, "anywhere")]
    packet = func.overloadpacket
    if gpu and cpu and packet not in CROSSING:
        strangers = cpu
        if packet in INDEXING:  # an index may come from the CPU
            strangers = [t for t in cpu if not any(t is i for i in args[1])]
        if any(t.dim() for t in strangers) or (
            not any(t.dim() for t in gpu) and not all(t.dim() == 0 for t in tensors)
        ):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} found cuda:0 and cpu")
    place = kwargs.get("device")
    if place is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    there = torch.device(place).type == "cuda" if place is not None else bool(gpu)
    if packet in (aten.copy_, aten._foreach_copy_):
        there = isinstance(args[0] if packet is aten.copy_ else args[0][0], OnGpu)
    inside, outside = tree_map(plain, (args, kwargs)), (args, kwargs)
    result = func(*inside[0], **inside[1])
    known = {id(plain(t)): t for t in tree_flatten(outside)[0] if isinstance(t, torch.Tensor)}

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in known:
            return known[id(value)]  # in place
        if there:
            return OnGpu(value)
        if not cpu and not _Functions.asking:
            value.anywhere = True
        return value

    if packet is aten.detach_:
        return args[0]
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func} changes the shape of a tensor made up")
    return tree_map(wrapped, result)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def _is_gpu(place: Any) -> bool:
    return place is not None and not isinstance(place, int) and torch.device(place).type == "cuda"


class _Functions(TorchFunctionMode):
    """What decides on devices before an operation is dispatched."""

    asking = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch.is_inference_mode_enabled():
            return self._called(func, args, dict(kwargs or {}))
        with torch.inference_mode(False), torch.no_grad():  # its tensors cannot be made up
            return self._called(func, args, dict(kwargs or {}))

    def _called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._moved(func, args, kwargs)
        if args and isinstance(args[0], OnGpu):
            if func is torch.Tensor.numpy or func is torch.Tensor.__array__:
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            if func is torch.Tensor.tolist:
                return args[0].held.detach().tolist()
            if func is torch.Tensor.new_tensor and "device" not in kwargs:
                return OnGpu(torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}))
        if "device" in kwargs and _is_gpu(kwargs["device"]):
            kwargs["device"] = torch.device("cpu")
            made = func(*tree_map(plain, args), **kwargs)
            return made if isinstance(made, OnGpu) else OnGpu(made)
        if func not in FACTORIES:
            return func(*args, **kwargs)
        _Functions.asking += 1
        try:
            return func(*args, **kwargs)
        finally:
            _Functions.asking -= 1

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, rest = args[0], list(args[1:])
        device = (
            "cpu" if func is torch.Tensor.cpu else CUDA if func is torch.Tensor.cuda else kwargs.pop("device", None)
        )
        if func is torch.Tensor.to and rest and isinstance(rest[0], (str, torch.device)):
            device = rest.pop(0)
        elif func is torch.Tensor.to and rest and isinstance(rest[0], torch.Tensor):
            other = rest.pop(0)
            device, rest = other.device, [other.dtype, *rest]
        if func is not torch.Tensor.to:
            rest, kwargs = [], {}
        if rest or kwargs:
            options = {key: value for key, value in kwargs.items() if value is not None}
            rest = [part for part in rest if part is not None]
            if rest or options:
                tensor = torch.Tensor.to(tensor, *rest, **options)
        if device is None or _is_gpu(device) == isinstance(tensor, OnGpu):
            return tensor
        return _Cross.apply(tensor, _is_gpu(device))


class _Cross(torch.autograd.Function):
    """To the other device; gradients come back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, up: bool) -> torch.Tensor:
        ctx.up = up
        return OnGpu(tensor.detach().clone()) if up else tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (plain(grad) if ctx.up else OnGpu(grad)), None


@contextlib.contextmanager
def gpu() -> Iterator[torch.device]:
    """Within the block there is a device "cuda:0"."""
    with _Functions(), _Dispatch():
        yield CUDA


def move(model: nn.Module) -> nn.Module:
    """All parameters and buffers of a model on the GPU; tied ones stay tied."""
    done: dict[int, Any] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in done:
                    done[id(p)] = nn.Parameter(OnGpu(p.detach().clone()), requires_grad=p.requires_grad)
                module._parameters[name] = done[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = done.setdefault(id(b), OnGpu(b.clone()))
    return model
