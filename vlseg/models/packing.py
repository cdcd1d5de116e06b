"""One row holds one image and K queries: [image][query 1]..[query K].

The rule, in one line: token i sees token j iff (owner(j) = image or owner(j) = owner(i)) and (j <= i or i and j lie in
one bidirectional block). Owners: 0 the image, 1..K the queries, -1 padding. Padding sees itself alone, so that its
softmax is defined, and nobody sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

IMAGE, PADDING = 0, -1


@dataclass(slots=True)
class Packed:
    """The queries of B images, packed. S: the longest row; K: the largest number of queries.

    ids: (B, S) int64 token ids. owner: (B, S) int64, 1..K or -1. offset: (B, S) int64, place within the own query.
    answers: (B, K) int64, index into S of the state that predicts [SEG] or [REJ]. valid: (B, K) bool.
    path_targets, path_states: (B, S) int64, where queries go on with their paths (`models/path_head.py`): the path
    token that a place predicts, -1 where it predicts none, and the state of the grammar there. None: no query does.
    """

    ids: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor
    answers: torch.Tensor
    valid: torch.Tensor
    path_targets: torch.Tensor | None = None
    path_states: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """As keyword arguments of `VLSegModel.forward`."""
        named = {
            "query_ids": self.ids,
            "query_owner": self.owner,
            "query_offset": self.offset,
            "query_answers": self.answers,
            "query_valid": self.valid,
        }
        if self.path_targets is not None and self.path_states is not None:
            named |= {"path_targets": self.path_targets, "path_states": self.path_states}
        return named


def pack_queries(rows: Sequence[Sequence[Sequence[int]]], pad_id: int, queries: int | None = None) -> Packed:
    """Pack token ids: rows[b][k] are the ids of query k of image b (never empty). queries: at least this K."""
    k_max = max([len(row) for row in rows] + [queries or 1])
    length = max([sum(len(q) for q in row) for row in rows] + [1])
    shape = (len(rows), length)
    ids, owner = np.full(shape, pad_id, np.int64), np.full(shape, PADDING, np.int64)
    offset = np.zeros(shape, np.int64)
    answers, valid = np.zeros((len(rows), k_max), np.int64), np.zeros((len(rows), k_max), bool)
    for b, row in enumerate(rows):
        at = 0
        for k, query in enumerate(row):
            end = at + len(query)
            ids[b, at:end], owner[b, at:end], offset[b, at:end] = query, k + 1, np.arange(len(query))
            answers[b, k], valid[b, k] = end - 1, True
            at = end
    return Packed(*(torch.from_numpy(a) for a in (ids, owner, offset, answers, valid)))


def visibility(owner: torch.Tensor, block: torch.Tensor | None = None) -> torch.Tensor:
    """Who sees whom. owner: (B, L) int64. block: (B, L) int64, tokens of equal block > 0 see each other both ways.

    Returns (B, L, L) bool; [b, i, j] is True where token i sees token j.
    """
    index = torch.arange(owner.shape[1], device=owner.device)
    before = index[:, None] >= index[None, :]
    if block is not None:
        before = before | ((block[:, :, None] == block[:, None, :]) & (block[:, :, None] > 0))
    mine = owner[:, :, None] == owner[:, None, :]
    real = (owner != PADDING)[:, None, :]
    itself = torch.eye(owner.shape[1], dtype=torch.bool, device=owner.device)
    return (((owner == IMAGE)[:, None, :] | mine) & before & real) | itself


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, L, L) bool to (B, 1, L, L): 0 or the lowest number of dtype. Never hand a bool mask on: `eager` adds it."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
