"""The refiner: a crop of the image and a coarse mask to a sharper mask, several times over.

After the refiner of Moondream Segmentation (arXiv 2604.02593) and SAM's mask decoder (arXiv 2304.02643): early and late
features of the crop are computed once; each iteration reads the mask of the one before, and gives several masks with
the IoU that each of them expects to have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vlseg.data.files import write_whole
from vlseg.models.channel_norm import ChannelNorm
from vlseg.models.pixel_decoder import ConvBlock, FourierPosition
from vlseg.models.refiner_blocks import MaskEncoder, TwoWayBlock, pooled
from vlseg.types import VLSegError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "vlseg-refiner"
STRIDES = (4, 8, 16)  # of the tower's maps


@dataclass
class RefinerConfig:
    """What a refiner is. Lengths in pixels of the crop.

    tower: a convolutional tower of timm, of which the stages up to stride 16 are used. size: side of the crop, a
    multiple of 16. margin: around the box on each side, as a share of its longer side. dim: width at stride 8; fine:
    widths at strides 4 and 2. tokens: masks an iteration. iterations: as many as are run where nobody says.
    """

    tower: str = "convnext_atto"
    size: int = 128
    margin: float = 0.25
    dim: int = 80
    fine: list[int] = field(default_factory=lambda: [48, 24])
    tokens: int = 4
    blocks: int = 2
    heads: int = 4
    iterations: int = 2
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])


@dataclass(slots=True)
class CropFeatures:
    """What all iterations share. context: (B, dim, S/8, S/8); edges: (B, fine[0], S/4, S/4); detail: (B, fine[1], S/2,
    S/2)."""

    context: torch.Tensor
    edges: torch.Tensor
    detail: torch.Tensor


@dataclass(slots=True)
class Step:
    """One iteration. logits: (B, T, S/2, S/2) of all masks; iou: (B, T) logits of the IoU that each expects."""

    logits: torch.Tensor
    iou: torch.Tensor

    @property
    def best(self) -> torch.Tensor:
        """Logits of the mask that expects the highest IoU, (B, S/2, S/2)."""
        return self.logits[torch.arange(len(self.iou), device=self.iou.device), self.iou.argmax(1)]


class Refiner(nn.Module):
    """See `RefinerConfig`. No BatchNorm: a crop's result does not depend on the others of its batch."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        self.config = config
        self.trunk, channels = _trunk(config.tower)
        dim, (fine, finest) = config.dim, config.fine
        self.enter = nn.ModuleList(ChannelNorm(c) for c in channels)
        self.edge = nn.Conv2d(channels[0], fine, 1)
        self.middle, self.late = nn.Conv2d(channels[1], dim, 1), nn.Conv2d(channels[2], dim, 1)
        self.position = FourierPosition(dim)
        self.mix = ConvBlock(dim)
        self.stem = nn.Conv2d(3, finest, 3, stride=2, padding=1)
        self.mask_encoder = MaskEncoder(finest, fine, dim)
        self.tokens = nn.Parameter(torch.randn(config.tokens + 1, dim) * 0.02)  # the masks, and the judge of their IoU
        self.regions = nn.Linear(dim, 2 * dim)  # what lies inside and outside of the mask so far, as two tokens
        self.blocks = nn.ModuleList(TwoWayBlock(dim, config.heads) for _ in range(config.blocks))
        self.token_norm = nn.LayerNorm(dim)
        self.up4 = nn.Sequential(ChannelNorm(dim), nn.Conv2d(dim, fine, 1))
        self.at4 = ConvBlock(fine)
        self.up2 = nn.Sequential(ChannelNorm(fine), nn.Conv2d(fine, finest, 1))
        self.at2 = ConvBlock(finest)
        self.embed = nn.Sequential(ChannelNorm(finest), nn.GELU(), nn.Conv2d(finest, finest, 1))
        self.weights = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, finest + 1))
        self.keep = nn.Parameter(torch.tensor(1.0))  # how far the mask so far is believed
        self.judge = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, config.tokens))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.keep.device

    def encode(self, pixels: torch.Tensor) -> CropFeatures:
        """pixels: (B, 3, S, S), normalised; S a multiple of 16."""
        maps = self.trunk.forward_intermediates(pixels, indices=list(range(len(STRIDES))), intermediates_only=True)
        early, middle, late = (norm(x) for norm, x in zip(self.enter, maps, strict=True))
        context = self.middle(middle) + F.interpolate(self.late(late), scale_factor=2.0, mode="nearest")
        context = self.mix(context + self.position(*context.shape[-2:]))
        return CropFeatures(context, self.edge(early), self.stem(pixels))

    def step(self, features: CropFeatures, mask: torch.Tensor) -> Step:
        """One iteration. mask: (B, S/2, S/2) probabilities in 0..1, the shares of cells that are inside."""
        signed = (2 * mask - 1)[:, None].to(features.context.dtype)
        coarse, edges, detail = self.mask_encoder(signed)
        context = features.context + coarse
        tokens = torch.cat([self.tokens.expand(len(mask), -1, -1), pooled(self.regions, features.context, mask)], 1)
        height, width = context.shape[-2:]
        pixels = context.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens, pixels = block(tokens, pixels)
        count = self.config.tokens
        tokens = self.token_norm(tokens)[:, : count + 1]
        context = pixels.transpose(1, 2).unflatten(2, (height, width))
        x = self.at4(_double(self.up4(context)) + features.edges + edges)
        x = self.at2(_double(self.up2(x)) + features.detail + detail)
        weights = self.weights(tokens[:, :count])
        logits = torch.einsum("btc,bchw->bthw", weights[..., :-1], self.embed(x)) + weights[..., -1, None, None]
        return Step(logits.float() + self.keep * signed.float(), self.judge(tokens[:, count]).float())

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor, iterations: int | None = None) -> list[Step]:
        """All iterations, each fed with the best mask of the one before (without a gradient through it).

        pixels: (B, 3, S, S); mask: (B, S/2, S/2) in 0..1.
        """
        features, steps = self.encode(pixels), []
        for _ in range(self.config.iterations if iterations is None else iterations):
            steps.append(self.step(features, mask))
            mask = steps[-1].best.detach().sigmoid()
        return steps

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write `config.json` and `model.safetensors`, the weights last. dtype: of the file; float32 loses nothing.

        Raises VLSegError where a file cannot be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in self.state_dict().items()}
        write_whole(folder / CONFIG, json.dumps({"model_type": KIND, **asdict(self.config)}, indent=1) + "\n")
        write_whole(folder / WEIGHTS, save(state, {"format": "pt"}))

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Refiner:
        """The refiner in a folder, as float32, in eval mode. Raises VLSegError, in one line, for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            stated: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if stated.pop("model_type", None) != KIND:
                raise VLSegError(f"{folder}: no refiner of vlseg (model_type {KIND}); name the folder of one")
            model = cls(RefinerConfig(**stated))
            state = load_file(folder / WEIGHTS)
            model.load_state_dict({key: value.float() for key, value in state.items()})
        except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:160]
            raise VLSegError(f"{folder}: the refiner cannot be loaded ({reason})") from error
        return model.eval().to(device or "cpu")


def start_trunk(model: Refiner, weights: dict[str, torch.Tensor]) -> int:
    """Take the trunk's weights from those of a pixel encoder of the same tower; returns how many tensors.

    weights: a state with keys "pixel_encoder.trunk.*", such as that of a `VLSegModel`. Raises VLSegError where it does
    not hold them all.
    """
    prefix = "pixel_encoder.trunk."
    own = {key[len(prefix) :]: value.float() for key, value in weights.items() if key.startswith(prefix)}
    wanted = model.trunk.state_dict()
    unfit = [key for key, value in wanted.items() if key not in own or own[key].shape != value.shape]
    if unfit:
        raise VLSegError(f"start: no pixel encoder of tower {model.config.tower} ({unfit[0]} is missing or differs)")
    model.trunk.load_state_dict({key: own[key] for key in wanted})
    return len(wanted)


def _trunk(name: str) -> tuple[Any, Sequence[int]]:
    """The first three stages of a tower of timm, with random weights, and their channels."""
    import timm

    if not timm.is_model(name):
        raise VLSegError(f"refiner tower: timm knows no {name!r}")
    trunk: Any = timm.create_model(name, pretrained=False, num_classes=0)
    levels = [(v["num_chs"], v["reduction"]) for v in getattr(trunk, "feature_info", [])][: len(STRIDES)]
    if [stride for _, stride in levels] != list(STRIDES) or not hasattr(trunk, "prune_intermediate_layers"):
        raise VLSegError(f"refiner tower: {name} gives no maps at strides 4, 8 and 16; name a ConvNeXt")
    trunk.prune_intermediate_layers(list(range(len(STRIDES))), prune_norm=True, prune_head=True)
    return trunk, [channels for channels, _ in levels]


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
