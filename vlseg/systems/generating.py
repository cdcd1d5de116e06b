"""Language models that write where things are: greedy decoding, with how sure the model was of what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What a model wrote. ids: its tokens, without the end mark.

    confidence: geometric mean of the probabilities of its tokens and the end mark, in 0..1. first: ``(V,)`` float32,
    the probabilities of the first token.
    """

    ids: list[int]
    confidence: float
    first: torch.Tensor


class _Listener(LogitsProcessor):
    """Keeps the probability of each greedy choice; changes nothing."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        self.first: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logs = scores.float().log_softmax(-1)
        self.steps.append(logs.amax(-1))
        if self.first is None:
            self.first = logs.exp()
        return scores


def write(model: Any, inputs: dict[str, Any], most: int) -> list[Written]:
    """Greedy answers to a batch of prompts, at most so many tokens each. inputs: those of `model.generate`."""
    listener = _Listener()
    settings = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
    sequences = model.generate(
        **inputs, max_new_tokens=most, logits_processor=LogitsProcessorList([listener]), **settings
    )
    new = sequences[:, 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list | tuple) else [ends])
    steps = torch.stack(listener.steps, dim=1).tolist()
    assert listener.first is not None  # generate asks for at least one token
    written = []
    for row, logs, first in zip(new, steps, listener.first, strict=True):
        length = next((i for i, token in enumerate(row) if token in stops), len(row))
        counted = logs[: min(length + 1, len(row))]
        written.append(Written(row[:length], float(torch.tensor(counted).mean().exp()), first))
    return written
