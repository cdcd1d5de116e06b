"""The grammar of path tokens as tensors: which tokens may follow, for many paths in different states at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from vlseg.masks.tokens import Vocabulary


@dataclass(frozen=True, slots=True)
class Tables:
    """The automaton on a device. R: tokens left, from 0 to where the limit no longer matters; S states; V tokens.

    forbidden: (R, S, V) bool. following: (S, V) int64, the next state; 0 where a token may not stand.
    """

    forbidden: torch.Tensor
    following: torch.Tensor


class PathGrammar:
    """The automaton of a `Vocabulary`, vectorised. States are numbers as in `Vocabulary.transitions`."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.start, self.stop = vocabulary.start, vocabulary.stop
        ways, kind = vocabulary.transitions, vocabulary.token_class
        unreachable = len(vocabulary.states) + 1
        # (S, C): tokens that it takes to the end if a token of this class comes now, itself included
        self._needed = np.where(ways >= 0, vocabulary.steps_to_stop[ways] + 1, unreachable)
        self._most = int(self._needed[ways >= 0].max())
        self._following = np.maximum(ways, 0)[:, kind]
        self._tables: dict[torch.device, Tables] = {}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def on(self, device: torch.device) -> Tables:
        """The tables on a device; made once."""
        if device not in self._tables:
            left = np.arange(self._most + 1)[:, None, None]
            forbidden = (self._needed > left)[:, :, self.vocabulary.token_class]
            with torch.inference_mode(False):  # whoever asks first, they serve training, too
                made = Tables(torch.from_numpy(forbidden).to(device), torch.from_numpy(self._following).to(device))
            self._tables[device] = made
        return self._tables[device]

    def masked(self, logits: torch.Tensor, state: torch.Tensor, left: torch.Tensor | int | None = None) -> torch.Tensor:
        """Logits (..., V) with -inf wherever a token may not follow in its state (...) int64.

        left: (...) int64, or one number for all: tokens that the path may still have, from which on only those may come
        that leave enough to end it; None: any number. A path that has ended (or has no token left) allows nothing.
        """
        forbidden = self.on(logits.device).forbidden
        last = len(forbidden) - 1
        if isinstance(left, torch.Tensor):
            rule = forbidden[left.clamp(0, last), state]
        else:
            rule = forbidden[last if left is None else min(max(left, 0), last)][state]
        return logits.masked_fill(rule, float("-inf"))

    def advance(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The states (...) after tokens (...) int64 that may stand there."""
        return self.on(state.device).following[state, token]


@lru_cache(maxsize=16)
def path_grammar(grid: int, box_bins: int, joint: bool, curves: bool) -> PathGrammar:
    """The grammar of a `PathCodec` with these settings; shared, for its tables are large."""
    return PathGrammar(Vocabulary(grid, box_bins, joint, curves))
