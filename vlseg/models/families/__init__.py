"""What differs between families of vision-language models: one small adapter each.

A family sees an image as (B, 3, H, W), normalised with the mean and std of its own checkpoint:

| family | one image becomes |
|---|---|
| Qwen3-VL, its MoE, Qwen2.5-VL | patches of the image in its own shape; an image token is 32 (28) pixels a side |
| SmolVLM, Idefics3, InternVL | the image squeezed to one square; with `image.split` also tiles of that square's size |
| LLaVA-OneVision | the image squeezed to one square, and a newline token |
| PaliGemma, PaliGemma 2 | the image squeezed to one square |
| FastVLM | the image in its own shape |
"""

from vlseg.models.families.base import Family, ImageTokens, Prefix
from vlseg.models.families.registry import FAMILIES, family_of

__all__ = ["FAMILIES", "Family", "ImageTokens", "Prefix", "family_of"]
