"""The training objective: all losses of a batch, each a sum over queries to be divided by a global count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vlseg.losses.contrast import dense_noun_loss, noun_labels, query_noun_loss
from vlseg.losses.ground import ground_loss
from vlseg.losses.group import group_loss, with_outside
from vlseg.losses.mask import IGNORE, bce_per_query, dice_per_query, edge_per_query, shrink
from vlseg.losses.path import Near, path_loss
from vlseg.losses.slots import slot_losses
from vlseg.losses.target_aware import pooled, stray_activation, talent_losses, target_contrast, twins
from vlseg.models.configuration import VLSegConfig
from vlseg.models.grouping import scattered
from vlseg.models.modeling import VLSegOutput
from vlseg.models.path_head import grammar_of
from vlseg.training.batches import Batch
from vlseg.training.config import LossSection


@dataclass(slots=True)
class Wanted:
    """The truth at one resolution. regions: (B, M, h, w); masks: (B, K, h, w), unions of a query's targets; both in
    0..1. valid: (B, K, h, w) in 0..1, the share of a cell that counts, or None where all does."""

    regions: torch.Tensor
    masks: torch.Tensor
    valid: torch.Tensor | None


def counted(batch: Batch) -> torch.Tensor | None:
    """Pixels that count for a query, (B, K, H, W) bool; None where all do: without `batch.ignored`, and the pixels that
    a region of the query labels `IGNORE`."""
    open_ = batch.regions == IGNORE
    if not open_.any():
        return None if batch.ignored is None else ~batch.ignored
    mine = (batch.targets | batch.distractors).float()
    ignored = torch.einsum("bkm,bmhw->bkhw", mine, open_.float()) > 0
    return ~(ignored if batch.ignored is None else ignored | batch.ignored)


def wanted(batch: Batch, valid: torch.Tensor | None, size: tuple[int, int]) -> Wanted:
    """The truth at (h, w). valid: what `counted` gave."""
    regions = (batch.regions == 1).float()
    small, _ = shrink(regions, size)
    if valid is None:
        masks = torch.einsum("bkm,bmhw->bkhw", batch.targets.float(), small).clamp(max=1)
    else:
        whole = torch.einsum("bkm,bmhw->bkhw", batch.targets.float(), regions).clamp(max=1)
        masks = shrink(whole, size, valid)[0]
    share = None if valid is None else F.interpolate(valid.float(), size=size, mode="area")
    return Wanted(small, masks, share)


def loss_sums(output: VLSegOutput, batch: Batch, config: VLSegConfig, weights: LossSection) -> dict[str, torch.Tensor]:
    """Weighted losses by name. Values are sums over valid queries; losses of the image alone are sums over images times
    the image's number of queries, so that one division by the number of queries makes averages of all of them."""
    valid = batch.packed.valid.float()
    present = batch.targets.any(-1).float() * valid
    pixels = counted(batch)
    fine = wanted(batch, pixels, _size(output.mask_logits))
    coarse = wanted(batch, pixels, _size(output.coarse_logits[0]))

    def mask_loss(logits: torch.Tensor, truth: Wanted) -> torch.Tensor:
        logits = logits.float()
        return (
            weights.bce * (bce_per_query(logits, truth.masks, truth.valid) * valid).sum()
            + weights.dice * (dice_per_query(logits, truth.masks, truth.valid) * present).sum()
        )

    losses = {"mask": mask_loss(output.mask_logits, fine)}
    if weights.edge:
        edges = edge_per_query(output.mask_logits.float(), fine.masks, fine.valid)
        losses["edge"] = weights.edge * (edges * present).sum()
    if weights.coarse:
        stages = output.coarse_logits
        losses["coarse"] = weights.coarse * torch.stack([mask_loss(s, coarse) for s in stages]).mean()
    answer = torch.where(present > 0, config.seg_token_id, config.rej_token_id)
    token = F.cross_entropy(output.token_logits.flatten(0, 1), answer.flatten(), reduction="none")
    decided = F.binary_cross_entropy_with_logits(output.evidence, present, reduction="none")
    losses["presence"] = weights.presence * ((token * valid.flatten()).sum() + (decided * valid).sum())
    if output.slots is not None and weights.slots:
        parts, scores = output.slots.logits, output.slots.scores
        mask, score = slot_losses(parts, scores, fine.regions, batch.targets, fine.valid, weights.bce, weights.dice)
        losses["slots"] = weights.slots * ((mask * present).sum() + (score * valid).sum())
    if output.ground_logits is not None and weights.ground:
        cells = wanted(batch, pixels, _size(output.ground_logits)).masks
        losses["ground"] = weights.ground * (ground_loss(output.ground_logits, cells) * present).sum()
    if output.groups is not None and weights.group:
        open_ = (batch.regions == IGNORE).any(1, keepdim=True)
        if batch.ignored is not None:
            open_ = open_ | batch.ignored.any(1, keepdim=True)
        things = with_outside(coarse.regions, shrink(open_, _size(coarse.regions))[0][:, 0])
        some = scattered(*_size(things)).to(things.device)  # neighbours have much the same to say
        grouped = group_loss(output.groups.average_at(things, some), things.flatten(2)[..., some])
        losses["group"] = weights.group * (grouped * valid.sum(1)).sum()
    targets = batch.packed.path_targets
    if output.path_logits is not None and targets is not None and weights.path:
        near = Near(grammar_of(config).vocabulary, weights.path_spread) if weights.path_spread else None
        tokens = path_loss(output.path_logits, targets, batch.packed.owner, batch.packed.valid.shape[1], near)
        losses["path"] = weights.path * (tokens * valid).sum()
    losses |= target_aware(output, batch, weights, fine, coarse)
    losses |= noun_losses(output, batch, weights)
    return losses


def target_aware(
    output: VLSegOutput, batch: Batch, weights: LossSection, fine: Wanted, coarse: Wanted
) -> dict[str, torch.Tensor]:
    """The losses that keep a query on its own target, in the form that `weights.target_form` names."""
    valid = batch.packed.valid.float()
    found = batch.targets.any(-1)
    if weights.target_form == "talent":
        assert output.query_state is not None
        state, fused = output.query_state, output.fused
        if fused is not None:
            scales, text, seen = fused.scales, fused.text, fused.features.float().mean((-2, -1))
        else:  # TALENT has no such model: the query's own pixels are those that its mask takes
            scales, text = [level[:, None] for level in output.levels], [state] * len(output.levels)
            guess = F.interpolate(output.coarse_logits[-1].float(), size=_size(output.levels[-1]), mode="area")
            seen = pooled(output.levels[-1], guess.sigmoid())
        affinity, contrast, defined = talent_losses(scales, text, seen, state, batch.targets)
        return {
            "affinity": weights.affinity * (affinity * valid).sum(),
            "sentence": weights.sentence * (contrast * valid * defined).sum(),
        }
    losses: dict[str, torch.Tensor] = {}
    if weights.target_form == "ours" and weights.target:
        real = coarse.regions.sum((-2, -1)) > 0.5  # a region of less than half a cell has no embedding worth comparing
        candidate = real[:, None] & ~twins(batch.regions == 1, batch.targets)
        positive = batch.targets & candidate
        counts = valid * (positive.any(-1) | ~found)
        regions = pooled(output.pixel_embedding, coarse.regions)
        contrast = target_contrast(output.query_embedding, regions, positive, candidate)
        losses["target"] = weights.target * (contrast * counts).sum()
    if weights.target_form == "ours" and weights.stray:
        stray = stray_activation(output.mask_logits, fine.regions, batch.targets, batch.distractors, fine.valid)
        losses["stray"] = weights.stray * (stray * valid).sum()
    return losses


def noun_losses(output: VLSegOutput, batch: Batch, weights: LossSection) -> dict[str, torch.Tensor]:
    """What pixels, image tokens and queries are called, for a model with noun prototypes."""
    prototypes = output.noun_prototypes
    if prototypes is None:
        return {}
    assert output.pixel_nouns is not None
    assert output.token_nouns is not None
    assert output.query_nouns is not None
    losses = {}
    valid = batch.packed.valid.float()
    queries = valid.sum(1)
    regions = (batch.regions == 1).float()
    for name, dense in (("pixel_noun", output.pixel_nouns), ("token_noun", output.token_nouns)):
        labels = noun_labels(regions, batch.nouns, _size(dense), len(prototypes) - 1)
        losses[name] = getattr(weights, name) * (dense_noun_loss(dense, labels, prototypes) * queries).sum()
    names = F.one_hot(batch.nouns.clamp(min=0), len(prototypes)).bool() & (batch.nouns >= 0)[..., None]
    meant = torch.einsum("bkm,bmc->bkc", batch.targets.float(), names.float()) > 0
    present = batch.targets.any(-1).float() * valid
    asked = query_noun_loss(output.query_nouns, meant, prototypes)
    losses["query_noun"] = weights.query_noun * (asked * present).sum()
    return losses


def _size(maps: torch.Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
