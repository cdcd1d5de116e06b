"""Weights in 8 or 4 bits: the decoder layers of the language model, and nothing else.

Vision tower, projections, token rows, pixel encoder, pixel decoder and mask head stay in the floating dtype: they are a
small part of the memory, and a coarse mask head is where quantised peers lose their masks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlseg.types import VLSegError

QUANTISED = ("int8", "nf4")

# Names of modules and parameters that keep their dtype: a pattern that matches all others.
KEPT = r"(?!vlm\.model\.(?:language_model|text_model)\.layers\.).*"


def quantisation(kind: str, compute_dtype: torch.dtype) -> Any:
    """The `quantization_config` of `from_pretrained` for "int8" or "nf4".

    int8: torchao, weights only, one scale a row. nf4: bitsandbytes, NormalFloat4 with double quantisation, as in QLoRA
    (arXiv 2305.14314). Experts of a mixture are no linear layers and stay in the floating dtype. Raises VLSegError for
    another kind, and where the library is missing.
    """
    from transformers import BitsAndBytesConfig, TorchAoConfig

    try:
        if kind == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[KEPT])
        if kind == "nf4":
            import bitsandbytes  # noqa: F401  (transformers says less clearly that it is missing)

            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute_dtype,
                llm_int8_skip_modules=[KEPT],
            )
    except ImportError as error:
        raise VLSegError(f"dtype {kind}: {error.name} is not installed; pip install 'vlseg[quant]'") from error
    raise VLSegError(f"dtype {kind}: unknown; known: {', '.join(QUANTISED)}")


def settle(model: nn.Module) -> int:
    """Keep bitsandbytes from repacking 4-bit weights; returns how many layers there are. Call it after every load.

    On CPUs with AVX512-BF16 the first forward pass without gradients repacks every layer in place; from then on
    training gives no gradient, without an error, and a saved model reloads wrong.
    """
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
