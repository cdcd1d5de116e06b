"""Every head, with and without fusion, with one slot and several: queries stay apart, and every part does something."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.models.channel_norm import ChannelNorm
from vlseg.models.features import join_features, split_features
from vlseg.models.heads import build_mask_head
from vlseg.models.heads import eomt as eomt_room
from vlseg.models.heads.eomt import annealing
from vlseg.models.heads.fusion import RectifiedCostAggregator
from vlseg.models.heads.slots import SlotAttention, slot_gate, union_logits
from vlseg.models.modeling import VLSegModel
from vlseg.models.presets import build_preset
from vlseg.systems.quiet import quiet_loading
from vlseg.types import VLSegError

WORDS = ["the", "red", "dog", "left", "of", "a", "tree", "mug", "next", "to", "is", "which"]
QUERIES = ["the red dog", "mug left of the tree", "the xyz", "which dog is next to a mug ?"]
VARIANTS = list(itertools.product(("dot", "eomt", "sam"), ("none", "rca"), (1, 3)))
TENSORS = ("mask_logits", "token_logits", "evidence", "query_embedding")


def noise(height=96, width=128, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.fixture(scope="module")
def pairs():
    """pairs(kind, fusion, slots): a model whose masks are neither empty nor full, and its processor; read-only."""
    made = {}

    def pair(kind, fusion, slots):
        key = (kind, fusion, slots)
        if key not in made:
            head = {"kind": kind, "fusion": fusion, "slots": slots, "blocks": 2, "presence": True}
            model, processor = build_preset("tiny", WORDS, nouns=7, seed=3, head=head)
            with torch.no_grad():
                model.mask_head.to_mask[-1].weight.mul_(40)
                if kind == "sam":
                    model.mask_head.hyper[-1].weight.mul_(200)
                for weight in model.vlm.model.language_model.layers.parameters():  # let attention matter
                    if weight.ndim == 2:
                        weight.mul_(5)
                out = model.eval()(**inputs(processor))
                model.mask_head.bias.bias.sub_(out.mask_logits.median())
                if slots > 1:  # some slots count, some do not
                    model.mask_head.slot_score.weight.mul_(3)
                    model.mask_head.slot_score.bias.sub_(model(**inputs(processor)).slots.scores.median())
            made[key] = model, processor
        return made[key]

    return pair


def inputs(processor, texts=(tuple(QUERIES),), image=None):
    return {"pixel_values": noise() if image is None else image, **processor.pack(texts).tensors()}


def run(pair, texts=(tuple(QUERIES),), image=None):
    with torch.no_grad():
        return pair[0](**inputs(pair[1], texts, image))


def distance(pair):
    """How far the third query's answer moves when the others are packed with it."""
    packed, alone = run(pair), run(pair, [QUERIES[2:3]])
    return max((getattr(packed, n)[0, 2] - getattr(alone, n)[0, 0]).abs().max().item() for n in TENSORS)


@pytest.mark.parametrize(("kind", "fusion", "slots"), VARIANTS)
def test_packed_equals_one_by_one(pairs, kind, fusion, slots):
    pair = pairs(kind, fusion, slots)
    packed = run(pair)
    share = (packed.mask_logits > 0).float().mean((0, 2, 3))
    assert ((share > 0.05) & (share < 0.95)).all(), share
    for k, text in enumerate(QUERIES):
        single = run(pair, [[text]])
        for name in TENSORS:
            ours, theirs = getattr(packed, name)[0, k], getattr(single, name)[0, 0]
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5, msg=name)
        if slots > 1:
            torch.testing.assert_close(packed.slots.logits[0, k], single.slots.logits[0, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(packed.slots.scores[0, k], single.slots.scores[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dot", "eomt", "sam"])
def test_images_of_a_batch_do_not_touch_each_other(pairs, kind):
    pair, images = pairs(kind, "rca", 3), noise(count=2)
    both = run(pair, [QUERIES, ["a dog"]], images)
    alone = run(pair, [["a dog"]], images[1:])
    torch.testing.assert_close(both.mask_logits[1, 0], alone.mask_logits[0, 0], atol=1e-5, rtol=1e-5)


def test_slots_that_see_other_queries_are_noticed(pairs, monkeypatch):
    pair = pairs("dot", "none", 3)
    assert distance(pair) < 1e-4
    plain = SlotAttention.forward
    monkeypatch.setattr(
        SlotAttention, "forward", lambda self, slots: plain(self, slots.flatten(0, 1)[None]).view_as(slots)
    )
    assert distance(pair) > 1e-3


def test_queries_that_see_each_other_in_a_block_are_noticed(pairs, monkeypatch):
    pair = pairs("eomt", "none", 1)
    assert distance(pair) < 1e-4
    plain = eomt_room.Block.queries
    monkeypatch.setattr(
        eomt_room.Block, "queries", lambda self, q, p, visible: plain(self, q, p, torch.ones_like(visible))
    )
    assert distance(pair) > 1e-3


def test_an_image_that_sees_other_queries_is_noticed(pairs, monkeypatch):
    """The sam head changes the image for each query; were it changed for all, the answers would move."""
    from vlseg.models.heads import sam

    pair = pairs("sam", "none", 1)
    assert distance(pair) < 1e-4
    plain = sam.TwoWayBlock.forward

    def shared(self, *arguments):
        tokens, image = plain(self, *arguments)
        return tokens, image.mean(0, keepdim=True).expand_as(image)

    monkeypatch.setattr(sam.TwoWayBlock, "forward", shared)
    assert distance(pair) > 1e-3


def test_costs_normalised_over_the_queries_are_noticed(pairs, monkeypatch):
    pair = pairs("dot", "rca", 1)
    assert distance(pair) < 1e-4
    plain = torch.var_mean
    monkeypatch.setattr(torch, "var_mean", lambda x, dims, **more: plain(x, (1, *dims), **more))
    assert distance(pair) > 1e-3


@pytest.mark.parametrize(("kind", "fusion", "slots"), [v for v in VARIANTS if v[1:] != ("none", 3)])
def test_any_size(pairs, kind, fusion, slots):
    pair = pairs(kind, fusion, slots)
    for height, width in ((32, 64), (128, 96)):
        out = run(pair, image=noise(height, width))
        assert out.mask_logits.shape == (1, len(QUERIES), height // 2, width // 2)
        assert {tuple(c.shape) for c in out.coarse_logits} == {(1, len(QUERIES), height // 4, width // 4)}
        if slots > 1:
            assert out.slots.logits.shape == (1, len(QUERIES), slots, height // 2, width // 2)
            assert out.slots.scores.shape == (1, len(QUERIES), slots)
        else:
            assert out.slots is None


@pytest.mark.parametrize(("kind", "fusion", "slots"), VARIANTS)
def test_gradients_reach_every_part(pairs, kind, fusion, slots):
    model, processor = copy.deepcopy(pairs(kind, fusion, slots))
    model.train()
    out = model(**inputs(processor))
    total = out.mask_logits.square().mean() + out.evidence.square().mean() + out.token_logits.square().mean()
    total = total + sum(c.square().mean() for c in out.coarse_logits) + out.noun_prototypes.sum()
    total = total + out.query_nouns[..., 0].sum() + out.pixel_nouns[..., 0].sum() + out.token_nouns[..., 0].sum()
    if slots > 1:
        total = total + out.slots.logits.square().mean() + out.slots.scores.square().mean()
    total.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # what is zero at the start (the presence head's last layer) lets nothing through to the layer before it
    assert not [n for n in silent if "presence.mix.0" not in n and "trust" not in n and not n.endswith("key.bias")]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "fusion", "slots"), [("dot", "rca", 3), ("eomt", "none", 1), ("sam", "rca", 1)])
def test_save_and_load_give_the_same_bits(pairs, tmp_path, kind, fusion, slots):
    model, processor = pairs(kind, fusion, slots)
    with quiet_loading():
        model.save_pretrained(tmp_path)
        again = VLSegModel.from_pretrained(tmp_path).eval()
    assert type(again.mask_head) is type(model.mask_head)
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    before, after = run((model, processor)), run((again, processor))
    torch.testing.assert_close(before.mask_logits, after.mask_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dot", "eomt", "sam"])
def test_an_encoded_image_is_asked_again(pairs, kind):
    """What the head prepares is part of the image's features: it can be taken apart into images and put together."""
    model, processor = pair = pairs(kind, "rca", 3)
    images = noise(count=2)
    with torch.no_grad():
        parts = split_features(model.encode_image(images), 2)
        packed = processor.pack([QUERIES[:2]] * 2).tensors()
        again = model(image_features=join_features(parts), **packed)
    direct = run(pair, [QUERIES[:2]] * 2, images)
    torch.testing.assert_close(again.mask_logits, direct.mask_logits, atol=1e-5, rtol=1e-5)


def test_bfloat16(pairs):
    for kind, fusion, slots in VARIANTS:
        if fusion == "rca" and slots == 3:
            model, processor = copy.deepcopy(pairs(kind, fusion, slots))
            model.to(torch.bfloat16)
            given = inputs(processor)
            with torch.no_grad():
                out = model(**{**given, "pixel_values": given["pixel_values"].bfloat16()})
            assert out.mask_logits.isfinite().all()
            assert out.slots.scores.dtype == torch.float32


# masks of several slots ----------------------------------------------------------------------------------------------
def test_the_union_by_hand():
    logits = torch.tensor([[[[3.0, -1.0]], [[-2.0, 5.0]], [[4.0, 4.0]]]])  # (1, 3, 1, 2)
    assert union_logits(logits, torch.tensor([[2.0, 1.0, -1.0]])).tolist() == [[[3.0, 1.0]]]
    assert slot_gate(torch.tensor([[-3.0, -1.0]])).tolist() == [[-3.0, float("inf")]]


@given(seed=st.integers(0, 10_000), slots=st.integers(1, 5))
@settings(max_examples=40)
def test_the_union_is_that_of_the_slots_that_count(seed, slots):
    torch.manual_seed(seed)
    logits, scores = torch.randn(2, slots, 4, 5), torch.randn(2, slots)
    masks = union_logits(logits, scores) > 0
    for row in range(2):
        kept = [s for s in range(slots) if scores[row, s] > 0] or [int(scores[row].argmax())]
        wanted = torch.stack([logits[row, s] > 0 for s in kept]).any(0)
        assert torch.equal(masks[row], wanted)


# rectified cost aggregation ------------------------------------------------------------------------------------------
def test_rca_restated():
    """The formula of TALENT's code, one query and one scale at a time, with norms over a map instead of a batch."""
    torch.manual_seed(0)
    rca = RectifiedCostAggregator(8, 2)
    maps, state = [torch.randn(1, 8, 3, 4), torch.randn(1, 8, 6, 8)], torch.randn(1, 3, 8)
    out = rca(maps, state)
    with torch.no_grad():
        for k in range(3):
            parts = []
            for i, level in enumerate(maps):
                conv, norm = rca.look[i][0], rca.look[i][1]
                v = F.relu(norm(F.conv2d(level, conv.weight)))
                project, weight = rca.say[i][0], rca.say[i][1].weight
                t = F.relu(weight @ project(state[0, k]))
                cost = (v[0] * t[:, None, None]).sum(0)
                cost = (cost - cost.mean()) / (cost.var(correction=0) + 1e-5).sqrt()
                gate = rca.gate[i][0]
                opened = F.relu(gate.weight[:, 0, 0] * cost.flatten() + gate.bias[:, None]).view(8, *cost.shape)
                parts.append(opened * v[0])
                torch.testing.assert_close(out.scales[i][0, k], parts[-1], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(out.text[i][0, k], t)
            up = F.interpolate(parts[0][None], size=(6, 8), mode="bilinear", align_corners=False)
            mixed = rca.mix(torch.cat([up, parts[1][None]], 1))
            x = torch.linspace(-7 / 8, 7 / 8, 8).expand(1, 1, 6, 8)
            y = torch.linspace(-5 / 6, 5 / 6, 6)[:, None].expand(1, 1, 6, 8)
            want = mixed + rca.place(torch.cat([mixed, x, y], 1))
            torch.testing.assert_close(out.features[0, k], want[0], atol=1e-5, rtol=1e-4)
    assert not [m for m in rca.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert any(isinstance(m, ChannelNorm) for m in rca.modules())


def test_fusion_tells_queries_apart_before_the_head_reads():
    torch.manual_seed(0)
    rca = RectifiedCostAggregator(8, 1)
    out = rca([torch.randn(1, 8, 6, 8)], torch.randn(1, 2, 8))
    assert (out.features[0, 0] - out.features[0, 1]).abs().max() > 0.1
    tiny = rca([torch.randn(1, 8, 1, 1)], torch.randn(1, 1, 8))  # a map of one cell has no deviation
    assert tiny.features.isfinite().all()


# mask annealing ------------------------------------------------------------------------------------------------------
def test_annealing_is_that_of_eomt():
    """COCO, ViT-L: 88,692 steps, four blocks, starts 14,782 to 59,128 and ends 29,564 to 73,910."""
    steps = 88_692
    for i, (start, end) in enumerate(zip(range(14_782, 73_910, 14_782), range(29_564, 88_692, 14_782), strict=True)):
        for step in (0, start, (start + end) // 2, end, steps):
            progress = (step - start) / (end - start)
            wanted = 1.0 if step <= start else 0.0 if step >= end else (1 - progress) ** 0.9
            assert annealing(step / steps, 4)[i] == pytest.approx(wanted, abs=1e-4)


def test_masked_attention_is_for_training_only(pairs):
    pair = copy.deepcopy(pairs("eomt", "none", 1))
    head = pair[0].mask_head
    plain = run(pair)
    for progress in (0.0, 0.5, 1.0):  # whatever the run's progress, inference sees all patches
        head.progress = progress
        assert torch.equal(run(pair).mask_logits, plain.mask_logits)
    head.train()
    assert torch.equal(run(pair).mask_logits, plain.mask_logits)  # annealed away at the end of a run
    head.progress = 0.0
    assert (run(pair).mask_logits - plain.mask_logits).abs().max() > 1e-3


def test_a_masked_query_sees_its_mask_and_never_nothing():
    logits = torch.full((1, 2, 8, 8), -1.0)
    logits[0, 0, :4, :4] = 1.0
    seen = eomt_room.EomtHead.mask_of(logits, torch.Size((2, 2)), 1.0)
    assert seen.tolist() == [[[True, False, False, False], [True, True, True, True]]]
    assert eomt_room.EomtHead.mask_of(logits, torch.Size((2, 2)), 0.0).all()
    torch.manual_seed(0)
    many = eomt_room.EomtHead.mask_of(logits.repeat(1, 500, 1, 1), torch.Size((2, 2)), 0.25)
    assert (~many[0, ::2].all(-1)).float().mean().item() == pytest.approx(0.25, abs=0.06)


# presence ------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_states_begin_without_a_say_on_presence_and_then_have_one():
    """And what they say rests on the words' state and on where the query points."""
    models = [build_preset("tiny", WORDS, nouns=7, seed=3, head={"presence_dim": width}) for width in (0, 16)]
    (without, processor), (grown, _) = models
    grown.load_state_dict(without.state_dict(), strict=False)
    given = inputs(processor)
    torch.testing.assert_close(grown(**given).evidence, without(**given).evidence)
    states = grown.mask_head.presence_states
    states.mix[-1].weight.normal_()
    difference = grown(**given).evidence - without(**given).evidence
    assert difference.abs().min() > 1e-3
    for k, text in enumerate(QUERIES):
        torch.testing.assert_close(grown(**inputs(processor, [[text]])).evidence[0, 0], grown(**given).evidence[0, k])
    hidden, state, ground = torch.randn(1, 2, 32), torch.randn(1, 2, 32), torch.randn(1, 2, 3, 4)
    said = states(hidden, state, ground)
    others = states(hidden + torch.randn(32), state, ground), states(hidden, state, 5 * ground)
    assert all(((said - other).abs() > 1e-4).all() for other in others)
    torch.testing.assert_close(states(hidden, state, ground + 3), said)  # a softmax does not see it


# configuration -------------------------------------------------------------------------------------------------------
HEAD = {"dim": 32, "embed_dim": 16, "detail_dim": 8, "layers": 1, "heads": 4, "nouns": 0, "noun_dim": 16}
HEAD |= {"presence": False, "kind": "dot", "blocks": 2, "fusion": "none", "slots": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mask2former"}, "head.kind: unknown 'mask2former'; known: dot, eomt, sam"),
        ({"fusion": "film"}, "head.fusion: unknown 'film'; known: none, rca"),
        ({"slot": 3}, "head.slot: no such key; did you mean head.slots"),
        ({"slots": 0}, "at least 1"),
        ({"heads": 5}, "no multiple"),
    ],
)
def test_a_wrong_head_is_named(change, message):
    with pytest.raises(VLSegError, match=message):
        build_mask_head(24, {**HEAD, **change})
