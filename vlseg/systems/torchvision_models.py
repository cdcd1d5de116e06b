"""torchvision's Mask R-CNN (arXiv 1703.06870), DeepLabV3 (1706.05587) and FCN (1411.4038), as trained by torchvision.

Weights: a local `.pth` state dict, a folder that `vlseg train` has written, or the name of torchvision's own
("COCO_V1"), which torchvision fetches. A `.pth` says which network it is by its keys, and which classes by their number
(torchvision's own), or by a text file with one name a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.systems.class_names import ClassNames
from vlseg.systems.closed_maps import ClosedImages, ClosedMaps, most_likely, open_system
from vlseg.systems.closed_net import TORCHVISION
from vlseg.systems.closed_vocabulary import ClosedVocabulary, Findings, Region, from_class_map
from vlseg.systems.devices import pick_device, pick_dtype
from vlseg.systems.instance_net import InstanceNet, framed
from vlseg.types import VLSegError

BUILDERS = {**TORCHVISION, "mask-rcnn": ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")}


class TorchvisionMaps(ClosedVocabulary):
    """DeepLabV3 or FCN with torchvision's own way to make images ready (520 pixels on the shorter side)."""

    def __init__(self, net: torch.nn.Module, labels: Sequence[str], ready: Any, name: str):
        super().__init__(name, ClassNames(labels), f"torchvision {type(net).__name__}, highest of bilinear logits")
        self.net, self.ready = net.eval(), ready

    def look(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """See `ClosedVocabulary.look`: logits (C, h, w) float32."""
        weight = next(self.net.parameters())
        pixels = torch.stack([self.ready(image) for image in images])
        logits = self.net(pixels.to(weight.device, weight.dtype))["out"].float()
        return [own.clone() for own in logits]

    def find(self, seen: Any, size: tuple[int, int], wanted: set[int], presence: float, mask: float) -> Findings:
        """See `ClosedVocabulary.find`."""
        del presence, mask
        winner, probability = most_likely(seen, size)
        return from_class_map(winner, probability, wanted, len(self.names.labels))


class MaskRCNN(ClosedVocabulary):
    """Mask R-CNN: one segment an instance; masks are torchvision's soft ones, above the mask threshold."""

    soft = True

    def __init__(self, net: Any, labels: Sequence[str], ready: Any, name: str):
        floor = net.roi_heads.score_thresh
        super().__init__(name, ClassNames(labels), f"torchvision Mask R-CNN, instances with a score above {floor:g}")
        self.net, self.ready = net.eval(), ready

    def look(self, images: Sequence[Image.Image]) -> list[Any]:
        """See `ClosedVocabulary.look`: labels (N,), scores (N,) and soft masks (N, 28, 28) with their boxes (N, 4) in
        pixels of the image; masks are pasted when they are asked for."""
        original, inputs = [(image.height, image.width) for image in images], self.inputs(images)
        maps = self.net.backbone(inputs.tensors)
        maps = {"0": maps} if isinstance(maps, torch.Tensor) else maps
        proposals, _ = self.net.rpn(inputs, maps)
        found, _ = self.net.roi_heads(maps, proposals, inputs.image_sizes)
        from torchvision.models.detection.transform import resize_boxes

        seen = []
        for one, seen_at, size in zip(found, inputs.image_sizes, original, strict=True):
            boxes = resize_boxes(one["boxes"], seen_at, size)
            seen.append((one["labels"], one["scores"].float(), one["masks"].float(), boxes.float()))
        return seen

    def inputs(self, images: Sequence[Image.Image]) -> Any:
        """The pictures as the network takes them, torchvision's `ImageList`."""
        weight = next(self.net.parameters())
        inputs, _ = self.net.transform([self.ready(image).to(weight.device, weight.dtype) for image in images])
        return inputs

    def find(self, seen: Any, size: tuple[int, int], wanted: set[int], presence: float, mask: float) -> Findings:
        """See `ClosedVocabulary.find`."""
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        labels, scores, masks, boxes = seen
        best = np.zeros(len(self.names.labels), np.float32)
        np.maximum.at(best, labels.cpu().numpy(), scores.float().cpu().numpy())
        regions = []
        for i in range(len(labels)):  # one at a time: soft masks at the size of a photograph are large
            if int(labels[i]) in wanted and float(scores[i]) >= presence:
                soft = paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], size)[0, 0]
                regions.append(Region(int(labels[i]), float(scores[i]), (soft > mask).cpu().numpy()))
        return Findings(best, regions)


class TrainedMaskRCNN(MaskRCNN):
    """One that `vlseg train` has made: pictures are made ready as they were in training."""

    def __init__(self, trained: InstanceNet, name: str):
        super().__init__(trained.eval().net, trained.labels, None, name)
        self.presence_threshold = trained.threshold
        self.images = ClosedImages(self.names, trained.image)

    def inputs(self, images: Sequence[Image.Image]) -> Any:
        """See `MaskRCNN.inputs`."""
        size = self.images.input_size(images[0].height, images[0].width)
        pixels = torch.cat([self.images.pixel_values(image, size) for image in images])
        return framed(pixels.to(next(self.net.parameters()).device))


def open_torchvision(
    architecture: str, places: Sequence[str | None], device: str | None, dtype: str | None, name: str | None
) -> ClosedVocabulary:
    """See the top of the page. places: weights, and a text file with the names of the classes, or None."""
    where, named = str(places[0]), places[1] if len(places) > 1 else None
    name = name or architecture
    if Path(where).is_dir() and architecture != "mask-rcnn":
        return open_system([where], device, dtype, name)
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    if number != torch.float32 and architecture == "mask-rcnn":
        raise VLSegError(f"--dtype {dtype}: not for Mask R-CNN; use float32")
    if Path(where).is_dir():
        if named:
            raise VLSegError(f"--model {name}: the folder {where} names its classes itself; leave {named} out")
        return TrainedMaskRCNN(InstanceNet.from_pretrained(where).to(place), name)
    if Path(where).is_file():
        net, labels, ready = _from_file(architecture, Path(where), named)
    else:
        net, labels, ready = _from_torchvision(architecture, where, name)
    net = net.to(place, number)
    kind: Any = MaskRCNN if architecture == "mask-rcnn" else TorchvisionMaps
    made: ClosedVocabulary = kind(net, labels, ready, name)
    return made


def open_mask_rcnn(
    places: Sequence[str | None], device: str | None = None, dtype: str | None = None, name: str | None = None
) -> ClosedVocabulary:
    """The factory of mask-rcnn; see `open_torchvision`."""
    return open_torchvision("mask-rcnn", places, device, dtype, name)


def open_deeplabv3(
    places: Sequence[str | None], device: str | None = None, dtype: str | None = None, name: str | None = None
) -> ClosedVocabulary:
    """The factory of deeplabv3; see `open_torchvision`."""
    return open_torchvision("deeplabv3", places, device, dtype, name)


def open_fcn(
    places: Sequence[str | None], device: str | None = None, dtype: str | None = None, name: str | None = None
) -> ClosedVocabulary:
    """The factory of fcn; see `open_torchvision`."""
    return open_torchvision("fcn", places, device, dtype, name)


def _from_file(architecture: str, file: Path, named: str | None) -> tuple[Any, list[str], Any]:
    """Network, class names and preparation of a state dict on disk."""
    from torchvision.models import get_model, get_model_weights

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("model", state)  # as torchvision's own training script saves it
        tensors = all(isinstance(value, torch.Tensor) for value in state.values())
    except Exception as error:
        raise VLSegError(
            f"{file}: not a state dict that torch can read ({' '.join(str(error).split())[:160]})"
        ) from error
    if not tensors:
        raise VLSegError(f"{file}: no state dict: it holds more than tensors")
    last = {"deeplabv3": "classifier.4.weight", "fcn": "classifier.4.weight"}
    key = last.get(architecture, "roi_heads.box_predictor.cls_score.weight")
    if key not in state:
        raise VLSegError(f"{file}: not the weights of a {architecture} of torchvision (no {key})")
    count = state[key].shape[0]
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": count}
    if architecture != "mask-rcnn":
        options["aux_loss"] = any(k.startswith("aux_classifier.") for k in state)
    for builder in BUILDERS[architecture]:
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in get_model(builder, **options).state_dict().items()}
        if shapes == {k: v.shape for k, v in state.items()}:
            break
    else:
        raise VLSegError(f"{file}: fits none of {', '.join(BUILDERS[architecture])}")
    net = get_model(builder, **options)
    net.load_state_dict(state)
    own = get_model_weights(builder).DEFAULT
    labels = list(own.meta["categories"])
    if named:
        labels = [line.strip() for line in Path(named).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(labels) != count:
        given = f"{named} names {len(labels)}" if named else "they are not torchvision's own"
        raise VLSegError(
            f"{file}: {count} classes, and {given}; write a text file, one name a line, the background's first, and "
            f"say {architecture}={file},NAMES.txt"
        )
    return net, labels, own.transforms()


def _from_torchvision(architecture: str, weights: str, name: str) -> tuple[Any, list[str], Any]:
    """Network, class names and preparation of torchvision's own weights, fetched where they are not there yet."""
    from torchvision.models import get_model, get_model_weights

    builder, _, which = weights.rpartition(".")
    builder = builder or BUILDERS[architecture][0]
    known = [f"{b}.{w.name}" for b in BUILDERS[architecture] for w in get_model_weights(b)]
    if f"{builder}.{which}" not in known:
        raise VLSegError(f"--model {name}: neither a file nor weights of torchvision; those are {', '.join(known)}")
    own = get_model_weights(builder)[which]
    try:
        net = get_model(builder, weights=own)
    except OSError as error:
        file = own.url.rpartition("/")[2]
        raise VLSegError(
            f"--model {name}: {builder}.{which} cannot be fetched ({type(error).__name__}); fetch {file} from "
            f"torchvision with a network, and name it: {architecture}=FOLDER/{file}"
        ) from error
    return net, list(own.meta["categories"]), own.transforms()


__all__ = ["ClosedMaps", "MaskRCNN", "TorchvisionMaps", "open_deeplabv3", "open_fcn", "open_mask_rcnn"]
