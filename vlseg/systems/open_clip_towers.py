"""open_clip models read place by place: a feature of every patch, in the space of the model's own texts.

A CLIP is trained on one vector an image. MaskCLIP (arXiv 2112.01071) reads it densely: in the last attention each place
looks at itself alone (the "value path"), and what follows is applied place by place. Nothing is trained.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vlseg.models.pixel_encoder_open_clip import vit_features
from vlseg.models.precision import QUANTISED
from vlseg.systems.devices import pick_device, pick_dtype
from vlseg.systems.foreign import plain_words
from vlseg.types import VLSegError

SIDE = 448  # of the square whose area an image is made to have; never less than the model's own, nor twice as much
CONTROL = ("<start_of_text>", "<end_of_text>")
RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,
}


class OpenClipTowers:
    """An open_clip model: patches and texts as unit vectors of one space. Raises VLSegError for a tower without places.

    temperature: that of the model's own softmax. stride: pixels a place. any_size: whether its input may have any size;
    else an image is squeezed into the model's own.
    """

    def __init__(self, model: Any, tokenizer: Any):
        from open_clip.modified_resnet import ModifiedResNet
        from open_clip.transformer import VisionTransformer

        self.model, self.tokenizer = model.eval(), tokenizer
        tower = model.visual
        prepared = tower.preprocess_cfg
        own = tower.image_size[0] if isinstance(tower.image_size, list | tuple) else tower.image_size
        self.any_size, self.side = True, min(2 * own, max(SIDE, own))
        self.resample = RESAMPLE.get(prepared.get("interpolation", "bicubic"), Image.Resampling.BICUBIC)
        self.mean, self.std = (torch.tensor(prepared[name])[:, None, None] for name in ("mean", "std"))
        self.temperature = float(model.logit_scale.detach().exp())
        if isinstance(tower, VisionTransformer) and tower.attn_pool is None:
            last = tower.transformer.resblocks[-1]
            tower.transformer.resblocks = tower.transformer.resblocks[:-1]
            self.stride, self._places = tower.patch_size[0], partial(_vit, tower, last)
        elif isinstance(tower, ModifiedResNet):
            self.stride, self._places = 32, partial(_resnet, tower)
        elif hasattr(getattr(tower, "trunk", None), "forward_head") and not hasattr(tower.head, "pool"):
            trunk = tower.trunk
            if hasattr(trunk, "blocks"):
                self.any_size, self.stride, self._places = False, own, partial(_timm_vit, tower)
                if getattr(trunk, "attn_pool", None) is None:
                    trunk.blocks[-1].register_forward_pre_hook(_look_at_itself, with_kwargs=True)
            else:
                # a tower of windows (NHWC) takes its own size alone
                self.any_size = getattr(trunk, "output_fmt", "NCHW") == "NCHW"
                self.stride = trunk.feature_info[-1]["reduction"] if self.any_size else own
                self._places = partial(_timm_map, tower)
        else:
            raise VLSegError(f"open_clip: {type(tower).__name__} with a pooling of its own hands out no places")
        self.side = self.side if self.any_size else own
        try:
            self.places([Image.new("RGB", (own, own))])
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise VLSegError(f"open_clip: this tower hands out no places ({reason}); name another model") from error

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) to which an image is resized: multiples of the stride, of about the area of the square."""
        if not self.any_size:
            return self.side, self.side
        scale = self.side / (image.height * image.width) ** 0.5 / self.stride
        return max(1, round(image.height * scale)) * self.stride, max(1, round(image.width * scale)) * self.stride

    @torch.inference_mode()
    def places(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """``(B, D, h, w)`` float32, unit vectors in D, of B RGB images of one `input_size`."""
        height, width = self.input_size(images[0])
        made = [np.array(image.resize((width, height), self.resample)) for image in images]
        pixels = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - self.mean) / self.std
        weight = next(self.model.visual.parameters())
        found: torch.Tensor = self._places(pixels.to(weight.device, weight.dtype))
        return F.normalize(found.float(), dim=1)

    @torch.inference_mode()
    def words(self, texts: Sequence[str]) -> torch.Tensor:
        """``(N, D)`` float32 unit vectors of N texts. One longer than the model reads is cut at its end."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # that of transformers, where the model has one
        typed = [plain_words(text, inner) if inner is not None else _without_control(text) for text in texts]
        tokens = self.tokenizer(typed).to(next(self.model.parameters()).device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)


def load_open_clip(place: str, checkpoint: str | None, device: str | None, dtype: str | None) -> OpenClipTowers:
    """Of a folder as open_clip and the Hub write them, or of an architecture that open_clip knows and its checkpoint.

    checkpoint: a file, or a tag under which open_clip fetches it; None for a folder. Raises VLSegError, in one line,
    for what cannot be had or loaded.
    """
    import open_clip

    if dtype in QUANTISED:
        raise VLSegError(f"--dtype {dtype}: not for open_clip; use float32, bfloat16 or float16")
    where = pick_device(device)
    number = pick_dtype(dtype, where)
    name = place
    if Path(place).is_dir():
        if checkpoint:
            raise VLSegError(f"open_clip: the folder {place} has a checkpoint already; leave out {checkpoint}")
        name = f"local-dir:{place}"
    elif place not in open_clip.list_models():
        close = difflib.get_close_matches(place, open_clip.list_models(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise VLSegError(f"open_clip: no folder and no architecture {place}{hint}")
    elif not checkpoint:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(place)) or "none"
        raise VLSegError(f"open_clip: {place} needs a checkpoint: {place},FILE or a tag (open_clip has: {tags})")
    try:
        model = open_clip.create_model(name, pretrained=checkpoint, require_pretrained=True, pretrained_image=False)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # files, configurations and the network can be wrong in many ways
        raise VLSegError(f"open_clip: {place} cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    return OpenClipTowers(model.to(where, number), tokenizer)


def _vit(tower: Any, last: Any, pixels: torch.Tensor) -> torch.Tensor:
    """open_clip's own ViT."""
    (states,) = vit_features(tower, pixels, [len(tower.transformer.resblocks) - 1])
    tokens = last(states.flatten(2).transpose(1, 2), attn_mask=_itself(states.shape[2] * states.shape[3], states))
    return (tower.ln_post(tokens) @ tower.proj).transpose(1, 2).unflatten(2, states.shape[2:])


def _resnet(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """OpenAI's ResNet: the values of its attention pooling, with nothing averaged."""
    states = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pixels)))))
    found: torch.Tensor = tower.attnpool.c_proj(tower.attnpool.v_proj(states.permute(0, 2, 3, 1)))
    return found.permute(0, 3, 1, 2)


def _timm_vit(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """A ViT of timm, at its own size. Its pooling is given one patch at a time: attention over one is its value."""
    trunk = tower.trunk
    states = trunk.forward_features(pixels)
    prefix, patches = states[:, : trunk.num_prefix_tokens], states[:, trunk.num_prefix_tokens :]
    cells = patches.flatten(0, 1)[:, None]
    dropped = getattr(trunk, "attn_pool", None) is not None or trunk.global_pool != "token"
    if dropped and not getattr(trunk, "pool_include_prefix", False):  # the pooling takes the prefix off
        cells = torch.cat([prefix.repeat_interleave(patches.shape[1], 0), cells], 1)
    found = tower.head(trunk.forward_head(cells)).unflatten(0, patches.shape[:2])
    return found.transpose(1, 2).unflatten(2, tuple(trunk.patch_embed.grid_size))


def _timm_map(tower: Any, pixels: torch.Tensor) -> torch.Tensor:
    """A convolutional net of timm (ConvNeXt): its head at each place, where its pooling has nothing to average."""
    states = tower.trunk.forward_features(pixels)
    last = getattr(tower.trunk, "output_fmt", "NCHW") == "NHWC"
    states = states if last else states.permute(0, 2, 3, 1)
    cells = states.flatten(0, 2)
    cells = cells[:, None, None] if last else cells[:, :, None, None]
    found: torch.Tensor = tower.head(tower.trunk.forward_head(cells)).unflatten(0, states.shape[:3])
    return found.permute(0, 3, 1, 2)


def _itself(count: int, like: torch.Tensor) -> torch.Tensor:
    """``(count, count)`` added to the scores of an attention: each place sees itself alone."""
    mask = torch.full((count, count), float("-inf"), device=like.device, dtype=like.dtype)
    return mask.fill_diagonal_(0.0)


def _look_at_itself(
    block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """For the last block of a ViT of timm."""
    del block
    return args, {**kwargs, "attn_mask": _itself(args[0].shape[1], args[0])}


def _without_control(text: str) -> str:
    """open_clip's own tokenizer reads its control tokens in typed text, in any case of letters: take them apart."""
    for token in CONTROL:
        place = text.lower().find(token)
        while place >= 0:
            text = f"{text[: place + 1]} {text[place + 1 :]}"
            place = text.lower().find(token)
    return text
