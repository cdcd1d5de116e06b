"""Learning rates as a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from vlseg.training.config import OptimSection


def rate(step: int, steps: int, optim: OptimSection) -> float:
    """The factor on `optim.lr` at optimizer step `step` (from 0) of `steps`: linear warm-up, then the schedule.

    "cosine" falls to zero over the whole run; "constant-decay" stays at 1 and falls over the last `decay` share with
    1 - sqrt (arXiv 2405.18392), so that a run can be prolonged; "constant" never falls.
    """
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    if optim.schedule == "cosine":
        progress = (step - optim.warmup) / max(1, steps - optim.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if optim.schedule == "constant-decay":
        start = steps * (1 - optim.decay)
        if step > start:
            return max(0.0, 1 - math.sqrt((step - start) / max(1.0, steps - start)))
    return 1.0
