"""Training Mask R-CNN for a closed set of classes, by the data, the loop and the checkpoints of the other closed nets.

A query is the name of a class, and each of its target masks an instance of it, with the box around the mask. A picture
may hold none. As for the others, every class that a picture shows must be among its queries.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vlseg.losses.mask import IGNORE
from vlseg.systems.class_names import normal
from vlseg.systems.instance_net import InstanceNet, build_instance_net
from vlseg.systems.torchvision_models import TrainedMaskRCNN
from vlseg.training.batches import Batch, share
from vlseg.training.closed import BACKGROUND, ClosedTrainer, labels_of
from vlseg.training.closed_instance_losses import NAMES, InstanceLosses, Truth
from vlseg.training.config import TrainConfig
from vlseg.types import VLSegError


class InstanceTrainer(ClosedTrainer):
    """One run, as `ClosedTrainer`. core: the `InstanceNet`; plain: it and its losses."""

    def start(self) -> tuple[InstanceNet, InstanceLosses]:
        """See `ClosedTrainer.start`."""
        net = build_instances(self.config)
        return net, InstanceLosses(net)

    def system(self) -> TrainedMaskRCNN:
        """See `ClosedTrainer.system`."""
        return TrainedMaskRCNN(self.core, self.out.name)

    def passes(self, batches: list[Batch]) -> dict[str, float]:
        """See `ClosedTrainer.passes`. Losses are divided by the pictures of all ranks and accumulated batches."""
        config, accelerator, engine = self.config, self.accelerator, self.engine
        ranks, images, device = accelerator.num_processes, config.data.images, accelerator.device
        sums = torch.zeros(len(NAMES), dtype=torch.float64, device=device)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            first = share(images, self.feed.parts, i * ranks + accelerator.process_index).start
            seed = (config.seed * 1_000_003 + self.step) * 4096 + first  # of a picture, whichever rank has it
            pixels = self.processor.normalise(batch.pixels).to(device)
            with engine.part(last):
                with engine.autocast():
                    truths = [{name: t.to(device) for name, t in truth.items()} for truth in instances(batch)]
                    losses = self.model(pixels, truths, seed)
                # ranks' gradients are averaged, so the sum over ranks needs their number back
                engine.backward(losses.sum() * (ranks / images), last)
            sums += losses.detach() / images
        return dict(zip(NAMES, accelerator.reduce(sums, "sum").tolist(), strict=True))


def instances(batch: Batch) -> list[Truth]:
    """The instances of each picture, see `InstanceLosses.forward`: every target mask of every query, once a class.

    What a query ignores is ignored for all classes; a mask without a pixel outside it is no instance.
    """
    from torchvision.ops import masks_to_boxes

    truths = []
    for b in range(len(batch.pixels)):
        owned = {
            (m, int(batch.packed.ids[b, k]))
            for k in range(batch.targets.shape[1])
            if batch.packed.valid[b, k] and int(batch.packed.ids[b, k]) > 0  # 0: the background has no instances
            for m in batch.targets[b, k].nonzero().flatten().tolist()
        }
        pairs = torch.tensor(sorted(owned), dtype=torch.int64, device=batch.regions.device).reshape(-1, 2)
        ignored = (batch.regions[b] == IGNORE).any(0)
        if batch.ignored is not None:
            ignored |= batch.ignored[b].any(0)
        masks = (batch.regions[b][pairs[:, 0]] == 1).to(torch.uint8)
        there = (masks.bool() & ~ignored).flatten(1).any(1)
        masks, labels = masks[there], pairs[there, 1]
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # to the far edges of the last pixels
        truths.append({"boxes": boxes, "labels": labels, "masks": masks, "ignored": ignored})
    return truths


def build_instances(config: TrainConfig) -> InstanceNet:
    """The network that a run starts from, as `closed.build`. Raises VLSegError."""
    closed = config.closed
    for key in ("cross_entropy", "dice"):
        if getattr(closed, key) != 1:
            raise VLSegError(f"closed.{key}: not for {closed.architecture}, which has losses of its own; leave it out")
    torch.manual_seed(config.seed)
    area = {"area": config.model.area} if config.model.area else {}
    if config.model.source:
        net = InstanceNet.from_pretrained(Path(config.model.source).expanduser())
        net.image |= closed.image | area
        return net
    labels = labels_of(config)
    if not labels or normal(labels[0]) != BACKGROUND:
        labels = [BACKGROUND, *labels]  # whose number is 0 in every Mask R-CNN
    return build_instance_net(labels, closed.encoder, closed.weights, closed.image | area, **closed.options)
