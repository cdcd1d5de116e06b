"""Every family on its stock classes: packed equals one by one equals the stock class's own call."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlseg.models.build import from_vlm
from vlseg.models.configuration import VLSegConfig
from vlseg.models.families import FAMILIES, family_of
from vlseg.models.features import join_features, split_features
from vlseg.models.packing import visibility
from vlseg.models.specimens import SPECIMENS, write_specimen
from vlseg.types import VLSegError

NAMES = sorted(SPECIMENS)
CAUSAL = [name for name in NAMES if not name.startswith("paligemma")]


def close(got, want, tolerance=1e-6):
    """Equal to `tolerance` of the largest number."""
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def earnest(output):
    """Compared masks are neither empty nor full, and queries differ by far more than any tolerance."""
    share = (output.mask_logits > 0).float().mean((0, 2, 3))
    assert ((share > 0.05) & (share < 0.95)).all(), share
    logits = output.token_logits[0]
    apart = (logits[:, None] - logits[None]).abs().amax(-1) + torch.eye(len(logits))
    assert apart.min() > 1e-3 * logits.abs().max()


def test_every_family_has_a_specimen():
    assert {SPECIMENS[name][0] for name in NAMES} == set(FAMILIES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_packed_equals_one_by_one(load, name, attention, picture, texts):
    model, processor = load(name, attention)
    used = "eager" if name == "paligemma2" else attention  # Gemma 2 caps attention, which sdpa cannot
    assert model.vlm.config.get_text_config()._attn_implementation == used
    packed = model(**processor([picture()], [texts]))
    earnest(packed)
    for k, text in enumerate(texts):
        single = model(**processor([picture()], [[text]]))
        close(single.token_logits[0, 0], packed.token_logits[0, k])
        close(single.mask_logits[0, 0], packed.mask_logits[0, k], 4e-6)


def stock_row(model, pixels, tokens, text_ids):
    """One query behind one image as users of the stock class write it: ids and the arguments of the picture."""
    family = model.family
    ids = torch.tensor([[*family.prefix(tokens).ids.tolist(), *text_ids]])
    kind = model.config.vlm.model_type
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind.startswith("qwen"):
        view = family.view(pixels)
        cells = [1, view.shape[2] // family.patch, view.shape[3] // family.patch]
        arguments["mm_token_type_ids"] = (ids == model.config.vlm.image_token_id).int()
        return {**arguments, "pixel_values": family.patches(view), "image_grid_thw": torch.tensor([cells])}
    if kind == "fast_vlm":
        return {**arguments, "pixel_values": pixels}
    views = family.views(pixels)
    if kind in ("smolvlm", "idefics3"):
        return {**arguments, "pixel_values": views}
    if kind == "llava_onevision":
        arguments |= {"image_sizes": torch.tensor([[family.side] * 2]), "batch_num_images": torch.tensor([2])}
    return {**arguments, "pixel_values": views.flatten(0, 1)}


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_packed_equals_the_stock_class(load, name, picture, texts):
    """The stock class makes its own mask and positions, from ids and pixels alone."""
    model, processor = load(name)
    inputs = processor([picture()], [texts])
    packed = model(**inputs)
    earnest(packed)
    tokens = model.encode_image(inputs["pixel_values"]).tokens
    for k, text in enumerate(texts):
        row = stock_row(model, inputs["pixel_values"], tokens, processor.query_ids(text))
        stock = model.vlm.model(**row, use_cache=False).last_hidden_state[:, -1]
        close(packed.token_logits[0, k], model.vlm.get_output_embeddings()(stock)[0].float())


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_features_are_reused_bit_for_bit(load, name, picture, texts):
    """A row fed with the features of an earlier call gives what the stock class gives for the pixels."""
    model, processor = load(name)
    inputs = processor([picture()], [texts[:1]])
    tokens = model.encode_image(inputs["pixel_values"]).tokens
    row = stock_row(model, inputs["pixel_values"], tokens, processor.query_ids(texts[0]))
    stock = model.vlm.model(**row, use_cache=False).last_hidden_state
    kept = {key: value for key, value in row.items() if key in ("input_ids", "attention_mask")}
    prefix = model.family.prefix(tokens)
    kept["position_ids"] = model.family.positions(prefix, inputs["query_offset"])
    again = model.vlm.model(**kept, mm_encoder_outputs=model.family.encoder_outputs(tokens), use_cache=False)
    assert torch.equal(again.last_hidden_state, stock)


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
@torch.no_grad()
def test_prefix_language_model(load, name, picture, texts):
    """Image and instruction are one block, each query is one, the image sees no query: restated token by token."""
    model, processor = load(name)
    inputs = processor([picture()], [texts])
    packed = model(**inputs)
    earnest(packed)
    tokens = model.encode_image(inputs["pixel_values"]).tokens
    prefix = model.family.prefix(tokens)
    p, lowest = len(prefix.ids), torch.finfo(torch.float32).min
    assert prefix.positions.tolist() == list(range(1, p + 1))
    for k, text in enumerate(texts):
        ids = processor.query_ids(text)
        length = p + len(ids)
        mask = torch.zeros(1, 1, length, length)
        mask[..., :p, p:] = lowest
        row = {
            "input_ids": torch.tensor([[*prefix.ids.tolist(), *ids]]),
            "pixel_values": model.family.views(inputs["pixel_values"]).flatten(0, 1),
            "attention_mask": mask,
        }
        logits = model.vlm(**row, use_cache=False).logits[0, -1]
        close(packed.token_logits[0, k], logits.float())


@torch.no_grad()
def test_the_image_of_a_prefix_language_model_sees_no_query(load, monkeypatch, picture, texts):
    """The tests above can fail: pretraining's own mask, where the image sees the query, gives something else."""
    model, processor = load("paligemma")
    want = model(**processor([picture()], [texts[:1]])).token_logits
    monkeypatch.setattr(
        "vlseg.models.modeling.visibility", lambda owner, block: torch.ones_like(visibility(owner, block))
    )
    got = model(**processor([picture()], [texts[:1]])).token_logits
    assert (got - want).abs().max() > 1e-4 * want.abs().max()


@torch.no_grad()
def test_bool_masks_are_silently_wrong_under_eager(load, picture, texts, monkeypatch):
    """Why masks are additive floats: eager adds True and False to the scores and says nothing."""
    model, processor = load("qwen3-vl", "eager")
    inputs = processor([picture()], [texts])
    right = model(**inputs).token_logits
    monkeypatch.setattr("vlseg.models.modeling.additive_mask", lambda visible, dtype: visible[:, None])
    assert (model(**inputs).token_logits - right).abs().max() > 1e-2 * right.abs().max()


def test_router_losses_are_not_computed_on_packed_masks(build, picture, texts):
    """The stock class's router loss takes 2-D masks only; a checkpoint that asks for it must not crash here."""
    model, processor = build("qwen3-vl-moe")
    assert model.config.vlm.text_config.output_router_logits
    output = model.train()(**processor([picture()], [texts]))
    output.token_logits.square().mean().backward()
    gates = [p.grad for n, p in model.named_parameters() if n.endswith("mlp.gate.weight")]
    assert gates
    assert all(g is not None and g.abs().max() > 0 for g in gates)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_maps_lie_where_the_picture_does(build, name):
    """Features before the tokens are merged: changing one spot of the picture changes the map there, and only there."""
    model, _ = build(name)
    pixels = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    other = pixels.clone()
    spot = (slice(0, 16), slice(96, 128))  # a quarter of the height at the top, a quarter of the width at the right
    other[1, :, spot[0], spot[1]] += 1.0
    level = -1 if name == "fastvlm" else 0
    first, second = (model.family.encode(model.vlm, x, [level]).maps[0] for x in (pixels, other))
    assert first.shape == second.shape
    assert torch.equal(first[0], second[0])
    changed = (first[1] - second[1]).abs().amax(0)
    height, width = changed.shape
    inside = changed[: height // 4 or 1, 3 * width // 4 :]
    assert inside.max() > 0
    if level == 0:
        # resizing to whole tokens blurs over one cell at most
        around = changed.clone()
        around[: height // 4 + 1, 3 * width // 4 - 1 :] = 0
        assert around.max() <= 1e-4 * changed.max()
    last = model.family.encode(model.vlm, pixels, [-1]).maps[0]
    assert last.shape[0] == 2
    assert last.shape[2:] == first.shape[2:]


@pytest.mark.parametrize("name", [n for n in NAMES if SPECIMENS[n][0].startswith("qwen")])
@torch.no_grad()
def test_positions_are_those_of_the_stock_class(build, name, texts):
    """M-RoPE of a wide and of a tall picture; a packed query continues as if it stood alone."""
    model, processor = build(name)
    for size in ((64, 128), (160, 64)):
        tokens = model.encode_image(torch.randn(1, 3, *size)).tokens
        prefix = model.family.prefix(tokens)
        packed = processor.pack([texts[:3]])
        got = model.family.positions(prefix, packed.offset)
        p, at = len(prefix.ids), 0
        for text in texts[:3]:
            ids = processor.query_ids(text)
            row = torch.tensor([[*prefix.ids.tolist(), *ids]])
            grid = torch.tensor([[1, tokens.grid[0] * model.family.merge, tokens.grid[1] * model.family.merge]])
            types = (row == model.config.vlm.image_token_id).int()
            want, _ = model.vlm.model.get_rope_index(row, mm_token_type_ids=types, image_grid_thw=grid)
            assert torch.equal(got[..., :p], want[..., :p])
            assert torch.equal(got[..., p + at : p + at + len(ids)], want[..., p:])
            at += len(ids)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_images_of_a_batch_do_not_touch_each_other(build, name, picture, texts):
    model, processor = build(name)
    both = model(**processor([picture(0), picture(1)], [texts, texts[1:3]]))
    earnest(both)
    alone = model(**processor([picture(1)], [texts[1:3]]))
    close(both.token_logits[1, :2], alone.token_logits[0])
    close(both.mask_logits[1, :2], alone.mask_logits[0], 4e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_of_a_batch_come_apart_and_together(load, picture, texts, name):
    """What a server keeps of an image answers later, alone or with others, as it would have at once."""
    model, processor = load(name)
    inputs = processor([picture(0), picture(1)], [texts, texts])
    features = model.encode_image(inputs.pop("pixel_values"))
    want = model(image_features=features, **inputs)
    parts = split_features(features, 2)
    again = model(image_features=join_features(parts[::-1]), **inputs)
    close(again.token_logits[1], want.token_logits[0])
    close(again.mask_logits[0], want.mask_logits[1], 4e-6)
    alone = model(image_features=parts[1], **processor.pack([texts]).tensors())
    close(alone.token_logits[0], want.token_logits[1])


@pytest.mark.parametrize("name", NAMES)
def test_no_weight_waits_in_vain(build, picture, texts, name):
    """What learns gets a gradient (data-parallel training would hang on the rest); what cannot is frozen."""
    model, processor = build(name)
    model.zero_grad(set_to_none=True)
    output = model(**processor([picture()], [texts]))
    parts = [output.mask_logits, output.token_logits, *output.coarse_logits]
    sum(part.square().mean() for part in parts).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert all(n.startswith("vlm.model.vision") for n in frozen), frozen
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("size", [(64, 128), (192, 64), (128, 128)])
@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "internvl"])
@torch.no_grad()
def test_tiles(build, name, size, picture, texts):
    """With `image.split`: tiles in reading order before the global view, and packed still equals one by one."""
    model, processor = build(name, split=True, area=size[0] * size[1], multiple=64)
    image = picture(3, *size)
    inputs = processor([image], [texts])
    rows, columns = size[0] // 64, size[1] // 64
    views = model.family.views(inputs["pixel_values"])
    assert views.shape == (1, rows * columns + 1, 3, 64, 64)
    for number in range(rows * columns):
        top, left = 64 * (number // columns), 64 * (number % columns)
        assert torch.equal(views[0, number], inputs["pixel_values"][0, :, top : top + 64, left : left + 64])
    packed = model(**inputs)
    earnest(packed)
    for k, text in enumerate(texts):
        single = model(**processor([image], [[text]]))
        close(single.token_logits[0, 0], packed.token_logits[0, k])
    tokens = model.encode_image(inputs["pixel_values"]).tokens
    row = stock_row(model, inputs["pixel_values"], tokens, processor.query_ids(texts[0]))
    stock = model.vlm(**row, use_cache=False).logits[:, -1]
    close(packed.token_logits[0, 0], stock[0])


@pytest.mark.parametrize(("name", "split"), [*((n, False) for n in NAMES), ("smolvlm", True), ("internvl", True)])
@torch.no_grad()
def test_places_are_those_of_the_image_tokens(build, name, split, picture, texts):
    """What the language model is given at `places` are the tokens of the whole picture, one a cell, in their order."""
    model, processor = build(name, **({"split": True, "area": 128 * 128, "multiple": 64} if split else {}))
    given = {}
    inner = model.vlm.model
    language = getattr(inner, "language_model", None) or inner.text_model
    handle = language.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    inputs = processor([picture(3, 128, 128)], [texts])
    model(**inputs)
    handle.remove()
    tokens = model.encode_image(inputs["pixel_values"]).tokens
    assert (tokens.tiles != (1, 1)) == split
    rows, columns = tokens.grid
    places = model.family.places(tokens, model.family.prefix(tokens))
    assert len(places) == rows * columns
    found = given["inputs_embeds"][0, places]
    pooled = tokens.pooler_output[0]
    want = pooled[: rows * columns] if name.startswith("llava") else pooled[-rows * columns :]
    assert want.std(0).min() > 0  # no two cells alike
    scale = (found * want).sum() / want.square().sum()  # Gemma scales what it is given
    close(found, scale * want, 1e-5)


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen3-vl-moe", "smolvlm", "paligemma2"])
def test_gradients_are_those_of_one_query_a_row(build, picture, texts, name):
    """The packed row against K rows that encode the picture K times: same loss, same gradient of every weight."""
    model, processor = build(name)
    pixels = processor.pixel_values(picture())

    def gradients(pixels, rows):
        model.zero_grad(set_to_none=True)
        output = model(pixel_values=pixels, **processor.pack(rows).tensors())
        loss = output.mask_logits.square().mean() + output.token_logits.square().mean()
        loss.backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), found

    loss, packed = gradients(pixels, [texts])
    want_loss, rows = gradients(pixels.expand(len(texts), -1, -1, -1), [[text] for text in texts])
    torch.testing.assert_close(loss, want_loss, rtol=1e-6, atol=0)
    assert packed.keys() == rows.keys()
    largest = max(gradient.abs().max() for gradient in rows.values())
    for key, want in rows.items():
        assert (packed[key] - want).abs().max() <= 1e-5 * largest, key
    model.zero_grad(set_to_none=True)


def test_tiles_where_there_are_none(specimen):
    with pytest.raises(VLSegError, match=r"image\.split"):
        from_vlm(specimen("qwen3-vl"), image={"split": True})


def test_unknown_families_are_told():
    with pytest.raises(VLSegError, match="no adapter for the model family 'blip-2'; known: fast_vlm"):
        family_of(VLSegConfig(vlm={"model_type": "blip-2"}))
    with pytest.raises(VLSegError, match="known: qwen3-vl"):
        write_specimen("qwen9", "nowhere")


def test_a_uniform_picture(build, picture):
    """Idefics drops views whose pixels are all exactly zero: mid-grey must not be one."""
    model, processor = build("smolvlm")
    grey = Image.new("RGB", (128, 96), (127, 128, 127))
    with torch.no_grad():
        assert model(**processor([grey, picture()], [["mug"], ["mug"]])).mask_logits.isfinite().all()
