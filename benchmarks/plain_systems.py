"""What people do today without vlseg: the library's own processor, class and post-processing, one call a text.

`benchmarks/systems.py` times these loops against the systems of vlseg, and `tests/systems` compares the masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from vlseg.masks.raster import raster
from vlseg.systems.florence2 import TASK
from vlseg.systems.open_clip_maps import BACKGROUND, TEMPLATES
from vlseg.systems.qwen_vl_sam2 import PROMPT

Scored = list[tuple[np.ndarray, float]]


def _load(model_class: str, processor_class: str, folder: Path) -> tuple[Any, Any]:
    model = getattr(transformers, model_class).from_pretrained(folder, local_files_only=True).eval()
    return model, getattr(transformers, processor_class).from_pretrained(folder, local_files_only=True)


class Plain:
    """One call a text. masks: ``(H, W)`` bool and a score each, the best first."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """The answer to one text."""
        raise NotImplementedError


class PlainClipSeg(Plain):
    """The loop of the transformers documentation, one text at a time."""

    def __init__(self, folders: Sequence[Path]):
        self.model, self.processor = _load("CLIPSegForImageSegmentation", "CLIPSegProcessor", folders[0])

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask."""
        inputs = self.processor(text=[text], images=[image], padding=True, return_tensors="pt")
        logits = self.model(**inputs).logits
        logits = logits.reshape(1, 1, *logits.shape[-2:])
        large = F.interpolate(logits, image.size[::-1], mode="bilinear", align_corners=False)[0, 0]
        return [((large.sigmoid() > 0.5).numpy(), float(logits.sigmoid().max()))]


class PlainSam2:
    """SAM 2 with boxes."""

    def __init__(self, folder: Path):
        self.model, self.processor = _load("Sam2Model", "Sam2Processor", folder)

    def __call__(self, image: Image.Image, boxes: list[list[float]]) -> list[np.ndarray]:
        """One mask a box."""
        inputs = self.processor(images=image, input_boxes=[boxes], return_tensors="pt")
        output = self.model(**inputs, multimask_output=False)
        masks = self.processor.post_process_masks(output.pred_masks, inputs["original_sizes"])[0]
        return list(masks[:, 0].numpy())


class PlainGrounded(Plain):
    """Grounding DINO, its post-processing, SAM 2, its post-processing."""

    def __init__(self, folders: Sequence[Path]):
        kind = json.loads((folders[0] / "config.json").read_text())["model_type"]
        name = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}[kind]
        self.model, self.processor = _load(f"{name}ForObjectDetection", "GroundingDinoProcessor", folders[0])
        self.sam2 = PlainSam2(folders[1])

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask a box."""
        inputs = self.processor(images=image, text=[[text]], return_tensors="pt")
        found = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), inputs["input_ids"], threshold=threshold, target_sizes=[image.size[::-1]]
        )[0]
        if not len(found["boxes"]):
            return []
        return _best_first(self.sam2(image, found["boxes"].tolist()), found["scores"].tolist())


class PlainSam3(Plain):
    """SAM 3 and its post-processing."""

    def __init__(self, folders: Sequence[Path]):
        self.model, self.processor = _load("Sam3Model", "Sam3Processor", folders[0])

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask an instance."""
        inputs = self.processor(images=image, text=text, return_tensors="pt")
        found = self.processor.image_processor.post_process_instance_segmentation(
            self.model(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}),
            threshold=threshold,
            target_sizes=[image.size[::-1]],
        )[0]
        return _best_first(list(found["masks"].bool().numpy()), found["scores"].tolist())


class PlainFlorence2(Plain):
    """Florence-2, its reading of what it wrote, polygons by pixel centres."""

    def __init__(self, folders: Sequence[Path]):
        self.model, self.processor = _load("Florence2ForConditionalGeneration", "Florence2Processor", folders[0])

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask an instance."""
        inputs = self.processor(text=f"{TASK}{text}", images=image, return_tensors="pt")
        ids = self.model.generate(**inputs, max_new_tokens=1024, do_sample=False, num_beams=1)
        said = self.processor.batch_decode(ids, skip_special_tokens=False)[0]
        read = self.processor.post_process_generation(said, task=TASK, image_size=image.size)[TASK]
        masks = []
        for polygons in read["polygons"]:
            parts = [raster([np.array(p, dtype=float).reshape(-1, 2)], image.size[::-1]) for p in polygons]
            masks.append(np.any(parts, axis=0))
        return [(mask, 1.0) for mask in masks]


class PlainQwen(Plain):
    """A chat, JSON, SAM 2."""

    def __init__(self, folders: Sequence[Path]):
        self.kind = json.loads((folders[0] / "config.json").read_text())["model_type"]
        name = {"qwen3_vl": "Qwen3VL", "qwen2_5_vl": "Qwen2_5_VL"}[self.kind]
        self.model, self.processor = _load(f"{name}ForConditionalGeneration", f"{name}Processor", folders[0])
        self.sam2 = PlainSam2(folders[1])

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask a box."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": PROMPT.format(words=text)}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = self.model.generate(**inputs, max_new_tokens=512, do_sample=False)
        said = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        scale = np.array([*image.size, *image.size]) / 1000
        if self.kind == "qwen2_5_vl":
            _, rows, columns = inputs["image_grid_thw"][0].tolist()
            patch = self.processor.image_processor.patch_size
            scale = np.array([image.width / columns / patch, image.height / rows / patch] * 2)
        boxes = [(np.array(one["bbox_2d"]) * scale).clip(0, [*image.size, *image.size]) for one in json.loads(said)]
        return [(mask, 1.0) for mask in self.sam2(image, [box.tolist() for box in boxes])]


class PlainPaliGemma(Plain):
    """PaliGemma, a reading of its tokens, the mask decoder written out with functions, pixel by pixel."""

    def __init__(self, folders: Sequence[Path]):
        self.model, self.processor = _load("PaliGemmaForConditionalGeneration", "PaliGemmaProcessor", folders[0])
        with np.load(folders[0] / "vae-oid.npz") as file:
            self.weights = {name: torch.from_numpy(file[name]) for name in file.files}

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask an object."""
        inputs = self.processor(text=f"<image>segment {text}", images=image, return_tensors="pt")
        inputs.pop("labels", None)
        ids = self.model.generate(**inputs, max_new_tokens=256, do_sample=False)
        said = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)[0]
        numbers = [int(n) for n in re.findall(r"<(?:loc|seg)(\d+)>", said)]
        masks = []
        for start in range(0, len(numbers), 20):
            y0, x0, y1, x1 = (n / 1024 for n in numbers[start : start + 4])
            box = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
            masks.append(self._placed(numbers[start + 4 : start + 20], box, image.size))
        return [(mask, 1.0) for mask in masks]

    def _placed(self, codes: list[int], box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
        small = self._decode(codes).numpy()
        full = np.zeros((size[1], size[0]), dtype=bool)
        for row in range(size[1]):
            for column in range(size[0]):
                x, y = column + 0.5, row + 0.5
                if box[0] <= x < box[2] and box[1] <= y < box[3]:
                    u = min(max((x - box[0]) / (box[2] - box[0]) * 64 - 0.5, 0), 63)
                    v = min(max((y - box[1]) / (box[3] - box[1]) * 64 - 0.5, 0), 63)
                    i, j = min(int(v), 62), min(int(u), 62)
                    a, b = v - i, u - j
                    value = (1 - a) * ((1 - b) * small[i, j] + b * small[i, j + 1])
                    full[row, column] = value + a * ((1 - b) * small[i + 1, j] + b * small[i + 1, j + 1]) > 0
        return full

    def _decode(self, codes: list[int]) -> torch.Tensor:
        w = self.weights
        x = w["_vq_vae._embedding"][codes].T.reshape(1, -1, 4, 4)
        x = F.relu(F.conv2d(x, w["decoder.0.weight"], w["decoder.0.bias"]))
        for block in (2, 3):
            y = x
            for layer in (0, 2, 4):
                name = f"decoder.{block}.net.{layer}"
                y = F.conv2d(y, w[f"{name}.weight"], w[f"{name}.bias"], padding="same")
                y = F.relu(y) if layer < 4 else y
            x = x + y
        for layer in (4, 6, 8, 10):
            name = f"decoder.{layer}"
            x = F.relu(F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2, padding=1))
        return F.conv2d(x, w["decoder.12.weight"], w["decoder.12.bias"])[0, 0]


class PlainUniversal(Plain):
    """EoMT, Mask2Former or OneFormer and their panoptic post-processing; the text is the name of a class."""

    def __init__(self, folders: Sequence[Path]):
        self.kind = json.loads((folders[0] / "config.json").read_text())["model_type"]
        name, processor = {
            "eomt": ("EomtForUniversalSegmentation", "EomtImageProcessor"),
            "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor"),
            "oneformer": ("OneFormerForUniversalSegmentation", "OneFormerProcessor"),
        }[self.kind]
        self.model, self.processor = _load(name, processor, folders[0])

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask an object of the class."""
        tasks = {"task_inputs": ["panoptic"]} if self.kind == "oneformer" else {}
        inputs = self.processor(images=[image], return_tensors="pt", **tasks)
        offsets = inputs.pop("patch_offsets", None)
        inputs.pop("text_inputs", None)
        output = self.model(**inputs)
        output.patch_offsets = offsets
        fused = {} if self.kind == "eomt" else {"label_ids_to_fuse": set()}
        found = self.processor.post_process_panoptic_segmentation(
            output, threshold=threshold, target_sizes=[image.size[::-1]], overlap_mask_area_threshold=OVERLAP, **fused
        )[0]
        label = {name: number for number, name in self.model.config.id2label.items()}[text]
        mine = [one for one in found["segments_info"] if one["label_id"] == label]
        return _best_first(
            [(found["segmentation"] == one["id"]).numpy() for one in mine], [one["score"] for one in mine]
        )


class PlainOpenClip(Plain):
    """MaskCLIP by hand on open_clip's ViT: what enters the last block is caught, its values alone go on."""

    def __init__(self, folders: Sequence[Path]):
        import open_clip

        name = f"local-dir:{folders[0]}"
        self.model = open_clip.create_model(name, require_pretrained=True).eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    def __call__(self, image: Image.Image, text: str, threshold: float) -> Scored:
        """One mask."""
        small = self.logits(image, text)
        large = F.interpolate(small[None, None], image.size[::-1], mode="bilinear", align_corners=False)[0, 0]
        return [((large > 0).numpy(), float(small.max().sigmoid()))]

    def logits(self, image: Image.Image, text: str) -> torch.Tensor:
        """``(h, w)``: the query in the softmax over it and the background words."""
        places = self.places(image)
        bare = re.sub(r"^((the|a|an) )+", "", text)
        query = self.words([bare])[0]
        background = self.words([word for word in BACKGROUND if word not in bare.split()])
        heat = self.model.logit_scale.exp()
        return heat * places @ query - (heat * places @ background.T).logsumexp(-1)

    def places(self, image: Image.Image) -> torch.Tensor:
        """``(h, w, D)`` unit vectors, at twice the model's own side."""
        tower, block = self.model.visual, self.model.visual.transformer.resblocks[-1]
        patch, ways = tower.patch_size[0], tower.preprocess_cfg
        factor = 2 * tower.image_size[0] / (image.width * image.height) ** 0.5 / patch
        width, height = (round(edge * factor) * patch for edge in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        pixels = (pixels - np.array(ways["mean"], np.float32)) / np.array(ways["std"], np.float32)
        grid, table = (height // patch, width // patch), tower.positional_embedding
        square = table[1:].T.reshape(1, -1, *tower.grid_size)
        wide = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
        caught: list[torch.Tensor] = []
        hook = block.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        tower.positional_embedding = torch.nn.Parameter(torch.cat([table[:1], wide[0].flatten(1).T]))
        try:
            self.model.encode_image(torch.from_numpy(pixels.transpose(2, 0, 1))[None].float())
        finally:
            hook.remove()
            tower.positional_embedding = table
        x = caught[0][0, 1:]
        weight, bias = (tensor.chunk(3)[2] for tensor in (block.attn.in_proj_weight, block.attn.in_proj_bias))
        x = x + block.attn.out_proj(F.linear(block.ln_1(x), weight, bias))
        x = x + block.mlp(block.ln_2(x))
        return F.normalize(tower.ln_post(x) @ tower.proj, dim=-1).reshape(*grid, -1)

    def words(self, names: Sequence[str]) -> torch.Tensor:
        """``(N, D)``: the mean over the templates."""
        made = []
        for name in names:
            tokens = self.tokenizer([template.format(name) for template in TEMPLATES])
            made.append(F.normalize(self.model.encode_text(tokens), dim=-1).mean(0))
        return F.normalize(torch.stack(made), dim=-1)


def _best_first(masks: list[np.ndarray], scores: list[float]) -> Scored:
    return sorted(zip(masks, scores, strict=True), key=lambda pair: -pair[1])


PLAIN: dict[str, type[Plain]] = {
    "clipseg": PlainClipSeg,
    "grounded-sam2": PlainGrounded,
    "mm-grounded-sam2": PlainGrounded,
    "sam3": PlainSam3,
    "florence2": PlainFlorence2,
    "qwen3-vl+sam2": PlainQwen,
    "qwen2.5-vl+sam2": PlainQwen,
    "paligemma": PlainPaliGemma,
    "open_clip": PlainOpenClip,
    "eomt": PlainUniversal,
    "mask2former": PlainUniversal,
    "oneformer": PlainUniversal,
}
# None found below it, so that random checkpoints answer
LOWERED = {
    "grounded-sam2": 0.0,
    "mm-grounded-sam2": 0.0,
    "sam3": 0.0,
    "eomt": 0.05,
    "mask2former": 0.05,
    "oneformer": 0.05,
}
OVERLAP = 0.01  # share of its pixels that a mask of a closed vocabulary must keep: those of random weights overlap
