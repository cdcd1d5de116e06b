"""From the words of `--device` and `--dtype` to torch."""

from __future__ import annotations

import torch

from vlseg.models.precision import QUANTISED
from vlseg.types import VLSegError


def pick_device(device: str | None) -> torch.device:
    """The device of that name; None: the first GPU, else the CPU. Raises VLSegError where it is not there."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise VLSegError(f"--device {device}: not available here; this machine has {', '.join(devices)}") from error
    return place


def pick_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The number type of that name; None: float32 on the CPU, bfloat16 elsewhere. Raises VLSegError."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in known:
        raise VLSegError(f"--dtype {dtype}: unknown; known: {', '.join([*known, *QUANTISED])}")
    return known[dtype]
