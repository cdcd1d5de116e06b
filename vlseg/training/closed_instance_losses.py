"""The losses of Mask R-CNN (arXiv 1703.06870), a picture at a time and by torchvision's own parts.

They differ from what torchvision's network gives in training in two ways. Each loss is a mean over the samples of one
picture, drawn by a seed of that picture, so that a step does not depend on how its pictures are dealt out. And what is
ignored counts for nothing: a box of which more than half is ignored is no example of background, neither for the
proposals nor for the classes, and ignored pixels in the box of an instance have no part in its mask's loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.systems.instance_net import InstanceNet, framed

NAMES = ("classifier", "box", "mask", "objectness", "rpn_box")
MOST_IGNORED = 0.5  # of a box that is an example of background
Truth = dict[str, torch.Tensor]


class InstanceLosses(nn.Module):
    """A network with its losses, as the ranks of a run share it. core: the network."""

    def __init__(self, core: InstanceNet):
        super().__init__()
        self.core = core

    def forward(self, pixels: torch.Tensor, truths: list[Truth], seed: int) -> torch.Tensor:
        """(5,) float32: the losses `NAMES`, each summed over the pictures.

        pixels: (B, 3, H, W), normalised. truths: of each picture boxes (N, 4) float32 (x0, y0, x1, y1) in pixels,
        labels (N,) int64 above 0, masks (N, H, W) uint8, ignored (H, W) bool; N may be 0. seed: of the first picture's
        samples; the next one's is one more.
        """
        net = self.core.net
        maps = {name: one.float() for name, one in net.backbone(pixels).items()}
        sums = []
        for b, truth in enumerate(truths):
            torch.manual_seed(seed + b)
            own = {name: one[b : b + 1] for name, one in maps.items()}
            sums.append(picture_losses(net, own, framed(pixels[b : b + 1]), truth))
        return torch.stack(sums).sum(0)


def picture_losses(net: Any, maps: dict[str, torch.Tensor], images: Any, truth: Truth) -> torch.Tensor:
    """(5,): `NAMES` of one picture. maps: of its feature pyramid, (1, C, h, w) each; images: framed."""
    proposals, objectness, rpn_box = proposal_losses(net.rpn, maps, images, truth)
    classifier, box, mask = head_losses(net.roi_heads, maps, images.image_sizes, proposals, truth)
    return torch.stack([classifier, box, mask, objectness, rpn_box])


def proposal_losses(rpn: Any, maps: Any, images: Any, truth: Truth) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(proposed boxes (P, 4), objectness loss, loss of their boxes)."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    levels = list(maps.values())
    scores, deltas = rpn.head(levels)
    anchors = rpn.anchor_generator(images, levels)
    counts = [one[0].numel() for one in scores]
    scores, deltas = (one.float() for one in concat_box_prediction_layers(scores, deltas))
    boxes = rpn.box_coder.decode(deltas.detach(), anchors).view(1, -1, 4)
    proposals, _ = rpn.filter_proposals(boxes, scores, images.image_sizes, counts)
    labels, matched = rpn.assign_targets_to_anchors(anchors, [truth])
    labels[0][(labels[0] == 0) & mostly_ignored(anchors[0], truth["ignored"])] = -1  # not to be drawn
    if not (labels[0] >= 0).any():
        nothing = idle(scores, deltas)
        return proposals[0], nothing, nothing
    objectness, box = rpn.compute_loss(scores, deltas, labels, rpn.box_coder.encode(matched, anchors))
    return proposals[0], objectness, box


def head_losses(
    heads: Any, maps: Any, sizes: list[tuple[int, int]], proposals: torch.Tensor, truth: Truth
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(classifier, box, mask) losses of the boxes that are drawn from the proposals and the truth."""
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    _, labels = heads.assign_targets_to_proposals([proposals], [truth["boxes"]], [truth["labels"]])
    proposals = proposals[(labels[0] > 0) | ~mostly_ignored(proposals, truth["ignored"])]
    boxes, matched, labels, wanted = heads.select_training_samples([proposals], [truth])
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, sizes)))
    logits, deltas = logits.float(), deltas.float()
    if len(logits):
        classifier, box = fastrcnn_loss(logits, deltas, labels, wanted)
    else:
        classifier = box = idle(logits, deltas)
    inside = labels[0] > 0
    return classifier, box, mask_loss(heads, maps, sizes, boxes[0][inside], matched[0][inside], truth)


def mask_loss(
    heads: Any, maps: Any, sizes: list[tuple[int, int]], boxes: torch.Tensor, matched: torch.Tensor, truth: Truth
) -> torch.Tensor:
    """Binary cross-entropy over the cells that count of the boxes (P, 4). matched: (P,), the instance of each."""
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    logits = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, [boxes], sizes))).float()
    if not len(logits):
        return idle(logits)
    side = logits.shape[-1]
    logits = logits[torch.arange(len(logits), device=logits.device), truth["labels"][matched]]
    target = project_masks_on_boxes(truth["masks"], boxes, matched, side)
    ignored = project_masks_on_boxes(truth["ignored"][None], boxes, torch.zeros_like(matched), side)
    counts = (ignored <= 0.5).float()
    loss = F.binary_cross_entropy_with_logits(logits, target, counts, reduction="sum")
    return loss / counts.sum().clamp(min=1)


def mostly_ignored(boxes: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
    """(P,) bool: of which boxes (P, 4) more than `MOST_IGNORED` of what lies in the picture is ignored, (H, W) bool."""
    if not ignored.any():
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    height, width = ignored.shape
    sums = F.pad(ignored.to(torch.int64).cumsum(0).cumsum(1), (1, 0, 1, 0))
    x0, x1 = (boxes[:, i].round().long().clamp(0, width) for i in (0, 2))
    y0, y1 = (boxes[:, i].round().long().clamp(0, height) for i in (1, 3))
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return inside > MOST_IGNORED * (x1 - x0) * (y1 - y0)


def idle(*outputs: torch.Tensor) -> torch.Tensor:
    """Zero, of which every weight behind the outputs has a gradient: ranks wait for each other's."""
    return torch.stack([output.sum() for output in outputs]).sum() * 0
