"""What answers cost: time a call and peak memory of this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds, interpolated linearly; ``{}`` where nothing was timed."""
    if not len(seconds):
        return {}
    p50, p95 = np.percentile(np.asarray(seconds, np.float64), [50, 95])
    return {"p50_ms": round(1e3 * float(p50), 3), "p95_ms": round(1e3 * float(p95), 3)}


def peak_memory() -> dict[str, float]:
    """Largest memory so far in MiB: "process" (resident), and "gpu" (allocated) where torch has used one."""
    peaks = {}
    resident = _resident()
    if resident is not None:
        peaks["process"] = round(resident, 1)
    torch = sys.modules.get("torch")  # a GPU can only have been used where torch is there already
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        peaks["gpu"] = round(max(torch.cuda.max_memory_allocated(i) for i in devices) / 2**20, 1)
    return peaks


def _resident() -> float | None:
    try:
        with open("/proc/self/status") as file:
            # getrusage would also count what the process that started this one had used before
            return next((int(line.split()[1]) / 2**10 for line in file if line.startswith("VmHWM")), None)
    except OSError:
        pass  # not Linux
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes
