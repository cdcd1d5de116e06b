"""Target-aware losses: what makes a query choose its own target among objects that look like it.

Two forms. `talent_losses` is TALENT's (arXiv 2604.00609), as its code has it. `target_contrast` with `stray_activation`
is vlseg's: the packed row knows the regions of all targets and distractors of an image, so that nothing must be guessed
from the similarity of pixels. On random features the gradient of TALENT's affinity loss is a thousandth of that of a
cross-entropy on the same product (tests/losses/test_talent.py); docs/target-aware.md compares what they do in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

NEVER = -1e4  # of a logit: as good as minus infinity, with a gradient of 0 where nothing else is left


# vlseg's form --------------------------------------------------------------------------------------------------------
def pooled(embedding: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean embedding of each region: (B, M, E) float32. embedding: (B, E, h, w); masks: (B, M, h, w) in 0..1."""
    masks = masks.float()
    total = torch.einsum("behw,bmhw->bme", embedding.float(), masks)
    return total / masks.sum((-2, -1)).clamp(min=1e-4)[..., None]


def target_contrast(
    query: torch.Tensor,
    regions: torch.Tensor,
    positive: torch.Tensor,
    candidate: torch.Tensor,
    temperature: float = 0.07,
) -> torch.Tensor:
    """InfoNCE of every query against the regions of its image, with a "nothing" option of similarity 0.

    query: (B, K, E); regions: (B, M, E); positive: (B, K, M) bool, the targets; candidate: (B, K, M) bool, regions
    that count (targets, distractors, targets of other queries). A query without a target must choose "nothing".
    Returns (B, K): minus the mean log-probability of the positives, each against all non-positives.
    """
    cosine = F.normalize(query.float(), dim=-1) @ F.normalize(regions.float(), dim=-1).transpose(1, 2)
    return choice(cosine / temperature, positive, candidate)


def choice(logits: torch.Tensor, positive: torch.Tensor, candidate: torch.Tensor, nothing: bool = True) -> torch.Tensor:
    """Cross-entropy of choosing the positives, each against all candidates that are none, and against "nothing" at 0.

    logits: (B, K, M); positive, candidate: (B, K, M) bool; nothing: whether that is a rival of the positives. Returns
    (B, K), the mean over the positives; without one "nothing" is right.
    """
    count = positive.sum(-1)
    none = torch.zeros_like(logits[..., :1])
    if not nothing:
        none = none.masked_fill(count[..., None] > 0, NEVER)
    negatives = torch.cat([logits.masked_fill(positive | ~candidate, NEVER), none], -1).logsumexp(-1)
    found = torch.logaddexp(negatives[..., None], logits) - logits
    per_query = (found * positive).sum(-1) / count.clamp(min=1)
    return torch.where(count > 0, per_query, negatives)


def twins(regions: torch.Tensor, targets: torch.Tensor, overlap: float = 0.5) -> torch.Tensor:
    """Regions that are no target of a query but lie where one does, (B, K, M) bool: one object, told twice.

    regions: (B, M, H, W) masks; targets: (B, K, M) bool; overlap: IoU from which on two regions are one object. Where
    every expression brings its own mask they must not count as negatives of each other.
    """
    flat = regions.flatten(2).float()
    both = flat @ flat.transpose(1, 2)
    area = flat.sum(-1)
    union = area[:, :, None] + area[:, None, :] - both
    same = both > overlap * union.clamp(min=1)
    return ((targets.float() @ same.float()) > 0) & ~targets


def stray_activation(
    logits: torch.Tensor,
    regions: torch.Tensor,
    targets: torch.Tensor,
    distractors: torch.Tensor,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """How active a query is inside its distractors, compared with its target: `choice` by a region's mean logit.

    logits: (B, K, h, w); regions: (B, M, h, w) in 0..1; targets, distractors: (B, K, M) bool; valid: as in
    `vlseg.losses.mask`. Pixels of a distractor that are the target's as well do not count. Returns (B, K), 0 for a
    query without distractor. A small look-alike weighs as much as a large one. Only the difference counts, so that
    empty masks win nothing: a penalty on the distractors' logits alone keeps masks from being learned
    (docs/target-aware.md).
    """
    counts = torch.ones_like(logits) if valid is None else valid
    own = torch.einsum("bkm,bmhw->bkhw", targets.to(regions.dtype), regions).clamp(max=1)
    inside, _ = _means(logits, regions, counts)
    outside, area = _means(logits, regions, counts * (1 - own))
    against = distractors & ~targets & (area > 1e-3)
    loss = choice(torch.where(targets, inside, outside), targets, against | targets, nothing=False)
    return torch.where(against.any(-1), loss, 0.0)


def _means(logits: torch.Tensor, regions: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of each query's logits in each region, and the region's area, both (B, K, M). weight: (B, K, h, w)."""
    area = torch.einsum("bkhw,bmhw->bkm", weight, regions)
    return torch.einsum("bkhw,bmhw->bkm", logits * weight, regions) / area.clamp(min=1e-4), area


# TALENT's form -------------------------------------------------------------------------------------------------------
def affinity_loss(features: torch.Tensor, text: torch.Tensor, threshold: float = 0.7) -> torch.Tensor:
    """TALENT's CPCL at one scale. features: (B, K, D, h, w), or (B, 1, D, h, w) for all queries; text: (B, K, D).

    With N = h w cells: A is the row-softmax of the features' cosine self-affinity; s = <features, text>; T = 1 where
    the row-softmax of s s^T exceeds the threshold. Returns (B, K): the mean over rows of |A T - T|, Euclidean. T has no
    gradient, and of each row at most one entry, for a softmax cannot exceed 0.7 twice.
    """
    cells = features.float().flatten(3).transpose(2, 3)  # (B, K, N, D)
    length = cells.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 1e-3, cells / length.clamp(min=1e-3), 0.0)  # a cell of zeros has no direction
    affinity = (unit @ unit.transpose(2, 3)).softmax(-1)
    with torch.no_grad():
        s = (cells @ text.float()[..., None])[..., 0]
        chosen = ((s[..., :, None] * s[..., None, :]).softmax(-1) > threshold).float()
    return torch.linalg.vector_norm(affinity * chosen - chosen, dim=-1).mean(-1)


def sentence_contrast(
    pixels: torch.Tensor, state: torch.Tensor, same: torch.Tensor, other: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """TALENT's TCCL: -log softmax([cos(p, positive), cos(p, negative)])_0 at temperature 1.

    pixels, state: (B, K, D), the pooled features and the words of a query; same: (B, K, K) bool, other queries with the
    same target (the query's own words stand in where there is none); other: (B, K, K) bool, those with another target.
    Of several, the next in the row is taken. Returns the loss (B, K) and where it is defined (B, K) bool: a query with
    no other target in its image has none.
    """
    k = state.shape[1]
    index = torch.arange(k, device=state.device)
    distance = (index - index[:, None] - 1) % k  # 0 for the next query, k - 1 for the query itself
    near = distance.masked_fill(~same & (distance < k - 1), k).argmin(-1)
    far = distance.masked_fill(~other, k).argmin(-1)

    def cosine(which: torch.Tensor) -> torch.Tensor:
        words = state.gather(1, which[..., None].expand(-1, -1, state.shape[-1]))
        return F.cosine_similarity(pixels.float(), words.float(), dim=-1)

    return F.softplus(cosine(far) - cosine(near)), other.any(-1)


def talent_losses(
    scales: Sequence[torch.Tensor],
    text: Sequence[torch.Tensor],
    pixels: torch.Tensor,
    state: torch.Tensor,
    targets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both of TALENT's losses. scales: (B, K or 1, D, h_i, w_i); text: one (B, K, D) a scale; pixels, state: (B, K, D);
    targets: (B, K, M) bool.

    Returns (B, K) each: the affinity loss, mean over the scales; the sentence contrast; where the latter is defined.
    Published weights: 0.1 and, as the class divides by 10 before its weight of 0.1, 0.01.
    """
    affinity = torch.stack([affinity_loss(f, t) for f, t in zip(scales, text, strict=True)]).mean(0)
    found = targets.any(-1)
    equal = (targets[:, :, None] == targets[:, None, :]).all(-1)
    both = found[:, :, None] & found[:, None, :]
    itself = torch.eye(targets.shape[1], dtype=torch.bool, device=targets.device)
    contrast, defined = sentence_contrast(pixels, state, equal & both & ~itself, ~equal & both)
    return affinity, contrast, defined
