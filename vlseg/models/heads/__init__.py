"""Mask heads: from the state of a query to its mask.

| `head.kind` | how a query reads the pixels |
|---|---|
| dot | a few layers of cross-attention over the pyramid, then a dot product with the pixel embedding (`mask_head.py`) |
| eomt | it enters the blocks of a small ViT over the pyramid, as in EoMT (`heads/eomt.py`) |
| sam | a two-way transformer in which image and query change each other, as in SAM (`heads/sam.py`) |

All of them keep queries apart: packed equals one by one. `head.slots`, `head.fusion`, `head.ground` (queries point at
the image tokens of the language model, `heads/grounding.py`) and `head.group` (pixels say which of them go together,
`models/grouping.py`) go with every kind.
"""

from __future__ import annotations

import difflib
from typing import Any

from vlseg.models.configuration import VLSegConfig
from vlseg.models.heads.eomt import EomtHead
from vlseg.models.heads.sam import SamHead
from vlseg.models.mask_head import MaskHead
from vlseg.types import VLSegError

HEADS: dict[str, type[MaskHead]] = {"dot": MaskHead, "eomt": EomtHead, "sam": SamHead}
FUSIONS = ("none", "rca")

__all__ = ["FUSIONS", "HEADS", "build_mask_head", "check_head"]


def check_head(head: dict[str, Any]) -> None:
    """Raises VLSegError, in one line, for a key or a value of `VLSegConfig.head` that nothing reads."""
    for key in head:
        if key not in VLSegConfig.MASK_HEAD:
            near = difflib.get_close_matches(key, VLSegConfig.MASK_HEAD, 1, 0)[0]
            raise VLSegError(f"head.{key}: no such key; did you mean head.{near}?")
    for key, known in (("kind", tuple(HEADS)), ("fusion", FUSIONS)):
        if head[key] not in known:
            raise VLSegError(f"head.{key}: unknown {head[key]!r}; known: {', '.join(known)}")
    if head["slots"] < 1:
        raise VLSegError(f"head.slots: {head['slots']}; a query needs at least 1")
    if head["dim"] % head["heads"]:
        raise VLSegError(f"head.dim: {head['dim']} is no multiple of head.heads, {head['heads']}")


def build_mask_head(hidden: int, head: dict[str, Any], scales: int = 3) -> MaskHead:
    """The head that `VLSegConfig.head` describes, with random weights; for the arguments see `MaskHead`."""
    check_head(head)
    return HEADS[head["kind"]](hidden, head, scales)
