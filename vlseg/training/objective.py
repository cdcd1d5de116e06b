"""The training objective: all losses of a batch, each a sum over queries to be divided by a global count."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlseg.losses.contrast import dense_noun_loss, noun_labels, pooled, query_noun_loss, target_contrast
from vlseg.losses.mask import bce_per_query, dice_per_query
from vlseg.models.configuration import VLSegConfig
from vlseg.models.modeling import VLSegOutput
from vlseg.training.batches import Batch
from vlseg.training.config import LossSection


def loss_sums(output: VLSegOutput, batch: Batch, config: VLSegConfig, weights: LossSection) -> dict[str, torch.Tensor]:
    """Weighted losses by name. Values are sums over valid queries; losses of the image alone are sums over images times
    the image's number of queries, so that one division by the number of queries makes averages of all of them."""
    valid = batch.packed.valid.float()
    regions = batch.regions.float()
    targets = batch.targets.float()
    present = batch.targets.any(-1).float() * valid
    fine = F.interpolate(regions, size=output.mask_logits.shape[-2:], mode="area")
    coarse = F.interpolate(regions, size=output.coarse_logits[0].shape[-2:], mode="area")
    want_fine = torch.einsum("bkm,bmhw->bkhw", targets, fine).clamp(max=1)
    want_coarse = torch.einsum("bkm,bmhw->bkhw", targets, coarse).clamp(max=1)

    def mask_loss(logits: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        return (
            weights.bce * (bce_per_query(logits, want) * valid).sum()
            + weights.dice * (dice_per_query(logits, want) * present).sum()
        )

    losses = {"mask": mask_loss(output.mask_logits, want_fine)}
    if weights.coarse:
        stages = output.coarse_logits
        losses["coarse"] = weights.coarse * torch.stack([mask_loss(s, want_coarse) for s in stages]).mean()
    answer = torch.where(present > 0, config.seg_token_id, config.rej_token_id)
    token = F.cross_entropy(output.token_logits.flatten(0, 1), answer.flatten(), reduction="none")
    decided = F.binary_cross_entropy_with_logits(output.evidence, present, reduction="none")
    losses["presence"] = weights.presence * ((token * valid.flatten()).sum() + (decided * valid).sum())
    if weights.target:
        real = coarse.sum((-2, -1)) > 0.5  # a region of less than half a cell has no embedding worth comparing
        candidate = real[:, None].expand_as(batch.targets)
        positive = batch.targets & candidate
        counts = valid * ((positive.any(-1)) | (present == 0))
        contrast = target_contrast(output.query_embedding, pooled(output.pixel_embedding, coarse), positive, candidate)
        losses["target"] = weights.target * (contrast * counts).sum()
    prototypes = output.noun_prototypes
    if prototypes is not None:
        queries = valid.sum(1)
        assert output.pixel_nouns is not None
        assert output.token_nouns is not None
        assert output.query_nouns is not None
        for name, dense in (("pixel_noun", output.pixel_nouns), ("token_noun", output.token_nouns)):
            size = (dense.shape[-2], dense.shape[-1])
            labels = noun_labels(regions, batch.nouns, size, len(prototypes) - 1)
            losses[name] = getattr(weights, name) * (dense_noun_loss(dense, labels, prototypes) * queries).sum()
        names = F.one_hot(batch.nouns.clamp(min=0), len(prototypes)).bool() & (batch.nouns >= 0)[..., None]
        wanted = torch.einsum("bkm,bmc->bkc", targets, names.float()) > 0
        losses["query_noun"] = (
            weights.query_noun * (query_noun_loss(output.query_nouns, wanted, prototypes) * present).sum()
        )
    return losses
