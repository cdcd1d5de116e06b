"""What makes training on CPUs fast changes no result beyond rounding."""

import torch

from vlseg.models.cpu_speed import Float32Depthwise, prefer_eager_attention, prefer_float32_depthwise
from vlseg.models.presets import build_preset


def test_same_answers_and_gradients():
    model, processor = build_preset("tiny", ["the", "red", "dog"], nouns=5, seed=1)
    inputs = processor.pack([["the red dog", "dog"]]).tensors()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def run():
        model.zero_grad()
        out = model(pixel_values=pixels, **inputs)
        (out.mask_logits.square().mean() + out.token_logits.square().mean()).backward()
        assert out.mask_logits.std() > 1e-3
        return out.mask_logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, gradients = run()
    text = model.vlm.config.get_text_config()
    assert text._attn_implementation == "sdpa"
    assert prefer_float32_depthwise(model) > 2
    prefer_eager_attention(model.vlm)
    assert text._attn_implementation == "eager"
    assert any(isinstance(m, Float32Depthwise) for m in model.pixel_encoder.modules())
    fast, others = run()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)
    assert gradients.keys() == others.keys()
    largest = max(g.abs().max() for g in gradients.values())
    for name, gradient in gradients.items():
        assert (others[name] - gradient).abs().max() <= 1e-5 * largest, name
