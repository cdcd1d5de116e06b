"""`InstanceNet`: torchvision's Mask R-CNN (arXiv 1703.06870) for classes of one's own: built, saved, loaded.

A folder is that of a `ClosedNet`. Pictures come at the size that `image` says, in training and at inference: the
resizing that torchvision's network brings along (min_size, max_size) is passed over.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlseg.systems.closed_net import INSTANCES, ClosedNet
from vlseg.systems.net_norms import without_statistics
from vlseg.types import VLSegError

BUILDERS = {"maskrcnn_resnet50_fpn": "resnet50", "maskrcnn_resnet50_fpn_v2": "resnet50"}  # and their backbones
LEVELS = 5  # of the feature pyramid, strides 4 to 64


class InstanceNet(ClosedNet):
    """A `ClosedNet` that finds instances. net: torchvision's `MaskRCNN`; labels: the background's first.

    It trains by the losses of `vlseg.training.closed_instance_losses`.
    """

    instances = True
    net: Any

    def forward(self, pixels: torch.Tensor) -> Any:
        """(B, 3, H, W) normalised pixels to what was found in each picture, in eval mode: boxes (N, 4) in pixels (x0,
        y0, x1, y1), labels (N,) int64, scores (N,), masks (N, 1, 28, 28) in 0..1 within their boxes."""
        images = framed(pixels)
        maps = self.net.backbone(pixels)
        proposals, _ = self.net.rpn(images, maps)
        found, _ = self.net.roi_heads(maps, proposals, images.image_sizes)
        return found

    def count(self) -> int:
        """See `ClosedNet.count`."""
        found: int = self.net.roi_heads.box_predictor.cls_score.out_features
        return found


def framed(pixels: torch.Tensor) -> Any:
    """Pictures of one size as torchvision's detectors take them."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(pixels, [(pixels.shape[-2], pixels.shape[-1])] * len(pixels))


def build_instance_net(
    labels: Sequence[str],
    encoder: str | None = None,
    weights: str | None = None,
    image: dict[str, Any] | None = None,
    **options: Any,
) -> InstanceNet:
    """A Mask R-CNN to be trained, under torch's seed.

    labels: the background's first. encoder: a builder of torchvision ("maskrcnn_resnet50_fpn", the usual one, or
    "..._v2"), or a ResNet of it ("resnet18"), which gets the pyramid and heads of the first. weights: a file, a state
    dict of such a ResNet or of a whole Mask R-CNN, whose last layers stay random where it has other classes; or the
    name of torchvision's for the ResNet ("IMAGENET1K_V1", fetched by it); None: random. options: of torchvision's
    `MaskRCNN`, and `anchors`, the sides in pixels of the boxes that the 5 levels of the pyramid begin with ([32, 64,
    128, 256, 512]). Each BatchNorm that brings no statistics becomes a GroupNorm. Raises VLSegError.
    """
    encoder = encoder or "maskrcnn_resnet50_fpn"
    net: Any = bare(encoder, len(labels), options)
    # torchvision's start grows with 1 / classes: logits of +-10 for two. This one is that of Detectron2.
    nn.init.normal_(net.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
    if weights:
        take_weights(net, weights, BUILDERS.get(encoder, encoder))
    without_statistics(net)
    described = {"model_type": "vlseg-mask-rcnn", "encoder": encoder, "classes": len(labels), "options": options}
    return InstanceNet(net, INSTANCES, labels, image, described)


def bare(encoder: str, classes: int, options: dict[str, Any]) -> nn.Module:
    """The network with random weights and BatchNorms. Raises VLSegError for an encoder or options that it has not."""
    from torchvision.models import detection, resnet

    options = dict(options)
    anchors = options.pop("anchors", None)
    for name in ("min_size", "max_size", "image_mean", "image_std"):
        if name in options:
            raise VLSegError(f"closed.options.{name}: closed.image says how pictures are made ready (area, mean, std)")
    known = inspect.signature(detection.MaskRCNN).parameters
    for name in options:  # torchvision passes over one that it does not know
        if name not in known:
            raise VLSegError(f"closed.options.{name}: neither anchors nor an option of torchvision's MaskRCNN")
    try:
        if encoder in BUILDERS:
            builder = getattr(detection, encoder)
            net = builder(weights=None, weights_backbone=None, num_classes=classes, **options)
        elif encoder in resnet.__all__ and encoder.islower():
            fpn = detection.backbone_utils.resnet_fpn_backbone(
                backbone_name=encoder, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
            )
            net = detection.MaskRCNN(fpn, num_classes=classes, **options)
        else:
            raise VLSegError(
                f"closed.encoder {encoder!r}: {INSTANCES} has {', '.join(BUILDERS)}, or a ResNet of torchvision "
                "such as resnet18"
            )
    except (TypeError, ValueError) as error:
        raise VLSegError(f"closed.options: {' '.join(str(error).split())[:240]}") from error
    if anchors is not None:
        net.rpn.anchor_generator = _anchors(anchors)
    out: nn.Module = net
    return out


def take_weights(net: nn.Module, weights: str, backbone: str) -> None:
    """Put weights into a network as far as they fit; see `build_instance_net`.

    Raises VLSegError, in one line, for those that cannot be had, or lack a part of the backbone.
    """
    state = _state(weights, backbone)
    if "conv1.weight" in state:
        state = {f"backbone.body.{key}": value for key, value in state.items()}
    own = net.state_dict()
    taken = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    body = [key for key in own if key.startswith("backbone.body.") and not key.endswith("num_batches_tracked")]
    lacking = [key for key in body if key not in taken]
    if lacking:
        raise VLSegError(f"closed.weights={weights}: fits no {backbone} of torchvision (no {lacking[0]} of this shape)")
    net.load_state_dict(taken, strict=False)


def _state(weights: str, backbone: str) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    file = Path(weights).expanduser()
    try:
        if file.is_file():
            state = torch.load(file, map_location="cpu", weights_only=True)
            state = state.get("model", state)  # as torchvision's own training script saves it
        else:
            state = get_model_weights(backbone)[weights].get_state_dict(progress=False)
        tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    except KeyError as error:
        known = ", ".join(one.name for one in get_model_weights(backbone))
        raise VLSegError(f"closed.weights={weights}: neither a file nor weights of torchvision: {known}") from error
    except Exception as error:
        # a file that is no state dict, weights that cannot be fetched: torch and urllib each say it their way
        raise VLSegError(f"closed.weights={weights}: cannot be had ({' '.join(str(error).split())[:200]})") from error
    return tensors


def _anchors(sides: Any) -> nn.Module:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    whole = isinstance(sides, list | tuple) and all(isinstance(side, int) and side > 0 for side in sides)
    if not whole or len(sides) != LEVELS:
        raise VLSegError(
            f"closed.options.anchors={sides}: give {LEVELS} sides in pixels, such as [16, 32, 64, 128, 256]"
        )
    return AnchorGenerator(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * LEVELS)
