"""InternVL: one square view of the picture, or tiles and the view behind them, in one run of tokens."""

from __future__ import annotations

from typing import Any

from vlseg.models.families.base import SquareFamily


class InternVLFamily(SquareFamily):
    """`InternVLForConditionalGeneration` (InternVL 2.5, 3, 3.5 in their `-hf` form)."""

    splits = True

    def brackets(self, tokenizer: Any) -> tuple[str, str]:
        """The tokenizer names them; `<img>` and `</img>` in all released checkpoints."""
        start, end = (getattr(tokenizer, f"{side}_image_token", None) for side in ("start", "end"))
        return start or "<img>", end or "</img>"
