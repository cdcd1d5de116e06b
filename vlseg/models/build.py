"""A native model from any checkpoint of a supported family of vision-language models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlseg.models.configuration import REJ_TOKEN, SEG_TOKEN, VLSegConfig
from vlseg.models.families import Family, family_of
from vlseg.models.modeling import VLSegModel
from vlseg.models.pixel_encoder_named import fill, named
from vlseg.models.processing import VLSegProcessor
from vlseg.types import VLSegError

AREA = 512 * 512  # pixels of an input, where neither the family nor the user wants more

# The vision tower's own features: trained, and no second encoder to fetch.
PIXEL_ENCODER: dict[str, Any] = {"kind": "vlm"}

_QUERY = "\u241fquery\u241f"  # stands for the user's words while a chat template is taken apart


def from_vlm(
    source: str | Path,
    *,
    pixel_encoder: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    instruction: str | None = None,
    image: dict[str, Any] | None = None,
    max_tokens: int = 64,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    **loading: Any,
) -> tuple[VLSegModel, VLSegProcessor]:
    """A `VLSegModel` on a pretrained vision-language model, and its processor.

    The language model and its vision tower keep their weights, and so does a pixel encoder that names some; all else
    starts from random ones under torch's seed, so the model answers sensibly only after training.

    Args:
        source: a folder, or "org/name" on the Hub, of a checkpoint of a family in `vlseg.models.families`.
        pixel_encoder: as in `VLSegConfig`, or by name (see `models/pixel_encoder_named.py`); default: the vision
            tower's own features.
        head: as in `VLSegConfig`; default: `VLSegConfig.MASK_HEAD`.
        instruction: what all queries of an image share; it stands once, between the image and the queries. Default: the
            family's own.
        image: entries of `VLSegConfig.image` to set, such as `{"area": 768 * 768}` or `{"split": True}`. Mean and std
            are the checkpoint's own.
        max_tokens: the longest query.
        dtype: of the weights.
        loading: further options of `from_pretrained`, such as `attn_implementation` or `device_map`.

    Raises VLSegError, in one line, for a family without an adapter and a checkpoint that cannot be had or is not whole.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

    try:
        stated = AutoConfig.from_pretrained(source, revision=revision)
        family_of(VLSegConfig(vlm=stated))
        stock, template = _image_processor(source, revision), _chat_template(source, revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        vlm = AutoModelForImageTextToText.from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, **loading
        )
    except VLSegError:
        raise
    except Exception as error:
        # safetensors, tokenizers, json and transformers each have their own way to say that a file is broken
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise VLSegError(f"{source}: no whole checkpoint of a vision-language model ({reason})") from error
    described, weights = named(pixel_encoder or PIXEL_ENCODER)
    seg, rej = add_control_tokens(vlm, tokenizer)
    given = image or {}
    config = VLSegConfig(
        vlm=vlm.config,
        pixel_encoder=described,
        head=head,
        seg_token_id=seg,
        rej_token_id=rej,
        image={**_mean_std(stock, given, source), **given},
        query={"max_tokens": max_tokens},
        card={"base_model": str(source), **({"base_revision": revision} if revision else {})},
    )
    family = family_of(config)
    if given.get("split") and not family.splits:
        raise VLSegError(f"image.split: {config.vlm.model_type} is not split into tiles here; leave it out")
    area = given.get("area") or family.area(AREA, stock)
    sizes = {"area": area, "multiple": family.multiple() or 32, "max_side": int(4 * area**0.5) // 64 * 64}
    config.image |= sizes | given
    instruction = family.instruction if instruction is None else instruction
    before, after, suffix = prompt(family, tokenizer, instruction, template)
    config.prefix = {"before": _ids(tokenizer, before), "after": _ids(tokenizer, after)}
    config.prefix["tiles"] = family.tile_tokens(tokenizer)
    config.query["suffix"] = suffix
    model = VLSegModel(config, vlm)
    if weights is not None:
        fill(model.pixel_encoder, weights)
    for name, tensor in model.named_parameters():
        if not name.startswith("vlm."):  # buffers keep float32, whatever the weights are
            tensor.data = tensor.data.to(vlm.device, dtype)
    return model.eval(), VLSegProcessor.from_config(tokenizer, config)


def add_control_tokens(vlm: nn.Module, tokenizer: Any) -> tuple[int, int]:
    """Give [SEG] and [REJ] one id each, in tokenizer and model; returns the ids.

    New rows start as the mean of the rows in use, so that neither is likelier and both are as likely as any word.
    """
    from tokenizers import AddedToken

    known = len(tokenizer)
    tokens = [AddedToken(token, special=True, normalized=False) for token in (SEG_TOKEN, REJ_TOKEN)]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    # Never by tokenizing "[SEG]": tokenizers that put a space in front would give two ids.
    seg, rej = (int(tokenizer.convert_tokens_to_ids(token)) for token in (SEG_TOKEN, REJ_TOKEN))
    inputs: Any = vlm.get_input_embeddings()  # type: ignore[operator]
    if len(tokenizer) > inputs.weight.shape[0]:  # many checkpoints have rows to spare
        vlm.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # type: ignore[operator]
    new = [row for row in (seg, rej) if row >= known]
    with torch.no_grad():
        for part in (vlm.get_input_embeddings(), vlm.get_output_embeddings()):  # type: ignore[operator]
            part.weight[new] = part.weight[:known].float().mean(0).to(part.weight.dtype)
    return seg, rej


def prompt(family: Family, tokenizer: Any, instruction: str, template: str | None = None) -> tuple[str, str, str]:
    """(text before the image tokens, between them and a query, behind a query), from the checkpoint's chat template.

    template: that of its processor, where the tokenizer has none or another one, for text alone.
    """
    token = tokenizer.convert_ids_to_tokens(family.vlm.image_token_id)
    content = [{"type": "image"}, {"type": "text", "text": instruction + _QUERY}]
    template, text = template or tokenizer.chat_template, ""
    if template:
        from jinja2 import TemplateError

        options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
        try:
            text = tokenizer.apply_chat_template([{"role": "user", "content": content}], **options)
        except (TemplateError, TypeError):  # it wants plain text
            text = ""
    parts = re.split(f"{re.escape(token)}|{_QUERY}", text)
    if len(parts) != 3:  # no template, or one that knows nothing of pictures
        parts = list(family.prompt(tokenizer, instruction))
    before, after = family.brackets(tokenizer)
    return parts[0] + before, after + parts[1], parts[2]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _image_processor(source: str | Path, revision: str | None) -> dict[str, Any]:
    """The settings of the checkpoint's image processor; read as JSON, for the class itself takes seconds to import."""
    from transformers.image_processing_base import ImageProcessingMixin

    settings, _ = ImageProcessingMixin.get_image_processor_dict(source, revision=revision)
    return settings.get("image_processor", settings)


def _chat_template(source: str | Path, revision: str | None) -> str | None:
    """The template of the checkpoint's processor, where it is kept apart from the tokenizer, as older ones do."""
    from transformers.utils.hub import cached_file

    file = cached_file(source, "chat_template.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"] if file else None


def _mean_std(stock: dict[str, Any], given: dict[str, Any], source: str | Path) -> dict[str, Any]:
    found = {"mean": stock.get("image_mean"), "std": stock.get("image_std")}
    lacking = [name for name, value in found.items() if value is None and name not in given]
    if lacking:
        raise VLSegError(f"{source}: its image processor states no {lacking[0]}; give image={{'{lacking[0]}': [...]}}")
    return {name: list(value) for name, value in found.items() if value is not None}
