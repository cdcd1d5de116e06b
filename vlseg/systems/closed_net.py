"""`ClosedNet`: one interface over networks that give each pixel a class, from segmentation-models-pytorch, torchvision
and our SegNet; built, saved, loaded, with the names of their classes.

A folder holds `config.json`, `model.safetensors` and `vlseg_closed.json` (names of the classes by number, how images
are made ready). Those of segmentation-models-pytorch are what its `save_pretrained` writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.data.files import write_whole
from vlseg.systems.net_norms import as_saved, hold_statistics, without_statistics
from vlseg.types import VLSegError

FILE = "vlseg_closed.json"
SMP = {
    "unet": "Unet",
    "unet++": "UnetPlusPlus",
    "deeplabv3+": "DeepLabV3Plus",
    "fpn": "FPN",
    "segformer": "Segformer",
    "dpt": "DPT",
}
TORCHVISION = {
    "deeplabv3": ("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large"),
    "fcn": ("fcn_resnet50", "fcn_resnet101"),
}
ARCHITECTURES = (*SMP, *TORCHVISION, "segnet")
INSTANCES = "mask-rcnn"  # see `vlseg/systems/instance_net.py`
ENCODERS = {"dpt": "tu-vit_small_patch16_224.augreg_in21k"}  # of timm; the others start from ResNet-34
IMAGE: dict[str, Any] = {
    "area": 512 * 512,
    "multiple": 32,
    "max_side": 2048,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


class ClosedNet(nn.Module):
    """A network, the names of its classes, and how its images are made ready.

    net: (B, 3, H, W) normalised pixels to logits (B, C, H, W), or to a mapping with them as "out" (torchvision).
    labels: C names; a net with one logit a pixel has two, the background's first. image: as in `VLSegConfig.image`.
    described: what `config.json` says of it, None for one that writes it itself.
    """

    instances = False  # whether it finds objects rather than classes of pixels

    def __init__(
        self,
        net: nn.Module,
        architecture: str,
        labels: Sequence[str],
        image: dict[str, Any] | None = None,
        described: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.net, self.architecture, self.labels = net, architecture, list(labels)
        self.described = described
        own = {"multiple": _multiple(net)}
        self.image = {**IMAGE, **own, **(image or {})}
        self.threshold = 0.5

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to logits (B, C, H, W) at the same size."""
        output = self.net(pixels)
        logits = output["out"] if isinstance(output, dict) else output
        if logits.shape[1] == 1:  # one logit: against nothing
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        out: torch.Tensor = logits
        return out

    def train(self, mode: bool = True) -> ClosedNet:
        """As ever, but a BatchNorm keeps its statistics."""
        super().train(mode)
        hold_statistics(self.net)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder. `Segmenter` loads it, and the library itself where no norm was replaced."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.described is None:
            inner: Any = self.net
            weights = inner.config.pop("encoder_weights", None)
            inner.config["encoder_weights"] = None  # a folder is sufficient; nothing more is to be fetched
            try:
                inner.save_pretrained(folder)
            finally:
                inner.config["encoder_weights"] = weights
        else:
            from safetensors.torch import save_file

            tensors = {key: value.contiguous() for key, value in self.net.state_dict().items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            write_whole(folder / "config.json", json.dumps(self.described, indent=1))
        write_whole(folder / FILE, self.told())

    def told(self) -> str:
        """The text of `vlseg_closed.json`."""
        facts = {"architecture": self.architecture, "labels": self.labels}
        return json.dumps(
            {**facts, "image": self.image, "presence_threshold": self.threshold}, indent=1, ensure_ascii=False
        )

    def count(self) -> int:
        """How many classes the network has, the background included, whatever their names."""
        side = 2 * self.image["multiple"]
        with torch.inference_mode():
            logits: torch.Tensor = self.eval()(torch.zeros(1, 3, side, side))
        return logits.shape[1]

    @staticmethod
    def labels_in(folder: str | Path) -> list[str]:
        """The names of the classes of a folder, by number; [] where it does not tell."""
        found = _read(Path(folder) / FILE, needed=False).get("labels")
        return found if isinstance(found, list) and all(isinstance(label, str) for label in found) else []

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a folder; no network. Raises VLSegError for one that is not whole or has no class names."""
        folder = Path(folder)
        config, told = _read(folder / "config.json"), _read(folder / FILE, needed=False)
        labels = cls.labels_in(folder)
        if not labels:
            raise VLSegError(
                f"{folder}: the names of its classes are not known; write {FILE} there: "
                '{"labels": ["background", "road", ...]}, in the order of their numbers'
            )
        from safetensors.torch import load_file

        try:
            weights = load_file(folder / "model.safetensors")
            net, architecture, described = _described(config)
            if cls.instances != (architecture == INSTANCES):
                raise VLSegError(
                    f"{folder}: is a {architecture}; say closed={architecture} to train it, "
                    f"{architecture}=FOLDER to ask it"
                )
            as_saved(net, weights.keys())
            net.load_state_dict(weights)
        except VLSegError:
            raise
        except Exception as error:
            # safetensors, torch and the libraries each have their own way to say that a file is broken
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise VLSegError(f"{folder}: the network cannot be loaded ({reason})") from error
        made = cls(net, architecture, labels, told.get("image"), described)
        count = made.count()
        if count == 2 and len(labels) == 1:
            made.labels = ["background", *labels]
        if count != len(made.labels):
            raise VLSegError(f"{folder}: {len(labels)} names in {FILE} for a network of {count} classes")
        made.threshold = float(told.get("presence_threshold", 0.5))
        return made.eval()


def build_net(
    architecture: str,
    labels: Sequence[str],
    encoder: str | None = None,
    weights: str | None = None,
    image: dict[str, Any] | None = None,
    **options: Any,
) -> ClosedNet:
    """A network to be trained, under torch's seed.

    architecture: of `ARCHITECTURES`. encoder: of segmentation-models-pytorch ("resnet34", "tu-convnext_tiny": any of
    timm) or, for torchvision, the builder ("deeplabv3_resnet50"). weights: of the encoder, as its library calls them
    ("imagenet"; fetched by it); None: random. options: further ones of the class. Each BatchNorm that brings no
    statistics becomes a GroupNorm. Raises VLSegError.
    """
    count = len(labels)
    if architecture in SMP:
        name = encoder or ENCODERS.get(architecture, "resnet34")
        given = {"encoder_name": name, "encoder_weights": weights, "classes": count, **options}
        net = _call(_smp(SMP[architecture]), given)
        described = None
    elif architecture in TORCHVISION:
        builder = encoder or TORCHVISION[architecture][0]
        if builder not in TORCHVISION[architecture]:
            raise VLSegError(f"closed.encoder {builder!r}: {architecture} has {', '.join(TORCHVISION[architecture])}")
        net = _call(_torchvision(builder), {"weights_backbone": weights, "num_classes": count, **options})
        described = {"model_type": "vlseg-torchvision", "builder": builder, "classes": count, "options": options}
    elif architecture == "segnet":
        if encoder or weights:
            raise VLSegError("closed: segnet has no encoder to name; it starts from random weights")
        from vlseg.systems.segnet import SegNet

        net = _call(SegNet, {"classes": count, **options})
        described = {"model_type": "vlseg-segnet", "classes": count, "options": net.options}
    else:
        raise VLSegError(
            f"closed: no architecture {architecture!r}; there are {', '.join((*ARCHITECTURES, INSTANCES))}"
        )
    without_statistics(net)
    return ClosedNet(net, architecture, labels, image, described)


def _described(config: dict[str, Any]) -> tuple[nn.Module, str, dict[str, Any] | None]:
    """The network that a config.json describes, without weights; its architecture; what to save again."""
    kind = config.get("model_type")
    if kind == "vlseg-segnet":
        from vlseg.systems.segnet import SegNet

        return SegNet(config["classes"], **config["options"]), "segnet", config
    if kind == "vlseg-mask-rcnn":
        from vlseg.systems.instance_net import bare  # which is built on this file

        return bare(config["encoder"], config["classes"], config["options"]), INSTANCES, config
    if kind == "vlseg-torchvision":
        architecture = next(name for name, builders in TORCHVISION.items() if config["builder"] in builders)
        options = {"weights": None, "weights_backbone": None, "num_classes": config["classes"], **config["options"]}
        return _torchvision(config["builder"])(**options), architecture, config
    name = config.get("_model_class")
    architecture = next((key for key, value in SMP.items() if value == name), str(name).lower())
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    return _smp(str(name))(**{**options, "encoder_weights": None}), architecture, None


def _smp(name: str) -> Any:
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise VLSegError(
            f"{name}: segmentation-models-pytorch is not installed; pip install segmentation-models-pytorch"
        ) from error
    found = getattr(smp, name, None)
    if found is None:
        raise VLSegError(f"segmentation-models-pytorch has no {name}")
    return found


def _torchvision(builder: str) -> Any:
    from torchvision.models import segmentation

    return getattr(segmentation, builder)


def _call(make: Any, options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except VLSegError:
        raise
    except Exception as error:
        # an encoder that does not exist or does not fit, weights that cannot be fetched: each library says it its way
        raise VLSegError(f"closed: {getattr(make, '__name__', make)}: {' '.join(str(error).split())[:240]}") from error


def _multiple(net: nn.Module) -> int:
    stride = getattr(getattr(net, "encoder", None), "output_stride", None)
    return max(int(stride), 16) if isinstance(stride, int) else 32


def _read(path: Path, needed: bool = True) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not needed:
            return {}
        raise VLSegError(f"{path.parent}: no {path.name} there; name the folder of a checkpoint") from error
    except (OSError, ValueError) as error:
        raise VLSegError(f"{path}: cannot be read ({error})") from error
    return found if isinstance(found, dict) else {}
