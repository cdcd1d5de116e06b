"""The names of things as token ids, to teach the word table and the image prefix one language."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from vlseg.losses.contrast import query_noun_loss
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.worlds.nouns import nouns


@dataclass(slots=True)
class Phrases:
    """P noun phrases. ids: (P, L) int64, 0 beyond the end; there: (P, L) bool; means: (P, nouns + 1) bool."""

    ids: torch.Tensor
    there: torch.Tensor
    means: torch.Tensor

    def loss(self, model: VLSegModel) -> torch.Tensor:
        """Mean over the phrases of minus the log-probability of what they name, read from their words' rows alone.

        The same projection reads the image tokens (`token_nouns`), so that the row of "dog" comes to lie near the image
        tokens of a dog, and attention finds one by the other without having to learn each noun by itself.
        """
        assert model.noun_prototypes is not None
        assert model.token_noun is not None
        rows = model.vlm.get_input_embeddings()(self.ids) * self.there[..., None]
        mean = rows.sum(1) / self.there.sum(1, keepdim=True)
        named = torch.nn.functional.normalize(model.token_noun(mean).float(), dim=-1)
        return query_noun_loss(named[None], self.means[None], model.noun_prototypes).mean()

    def to(self, device: torch.device) -> Phrases:
        """The same phrases on another device."""
        return Phrases(self.ids.to(device), self.there.to(device), self.means.to(device))


def phrases(processor: VLSegProcessor, prototypes: int) -> Phrases:
    """All noun phrases of the sprite world; prototypes: their number, the background's included."""
    table = nouns().yes
    tokenised = processor.tokenizer(list(table), add_special_tokens=False)["input_ids"]
    ids = pad_sequence([torch.tensor(row) for row in tokenised], batch_first=True)
    there = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in tokenised], batch_first=True)
    means = torch.zeros(len(table), prototypes, dtype=torch.bool)
    for row, glyphs in zip(means, table.values(), strict=True):
        row[list(glyphs)] = True
    return Phrases(ids, there, means)
