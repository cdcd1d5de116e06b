"""A model loaded in 8 or 4 bits and saved: what comes back answers as it did."""

from __future__ import annotations

import pytest
import torch

from vlseg.models.modeling import VLSegModel
from vlseg.models.precision import QUANTISED
from vlseg.systems.native import NativeSystem


@pytest.mark.parametrize("kind", QUANTISED)
@torch.no_grad()
def test_saved_and_loaded_again(folder_of, load, picture, texts, tmp_path, kind):
    """Also after a first answer, at which bitsandbytes would repack its weights; and as a user loads it."""
    _, processor = load("qwen3-vl")
    inputs = processor([picture()], [texts])
    model = VLSegModel.from_pretrained(folder_of("qwen3-vl"), dtype=kind).eval()
    before = model(**inputs)
    level = before.mask_logits.median()
    assert 0.05 < (before.mask_logits > level).float().mean() < 0.95
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for again in (VLSegModel.from_pretrained(tmp_path).eval(), NativeSystem.from_pretrained(tmp_path, "cpu").model):
        after = again(**inputs)
        torch.testing.assert_close(after.mask_logits, before.mask_logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(after.token_logits, before.token_logits, atol=1e-4, rtol=1e-3)
