"""Image features that are kept for later: of every family, what comes out is what went in."""

from __future__ import annotations

import pytest
import torch

from vlseg.models.features import _walk, features_bytes, join_features, split_features
from vlseg.systems.native import NativeSystem


def tensors(tree) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _walk(lambda tensor: found.append(tensor) or tensor, tree)
    return found


@pytest.mark.parametrize(
    "name", ["qwen3-vl", "qwen2.5-vl", "smolvlm", "internvl", "llava-onevision", "paligemma", "fastvlm"]
)
def test_every_family(load, name, picture, texts, assert_foreground):
    model, processor = load(name)
    system = NativeSystem(model, processor, name)
    images = [picture(i) for i in range(3)]
    with torch.inference_mode():
        whole = system._encode(images)
    parts = split_features(whole, 3)
    assert len(tensors(whole)) >= 4
    for a, b in zip(tensors(whole), tensors(join_features(parts)), strict=True):
        assert torch.equal(a, b)
    assert sum(map(features_bytes, parts)) == features_bytes(whole)
    for part in parts:  # a view would keep the memory of the whole batch
        assert all(t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in tensors(part))
    rows = [texts, texts[:2], texts[1:]]
    expected = system.segment_batch(images, rows, presence_threshold=0)
    encoded = system.encode_batch(images)
    for given in (encoded, [images[0], encoded[1], encoded[2]]):
        for answers, wanted in zip(system.segment_batch(given, rows, presence_threshold=0), expected, strict=True):
            assert_foreground(wanted)
            assert [a.score for a in answers] == pytest.approx([a.score for a in wanted], abs=1e-5)
            assert [a.segments[0].rle for a in answers] == [a.segments[0].rle for a in wanted]
