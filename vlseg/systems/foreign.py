"""What the systems of others share: one way to load, images encoded once, queries in batches, answers of many segments.

A subclass says how its images are encoded (`_encode`) and how texts are asked of encoded images (`_answer`); the rest
of `System` and `Encoder` is here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlseg.models.precision import QUANTISED, quantisation, settle
from vlseg.systems.base import EncodedImage, check_queries, check_thresholds, failed, segment_of
from vlseg.systems.devices import pick_device, pick_dtype
from vlseg.types import Answer, VLSegError

IMAGES_A_PASS = 8
TEXTS_KEPT = 4096

# The decoder layers of a language model are quantised and nothing else; as in vlseg.models.precision.
_KEPT = r"(?!model\.language_model\.layers\.).*"


class ForeignSystem:
    """The common part of a `System` of others.

    default_threshold: presence threshold where none is given; `protocol` says what the score means.
    """

    protocol: str = ""
    modes: tuple[str, ...] = ("mask",)
    default_threshold: float = 0.5

    def __init__(self, name: str):
        self.name = name

    @property
    def presence_threshold(self) -> float:
        """See `System.presence_threshold`."""
        return self.default_threshold

    def segment(
        self,
        image: Image.Image,
        queries: Sequence[str],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[Answer]:
        """See `System.segment`."""
        batch = self.segment_batch(
            [image], [queries], presence_threshold=presence_threshold, mask_threshold=mask_threshold
        )
        return batch[0]

    @torch.inference_mode()
    def segment_batch(
        self,
        images: Sequence[Image.Image | EncodedImage],
        queries: Sequence[Sequence[str]],
        *,
        presence_threshold: float | None = None,
        mask_threshold: float = 0.5,
    ) -> list[list[Answer]]:
        """See `System.segment_batch`; an image may also be what `encode_batch` gave for it."""
        if len(images) != len(queries):
            raise VLSegError(f"{len(images)} images with {len(queries)} lists of queries: give one list an image")
        check_thresholds(presence_threshold, mask_threshold)
        texts = [check_queries(row) for row in queries]
        threshold = self.presence_threshold if presence_threshold is None else presence_threshold
        answers: list[list[Answer]] = []
        for start in range(0, len(images), IMAGES_A_PASS):
            part = slice(start, start + IMAGES_A_PASS)
            answers += self._answer(self._encoded(images[part]), texts[part], threshold, mask_threshold)
        return answers

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`."""
        encoded: list[EncodedImage] = []
        for start in range(0, len(images), IMAGES_A_PASS):
            part = list(images[start : start + IMAGES_A_PASS])
            for image, features in zip(part, self._encode(part), strict=True):
                encoded.append(EncodedImage((image.height, image.width), features, tensor_bytes(features)))
        return encoded

    def _encoded(self, images: Sequence[Image.Image | EncodedImage]) -> list[EncodedImage]:
        fresh = iter(self.encode_batch([image for image in images if not isinstance(image, EncodedImage)]))
        return [image if isinstance(image, EncodedImage) else next(fresh) for image in images]

    def _encode(self, images: list[Image.Image]) -> list[Any]:
        """What all queries share, one tree of tensors (lists, tuples, dicts) an image."""
        raise NotImplementedError

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        """The answers, a row an image."""
        raise NotImplementedError


class TextCache:
    """Features of texts, the least recently used dropped first."""

    def __init__(self, compute: Callable[[list[str]], Sequence[Any]], limit: int = TEXTS_KEPT):
        self._compute, self._limit = compute, limit
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> list[Any]:
        """One value a text, in order; those not kept yet are computed together, each once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        fresh = dict(zip(new, self._compute(new), strict=True)) if new else {}
        values = [fresh[text] if text in fresh else self._kept[text] for text in texts]
        for text, value in zip(texts, values, strict=True):
            self._kept[text] = value
            self._kept.move_to_end(text)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return values

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def load_pretrained(
    model_class: Any, folder: str | None, device: str | None, dtype: str | None, *, quantised: bool = False
) -> Any:
    """A transformers model of a local folder, in eval mode on its device; no network.

    quantised: the class allows "int8" and "nf4" (a language model at `model.language_model`). Raises VLSegError, in one
    line, for a broken or incomplete checkpoint, a device that is not there, and a dtype that the class does not allow.
    """
    place = pick_device(device)
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True, "use_safetensors": True}
    if dtype in QUANTISED:
        if not quantised:
            raise VLSegError(f"--dtype {dtype}: not for {model_class.__name__}; use float32, bfloat16 or float16")
        options["dtype"] = pick_dtype(None, place)
        config = quantisation(str(dtype), options["dtype"])
        name = "modules_to_not_convert" if dtype == "int8" else "llm_int8_skip_modules"
        setattr(config, name, [_KEPT])
        options |= {"quantization_config": config, "device_map": {"": str(place)}}
    else:
        options["dtype"] = pick_dtype(dtype, place)
    try:
        model, info = model_class.from_pretrained(folder, **options)
    except Exception as error:
        # safetensors, json, torch and transformers each have their own way to say that a file is broken
        raise VLSegError(f"{folder}: {model_class.__name__} cannot be loaded ({_brief(error)})") from error
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise VLSegError(f"{folder}: the checkpoint lacks {len(lacking)} of its weights ({lacking[0]}, ...)")
    settle(model)
    torch.nn.Module.to(model, place)
    return model.eval()


def load_processor(processor_class: Any, folder: str | None, **options: Any) -> Any:
    """A transformers processor of a local folder; no network. Raises VLSegError where a file is missing or broken."""
    try:
        return processor_class.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:
        raise VLSegError(f"{folder}: {processor_class.__name__} cannot be loaded ({_brief(error)})") from error


def several(
    text: str,
    score: float,
    threshold: float,
    size: tuple[int, int],
    masks: Callable[[], Iterable[tuple[np.ndarray, float]]],
) -> Answer:
    """As `base.decide`, for an answer of several segments. masks: ``(H, W)`` bool with a score in 0..1 each."""
    if not np.isfinite(score):
        return failed(text, "the model gives no number for this query", size)
    if score < threshold:
        return Answer(text, "absent", score, size)
    segments = [segment for mask, own in masks() if (segment := segment_of(mask, own)) is not None]
    if not segments:
        return Answer(text, "failed", score, size, f"score {score:.2f} says present, but the mask holds no pixel")
    return Answer(text, "found", score, size, segments=segments)


def box_mask(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` bool: the pixels whose centres lie in the box (x0, y0, x1, y1)."""
    rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None] + 0.5
    return (columns >= box[0]) & (columns < box[2]) & (rows >= box[1]) & (rows < box[3])


def chunks(texts: Sequence[Sequence[str]], most: int) -> Iterator[list[tuple[int, int]]]:
    """(image, query) of all texts in order, at most so many at a time."""
    pairs = [(b, k) for b, row in enumerate(texts) for k in range(len(row))]
    for start in range(0, len(pairs), most):
        yield pairs[start : start + most]


def rows_of(tensors: Sequence[torch.Tensor], owners: Sequence[int]) -> torch.Tensor:
    """``(len(owners), ...)`` of tensors ``(1, ...)``, one row an owner; rows of a single owner share its memory."""
    if len(set(owners)) == 1:
        only = tensors[owners[0]]
        return only.expand(len(owners), *only.shape[1:])
    return torch.cat([tensors[owner] for owner in owners])


def logit(probability: float) -> float:
    """Of a mask threshold between 0 and 1."""
    return float(np.log(probability / (1 - probability)))


def tensor_bytes(tree: Any) -> int:
    """The memory of the tensors in lists, tuples and dicts."""
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, dict):
        return sum(tensor_bytes(value) for value in tree.values())
    if isinstance(tree, list | tuple):
        return sum(tensor_bytes(value) for value in tree)
    return 0


def plain_words(text: str, tokenizer: Any) -> str:
    """The text with control tokens of the tokenizer taken apart: typed text is never a control token."""
    for token in tokenizer.get_added_vocab():
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
