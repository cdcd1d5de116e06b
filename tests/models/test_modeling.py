"""The native model on real classes with random weights: packed equals one by one, and a reload equals the original."""

import pytest
import torch

from vlseg.models import modeling
from vlseg.models.presets import build_preset
from vlseg.models.processing import VLSegProcessor
from vlseg.types import VLSegError

WORDS = ["the", "red", "dog", "left", "of", "a", "tree", "mug", "next", "to", "is", "which"]
QUERIES = ["the red dog", "mug left of the tree", "the xyz", "which dog is next to a mug ?", "tree"]


@pytest.fixture(scope="module")
def pair():
    model, processor = build_preset("tiny", WORDS, nouns=7, seed=3)
    with torch.no_grad():  # spread the random logits, so that masks are neither empty nor full
        model.mask_head.to_mask[-1].weight.mul_(40)
        for weight in model.vlm.model.language_model.layers.parameters():  # and let attention matter
            if weight.ndim == 2:
                weight.mul_(5)
    return model.eval(), processor


def pixels(height=96, width=128, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def call(pair, texts, image):
    model, processor = pair
    with torch.no_grad():
        return model(pixel_values=image, **processor.pack(texts).tensors())


@pytest.mark.parametrize("size", [(96, 128), (128, 64)])
def test_packed_equals_one_by_one(pair, size):
    image = pixels(*size)
    packed = call(pair, [QUERIES], image)
    share = (packed.mask_logits > 0).float().mean((0, 2, 3))
    assert ((share > 0.05) & (share < 0.95)).all(), share
    for k, text in enumerate(QUERIES):
        single = call(pair, [[text]], image)
        for name in ("mask_logits", "token_logits", "evidence", "query_embedding"):
            torch.testing.assert_close(
                getattr(single, name)[0, 0], getattr(packed, name)[0, k], atol=1e-5, rtol=1e-5, msg=name
            )


def test_rows_of_different_length_do_not_touch_each_other(pair):
    image = pixels(count=2)
    both = call(pair, [QUERIES, ["a dog"]], image)
    alone = call(pair, [["a dog"]], image[1:])
    torch.testing.assert_close(both.mask_logits[1, 0], alone.mask_logits[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("breakage", ["queries see each other", "the image sees queries"])
def test_a_broken_mask_rule_is_noticed(pair, monkeypatch, breakage):
    """The parity test above can fail: each breakage of the rule moves the answers by far more than its tolerance."""

    def broken(owner, block=None):
        length = owner.shape[1]
        if breakage == "queries see each other":
            return torch.ones(1, length, length, dtype=torch.bool).tril()
        return visibility(owner, torch.ones_like(owner)) | (owner == 0)[:, :, None]

    visibility = modeling.visibility
    image = pixels()
    monkeypatch.setattr(modeling, "visibility", broken)
    packed = call(pair, [QUERIES], image)
    single = call(pair, [QUERIES[3:4]], image)
    assert (packed.token_logits[0, 3] - single.token_logits[0, 0]).abs().max() > 1e-3


def test_image_features_are_reused(pair):
    model, processor = pair
    image = pixels()
    with torch.no_grad():
        features = model.encode_image(image)
        again = model(image_features=features, **processor.pack([QUERIES[:2]]).tensors())
    direct = call(pair, [QUERIES[:2]], image)
    assert torch.equal(again.mask_logits, direct.mask_logits)
    with pytest.raises(ValueError, match="either"):
        model(pixel_values=image, image_features=features, **processor.pack([QUERIES[:2]]).tensors())


def test_save_and_load_give_the_same_bits(pair, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = modeling.VLSegModel.from_pretrained(tmp_path).eval()
    same = VLSegProcessor.from_pretrained(tmp_path)
    before, after = call(pair, [QUERIES], pixels()), call((loaded, same), [QUERIES], pixels())
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    # equal weights at other addresses take other kernels, so outputs agree to rounding only
    torch.testing.assert_close(before.mask_logits, after.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(before.token_logits, after.token_logits, atol=1e-4, rtol=1e-4)
    assert loaded.config.vlm.to_dict() == model.config.vlm.to_dict()


def test_control_tokens_have_one_id_and_cannot_be_typed(pair, tmp_path):
    _, processor = pair
    processor.save_pretrained(tmp_path)
    for p in (processor, VLSegProcessor.from_pretrained(tmp_path)):
        for token in ("[SEG]", "[REJ]", "<image>", "[PAD]", "<end>", "[UNK]"):
            control = p.tokenizer.convert_tokens_to_ids(token)
            assert p.tokenizer(token, add_special_tokens=False)["input_ids"] == [control]
            typed = p.query_ids(f"the {token} dog")
            assert control not in typed
            assert typed == p.query_ids("the " + " ".join(token) + " dog") or len(typed) > 4
    assert model_ids(pair) == (processor.tokenizer.convert_tokens_to_ids("[SEG]"), pair[0].config.rej_token_id)


def model_ids(pair):
    return pair[0].config.seg_token_id, pair[0].config.rej_token_id


@pytest.mark.parametrize(("text", "message"), [("", "empty"), (" \n", "empty"), ("dog " * 3000, "too long")])
def test_queries_that_cannot_be_read(pair, text, message):
    with pytest.raises(VLSegError, match=message):
        pair[1].query_ids(text)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1, 1), (200, 20000), (20000, 200), (256, 256), (33, 3000)])
def test_input_size(pair, height, width):
    h, w = pair[1].input_size(height, width)
    assert h % 32 == w % 32 == 0
    assert 32 <= min(h, w) <= max(h, w) <= pair[1].image["max_side"]


def test_gradients_reach_every_part(pair):
    model, processor = build_preset("tiny", WORDS, nouns=7, seed=0)
    out = model(pixel_values=pixels(), **processor.pack([QUERIES]).tensors())
    total = (
        out.mask_logits.square().mean()
        + out.token_logits.square().mean()
        + out.evidence.square().mean()
        + sum(c.square().mean() for c in out.coarse_logits)
    )
    for nouns in (out.query_nouns, out.pixel_nouns, out.token_nouns):
        total = total + nouns[..., 0].sum()
    (total + out.noun_prototypes.sum()).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
