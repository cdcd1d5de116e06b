"""From the `model_type` of a vision-language model to its adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlseg.models.families.base import Family
from vlseg.models.families.fast_vlm import FastVlmFamily
from vlseg.models.families.idefics import IdeficsFamily
from vlseg.models.families.intern_vl import InternVLFamily
from vlseg.models.families.llava_onevision import LlavaOnevisionFamily
from vlseg.models.families.pali_gemma import PaliGemmaFamily
from vlseg.models.families.qwen_vl import Qwen3VLFamily, Qwen25VLFamily
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.models.configuration import VLSegConfig

FAMILIES: dict[str, type[Family]] = {
    "fast_vlm": FastVlmFamily,
    "idefics3": IdeficsFamily,
    "internvl": InternVLFamily,
    "llava_onevision": LlavaOnevisionFamily,
    "paligemma": PaliGemmaFamily,
    "qwen2_5_vl": Qwen25VLFamily,
    "qwen3_vl": Qwen3VLFamily,
    "qwen3_vl_moe": Qwen3VLFamily,
    "smolvlm": IdeficsFamily,
}


def family_of(config: VLSegConfig) -> Family:
    """The adapter for `config.vlm.model_type`. Raises VLSegError for a family that has none."""
    kind = getattr(config.vlm, "model_type", None)
    if kind not in FAMILIES:
        raise VLSegError(f"no adapter for the model family {kind!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind](config)
