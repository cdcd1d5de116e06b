"""`NativeSystem`: vlseg's own model behind `System`. The image is encoded once, its K queries are read in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlseg.models.features import features_bytes, join_features, split_features
from vlseg.models.hub import PROTOCOL
from vlseg.models.modeling import ImageFeatures, VLSegModel
from vlseg.models.packing import pack_queries
from vlseg.models.precision import QUANTISED
from vlseg.models.processing import VLSegProcessor, binary_mask, presence_scores, slot_masks
from vlseg.systems.base import EncodedImage, PartialAnswer, SoftAnswer, check_queries, check_thresholds
from vlseg.systems.devices import pick_device, pick_dtype
from vlseg.systems.native_paths import boxed_by_mask, stream_answers, write_answers
from vlseg.systems.passes import Chunk, plan
from vlseg.systems.quiet import quiet_loading
from vlseg.types import Answer, Mode, VLSegError

IMAGES_A_PASS = 8
BOXED = "paths begin with the mask's box, or where the mask is empty with one of the model's own"


class NativeSystem:
    """A `VLSegModel` and its processor as a `System`. One query gives one mask, held as one segment; for a model with
    `head.slots` > 1, as one segment an object. modes: "path", too, for a model that has path tokens."""

    def __init__(self, model: VLSegModel, processor: VLSegProcessor, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name
        self.modes: tuple[str, ...] = ("mask", "path") if model.config.paths else ("mask",)
        self.protocol = f"{PROTOCOL}; {BOXED}" if boxed_by_mask(model.config) else PROTOCOL

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str | None = None, dtype: str | None = None, name: str | None = None
    ) -> NativeSystem:
        """Load a checkpoint folder; no network. Weights come as float32 on CPUs whatever they are saved as.

        device: "cpu", "cuda", "cuda:1", ...; default: the first GPU, else the CPU. dtype: "float32", "bfloat16" or
        "float16"; default float32 on the CPU, bfloat16 on a GPU; "int8" or "nf4": that, with the language model's
        layers in 8 or 4 bits. Raises VLSegError, in one line, for a folder that is no whole checkpoint, a device that
        is not there, an unknown dtype.
        """
        place = pick_device(device)
        options: dict[str, Any] = {"dtype": pick_dtype(None if dtype in QUANTISED else dtype, place)}
        if dtype in QUANTISED:
            options = {"dtype": dtype, "compute_dtype": options["dtype"], "device_map": {"": str(place)}}
        model = _load(Path(folder), options)
        torch.nn.Module.to(model, place)
        return cls(model, VLSegProcessor.from_pretrained(folder), name or str(folder))

    @property
    def presence_threshold(self) -> float:
        """The checkpoint's own threshold, in 0..1."""
        return float(self.model.config.presence["threshold"])

    def segment(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
    ) -> list[Answer]:
        """See `System.segment`. A query of too many tokens is "failed" and the others go on."""
        batch = self.segment_batch(
            [image], [queries], presence_threshold=presence_threshold, mask_threshold=mask_threshold, mode=mode
        )
        return batch[0]

    def segment_batch(
        self,
        images: Sequence[Image.Image | EncodedImage],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
        mode: Mode = "mask",
    ) -> list[list[Answer]]:
        """See `System.segment_batch`. Images whose input sizes agree go through the model together.

        An image may also be what `encode_batch` gave for it: its encoding is used again. In path mode the likeliest
        path is written, and the mask threshold means nothing.
        """
        if len(images) != len(queries):
            raise VLSegError(f"{len(images)} images with {len(queries)} lists of queries: give one list an image")
        check_thresholds(presence_threshold, mask_threshold)
        texts = [check_queries(row) for row in queries]
        threshold = self.presence_threshold if presence_threshold is None else presence_threshold
        answers: list[list[Answer]] = [[] for _ in texts]
        for group in self._groups(images):
            own, asked = [images[i] for i in group], [texts[i] for i in group]
            if mode == "path":
                given = write_answers(self, own, asked, threshold)
            else:
                given = self._answer(own, asked, threshold, mask_threshold)
            for i, row in zip(group, given, strict=True):
                answers[i] = row
        return answers

    def stream(
        self,
        image: Image.Image | EncodedImage,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int | None = None,
    ) -> Iterator[PartialAnswer]:
        """See `PathSystem.stream`."""
        check_thresholds(presence_threshold, 0.5)
        threshold = self.presence_threshold if presence_threshold is None else presence_threshold
        parts = stream_answers(
            self,
            [image],
            [check_queries(queries)],
            threshold,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
        )
        return (part for _, part in parts)

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`. Images whose input sizes agree are encoded together."""
        encoded: dict[int, EncodedImage] = {}
        for group in self._groups(images):
            features = split_features(self._encode([images[i] for i in group]), len(group))
            for i, own in zip(group, features, strict=True):
                encoded[i] = EncodedImage(_size(images[i]), own, features_bytes(own))
        return [encoded[i] for i in range(len(images))]

    def _groups(self, images: Sequence[Image.Image | EncodedImage]) -> Iterator[list[int]]:
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault(self.processor.input_size(*_size(image)), []).append(i)
        for members in sizes.values():
            for start in range(0, len(members), IMAGES_A_PASS):
                yield members[start : start + IMAGES_A_PASS]

    @torch.inference_mode()
    def soft_answers(self, image: Image.Image | EncodedImage, queries: Sequence[str]) -> list[SoftAnswer]:
        """See `SoftSystem.soft_answers`. Mask logits are kept on the CPU, as small as the model gives them."""
        found = {k: soft for _, k, soft in self._soft([image], [check_queries(queries)], "cpu")}
        return [found[k] for k in sorted(found)]

    @torch.inference_mode()
    def _answer(
        self, images: list[Image.Image | EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        """Answers of images of one input size."""
        answers: list[dict[int, Answer]] = [{} for _ in texts]
        # One mask at a time, and only those asked for: K masks of a large photograph do not fit into memory.
        for b, k, soft in self._soft(images, texts):
            answers[b][k] = soft.at(_size(images[b]), threshold, mask_threshold)
        return [[row[k] for k in sorted(row)] for row in answers]

    def _soft(
        self, images: list[Image.Image | EncodedImage], texts: list[list[str]], place: str | None = None
    ) -> Iterator[tuple[int, int, SoftAnswer]]:
        """(image, query, answer before thresholds) of images of one input size, pass by pass.

        place: device that keeps the mask logits; default: where the model is.
        """
        unreadable, rounds = plan(texts, self.processor)
        for b, k, reason in unreadable:
            yield b, k, SoftAnswer(texts[b][k], None, reason=reason)
        features = self.features(images) if rounds else None
        for chunks in rounds:
            output = self.model(image_features=features, **self.tensors(chunks))
            scores = presence_scores(output.evidence, self.model.config.presence).cpu()
            logits = output.mask_logits.to(place or output.mask_logits.device)
            slots = output.slots and output.slots.to(logits.device)
            for b, chunk in enumerate(chunks):
                for slot, (k, _) in enumerate(chunk):
                    own = logits[b, slot]
                    parts = partial(slot_masks, own, slots.logits[b, slot], slots.scores[b, slot]) if slots else None
                    yield b, k, SoftAnswer(texts[b][k], float(scores[b, slot]), partial(binary_mask, own), parts=parts)

    def tensors(self, chunks: list[Chunk]) -> dict[str, torch.Tensor]:
        """The packed queries of one pass, where the model is."""
        packed = pack_queries([[ids for _, ids in chunk] for chunk in chunks], self.processor.pad_id)
        return {key: value.to(self.model.device) for key, value in packed.tensors().items()}

    def features(self, images: list[Image.Image | EncodedImage]) -> ImageFeatures:
        """What the model makes of images of one input size, as far as it is not at hand."""
        pictures = [image for image in images if not isinstance(image, EncodedImage)]
        if len(pictures) == len(images):
            return self._encode(pictures)
        fresh = iter(self.encode_batch(pictures))
        encoded = [image if isinstance(image, EncodedImage) else next(fresh) for image in images]
        return join_features([image.features for image in encoded])

    def _encode(self, images: list[Image.Image]) -> ImageFeatures:
        size = self.processor.input_size(images[0].height, images[0].width)
        pixels = torch.cat([self.processor.pixel_values(image, size) for image in images])
        return self.model.encode_image(pixels.to(self.model.device, self.model.dtype))


def _size(image: Image.Image | EncodedImage) -> tuple[int, int]:
    """(height, width) in pixels."""
    return image.size if isinstance(image, EncodedImage) else (image.height, image.width)


def _load(folder: Path, how: dict[str, Any]) -> VLSegModel:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError as error:
        raise VLSegError(f"{folder}: no config.json there; name the folder of a checkpoint") from error
    except (OSError, ValueError, AttributeError) as error:
        raise VLSegError(f"{folder}: config.json cannot be read ({error}); the checkpoint is broken") from error
    if kind != "vlseg":
        raise VLSegError(f"{folder}: a checkpoint of model type {kind!r}, not of vlseg")
    options = {**how, "local_files_only": True, "output_loading_info": True}
    with quiet_loading():
        try:
            loaded: Any = VLSegModel.from_pretrained(folder, **options)
        except VLSegError:
            raise
        except Exception as error:
            # safetensors, json, torch and transformers each have their own way to say that a file is broken
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise VLSegError(f"{folder}: the checkpoint cannot be loaded ({reason})") from error
    model, info = loaded  # a pair, because of output_loading_info
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise VLSegError(f"{folder}: the checkpoint lacks {len(lacking)} of its weights ({lacking[0]}, ...)")
    return model
