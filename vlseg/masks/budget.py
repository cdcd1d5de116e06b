"""Spread a budget of tokens over masks: one price for all, so that a token goes where it brings the most IoU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.types import VLSegError


def hull(tokens: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Indices of the points on the upper concave hull of IoU over tokens, from the cheapest point to the best one."""
    order = np.lexsort((-iou, tokens))
    chosen: list[int] = []
    for i in order.tolist():
        if chosen and iou[i] <= iou[chosen[-1]]:
            continue
        while len(chosen) >= 2:
            a, b = chosen[-2:]
            if (iou[b] - iou[a]) * (tokens[i] - tokens[a]) > (iou[i] - iou[a]) * (tokens[b] - tokens[a]):
                break
            chosen.pop()
        chosen.append(i)
    return np.array(chosen, dtype=np.int64)


def allocate(tokens: Sequence[np.ndarray], iou: Sequence[np.ndarray], total: int) -> list[int]:
    """Which of its paths each mask gets, so that all together have no more than ``total`` tokens.

    tokens, iou: for each mask its paths, ``(P,)`` each. Every mask goes up its concave hull while a step brings more
    IoU a token than the price at which the budget runs out (Shoham & Gersho 1988); what is left over then goes, in
    the order of that price, to the masks that can still use it. Raises VLSegError where the shortest paths already
    have more.
    """
    hulls = [hull(t, v) for t, v in zip(tokens, iou, strict=True)]
    taken = [int(h[0]) for h in hulls]
    left = total - sum(int(t[i]) for t, i in zip(tokens, taken, strict=True))
    if left < 0:
        raise VLSegError(f"a budget of {total} tokens is too small for {len(taken)} masks: {total - left} is the least")
    steps = []
    for mask, h in enumerate(hulls):
        cost, gain = np.diff(tokens[mask][h]), np.diff(iou[mask][h])
        steps += [(-g / c, mask, int(i)) for g, c, i in zip(gain, cost, h[1:], strict=True)]
    steps.sort()
    affordable_steps = 0
    for _, mask, i in steps:
        cost = int(tokens[mask][i] - tokens[mask][taken[mask]])
        if cost > left:
            break
        taken[mask], left = i, left - cost
        affordable_steps += 1
    for mask in dict.fromkeys(mask for _, mask, _ in steps[affordable_steps:]):
        affordable = np.flatnonzero(tokens[mask] <= tokens[mask][taken[mask]] + left)
        best = int(affordable[np.lexsort((tokens[mask][affordable], -iou[mask][affordable]))[0]])
        left -= int(tokens[mask][best] - tokens[mask][taken[mask]])
        taken[mask] = best
    return taken
