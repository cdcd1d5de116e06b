"""PaliGemma and PaliGemma 2: a prefix language model behind a SigLIP tower."""

from __future__ import annotations

from typing import Any

import torch

from vlseg.models.families.base import ImageTokens, Prefix, SquareFamily


class PaliGemmaFamily(SquareFamily):
    """`PaliGemmaForConditionalGeneration`.

    Image and shared instruction are one bidirectional block, every query is one. The image does not see the query, as
    it does in pretraining, or the queries of an image could not share it.
    """

    instruction = "segment "  # its word for the task
    prefix_lm = True

    def prefix(self, tokens: ImageTokens) -> Prefix:
        """Positions count from 1."""
        prefix = super().prefix(tokens)
        return Prefix(prefix.ids, prefix.positions + 1, prefix.start + 1)

    def token_logits(self, vlm: Any, states: torch.Tensor, rows: slice | None = None) -> torch.Tensor:
        """Gemma 2 caps its logits softly."""
        logits = super().token_logits(vlm, states, rows)
        cap = getattr(self.vlm.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def prompt(self, tokenizer: Any, instruction: str) -> tuple[str, str, str]:
        """As in pretraining: "<image>...<bos>segment the red mug\\n"."""
        return "", f"{tokenizer.bos_token or ''}{instruction}", "\n"
