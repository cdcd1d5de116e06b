"""Pixels that go together: what is averaged over a group, its loss, and that queries stay apart in every head."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_heads import QUERIES, WORDS, inputs, tiny_head

from vlseg.losses.group import group_loss, with_outside
from vlseg.models.features import join_features, split_features
from vlseg.models.grouping import FEW, MOST_CELLS, SURE, Grouping, Groups, middles, scattered, to_cells
from vlseg.models.presets import build_preset
from vlseg.systems.onnx_model import features_of, tensors_of


def told(owner, sharpness=40.0):
    """`Groups` of a map (h, w) of group numbers: a pixel goes with the cells of its own group, in proportion."""
    kinds = F.one_hot(owner, int(owner.max()) + 1).permute(2, 0, 1)[None].float()
    nowhere = torch.zeros_like(kinds[:, :1])
    cells = torch.cat([nowhere, nowhere, kinds, nowhere], 1)
    return Groups(torch.cat([nowhere, nowhere, sharpness * kinds], 1), to_cells(cells))


def loss_of(groups, regions, open_=None):
    """The loss as the objective asks for it."""
    things = with_outside(regions, open_)
    return group_loss(groups.average(things).flatten(2), things.flatten(2))


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_average_is_the_softmax_written_out(height, width, dims, count, seed):
    random = torch.Generator().manual_seed(seed)
    pixels, cells, values = (
        torch.randn(2, n, height, width, generator=random) for n in (2 + dims, 2 + dims + 1, count)
    )
    groups = Groups(pixels, to_cells(cells))
    asked, given = pixels.flatten(2), groups.cells.flatten(2)
    distance = torch.cdist(asked[:, :2].transpose(1, 2), given[:, :2].transpose(1, 2))
    alike = torch.einsum("bei,bej->bij", asked[:, 2:], given[:, 2:-1])
    table = (alike - distance.square() + given[:, -1:]).softmax(-1)
    expected = torch.einsum("bij,bnj->bni", table, to_cells(values).flatten(2)).view_as(values)
    torch.testing.assert_close(groups.average(values), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (32, 32), (45, 70), (4, 401)])
def test_a_quarter_of_the_pixels_speaks_for_all(height, width):
    places = scattered(height, width)
    assert (places.diff() > 0).all()
    y, x = places // width, places % width
    if height * width < FEW:
        assert len(places) == height * width
    else:
        assert len(places) == pytest.approx(height * width / 4, rel=0.02)
        corners = torch.bincount(2 * (y % 2) + x % 2, minlength=4)
        assert corners.min() > 0.7 * corners.max()
    torch.manual_seed(0)
    groups = Groups(torch.randn(2, 5, height, width), to_cells(torch.randn(2, 6, height, width)))
    values = torch.rand(2, 3, height, width)
    torch.testing.assert_close(groups.average_at(values, places), groups.average(values).flatten(2)[..., places])


def test_groups_survive_16_bits():
    """Under sharding what passes between modules is cast: places keep a fraction of a pixel, and numbers still fit."""
    torch.manual_seed(0)
    grouping = Grouping(8, 8)
    groups = grouping(torch.randn(1, 8, 64, 64), torch.randn(1, 8, 32, 32))
    values = torch.rand(1, 3, 64, 64)
    expected = groups.average(values)
    half = Groups(groups.pixels.bfloat16(), groups.cells.bfloat16()).average(values.bfloat16())
    assert half.dtype == torch.float32
    assert expected.std() > 0.02
    assert (half - expected).abs().max() < 0.01


def test_a_thing_is_taken_whole_or_left():
    """A mask that has three quarters of one thing and a quarter of its neighbour becomes the one thing."""
    owner = torch.zeros(8, 12, dtype=torch.long)
    owner[:, 4:8], owner[:, 8:] = 1, 2
    logits = torch.full((1, 1, 8, 12), -2.0)
    logits[..., :6, 4:8] = 2.0
    logits[..., :2, 8:] = 2.0
    settled = told(owner).settle(logits, torch.ones(1, 1))[0, 0]
    assert torch.equal(settled > 0, owner == 1)
    low, high = torch.tensor([-2.0, 2.0]).sigmoid()
    torch.testing.assert_close(settled[0, 4], (0.75 * high + 0.25 * low).logit(), atol=1e-3, rtol=0)
    torch.testing.assert_close(settled[7, 8], (0.25 * high + 0.75 * low).logit(), atol=1e-3, rtol=0)


def test_a_query_that_follows_no_group_keeps_its_pixels():
    logits = torch.randn(1, 2, 8, 12)
    share = torch.tensor([[0.0, 1.0]])
    settled = told(torch.zeros(8, 12, dtype=torch.long)).settle(logits, share)
    torch.testing.assert_close(settled[0, 0], logits[0, 0], atol=1e-4, rtol=0)
    assert settled[0, 1].std() < 1e-5  # all pixels are one thing
    most = told(torch.zeros(2, 2, dtype=torch.long)).settle(torch.full((1, 1, 2, 2), 80.0), torch.ones(1, 1))
    torch.testing.assert_close(most, torch.full_like(most, 1 - SURE).logit())


def test_group_loss_by_hand():
    """Two regions of four columns each and four of background, all pixels in one group of twelve columns."""
    regions = torch.zeros(1, 3, 8, 12)
    regions[:, 0, :, :4], regions[:, 1, :, 4:8] = 1, 1  # the third is empty
    alike = told(torch.zeros(8, 12, dtype=torch.long))
    torch.testing.assert_close(loss_of(alike, regions), torch.tensor([3.0]).log())
    owner = torch.arange(12).div(4, rounding_mode="floor").expand(8, 12)
    assert loss_of(told(owner), regions) < 1e-3
    open_ = torch.zeros(1, 8, 12)
    open_[..., 8:] = 1
    torch.testing.assert_close(loss_of(alike, regions, open_), torch.tensor([3.0]).log())
    halves = (owner == 0).long() + (owner == 2).long() * (torch.arange(12) > 9)
    assert loss_of(told(halves), regions, open_) < loss_of(told(halves), regions)  # of what is open nobody asks


def test_a_part_and_its_whole_do_not_contradict_each_other():
    regions = torch.zeros(1, 2, 8, 8)
    regions[:, 0, :, :4] = 1
    regions[:, 1, :4, :4] = 1
    owner = regions[0, 0].long() + regions[0, 1].long()
    assert loss_of(told(owner), regions) < 1e-3


def test_things_that_touch_and_look_alike_are_learned_apart():
    """Four squares in one row, all alike: features hold nothing but where a pixel is."""
    torch.manual_seed(0)
    grouping = Grouping(8, 8)
    with torch.no_grad():
        grouping.nearness.fill_(-4.0)  # to begin with, things are not told apart by where they are
    seen = F.pad(middles(16, 32, torch.device("cpu")), (0, 0, 0, 0, 0, 6))[None]
    regions = torch.zeros(1, 4, 16, 32)
    for i in range(4):
        regions[:, i, 4:12, 8 * i : 8 * i + 8] = 1
    optimizer = torch.optim.AdamW(grouping.parameters(), lr=1e-2)

    def loss():
        return loss_of(grouping(seen, F.avg_pool2d(seen, 2)), regions).mean()

    before = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in grouping.parameters())
    assert before > 0.8
    assert loss().item() < 0.3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (64, 64), (80, 80), (256, 256), (1, 4000)])
def test_cells_of_any_map(height, width):
    held = to_cells(torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width))
    assert 1 <= held[0, 0].numel() <= MOST_CELLS
    assert held.shape[-1] <= -(-width // 2)
    if height % 16 == width % 16 == 0:
        torch.testing.assert_close(held.mean(), torch.tensor((height * width - 1) / 2))


@pytest.fixture(scope="module")
def grouped():
    """grouped(kind, slots): a model whose masks follow groups that differ from pixel to pixel, and its processor."""

    def strengthen(model):
        model.pixel_decoder.grouping.look.weight.mul_(20)
        model.mask_head.to_mask[-1].weight.mul_(4)

    @functools.cache
    def pair(kind="dot", slots=1):
        return tiny_head(strengthen, lambda out: out.coarse_logits[-2], kind=kind, slots=slots, group=8)

    return pair


@pytest.mark.parametrize(("kind", "slots"), [("dot", 1), ("dot", 3), ("eomt", 1), ("sam", 1)])
@torch.no_grad()
def test_packed_equals_one_by_one(grouped, kind, slots):
    model, processor = grouped(kind, slots)
    packed = model(**inputs(processor))
    change = (packed.coarse_logits[-1] - packed.coarse_logits[-2]).abs().mean()
    assert change > 0.01
    share = (packed.mask_logits > 0).float().mean((0, 2, 3))
    assert ((share > 0.02) & (share < 0.98)).all(), share
    for k, text in enumerate(QUERIES):
        single = model(**inputs(processor, [[text]]))
        torch.testing.assert_close(packed.mask_logits[0, k], single.mask_logits[0, 0], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_groups_travel_with_the_image(grouped):
    """Kept encodings and ONNX graphs hand them on, and a batch can be taken apart."""
    model, processor = grouped()
    given = inputs(processor)
    two = torch.cat([given.pop("pixel_values"), inputs(processor, seed=1)["pixel_values"]])
    expected = model(pixel_values=two[1:], **given).mask_logits
    both = model.encode_image(two)
    parts = split_features(both, 2)
    torch.testing.assert_close(join_features(parts).pixels.groups.cells, both.pixels.groups.cells)
    other = features_of(tensors_of(parts[1]), parts[1].tokens.grid, parts[1].tokens.tiles)
    for features in (parts[1], other):
        torch.testing.assert_close(model(image_features=features, **given).mask_logits, expected, atol=1e-4, rtol=1e-5)
    assert (model(image_features=parts[0], **given).mask_logits - expected).abs().max() > 0.01


def test_without_groups_there_are_none():
    model, processor = build_preset("tiny", WORDS, nouns=7, seed=3)
    assert model.pixel_decoder.grouping is None
    assert model.mask_head.follow is None
    assert model(**inputs(processor)).groups is None
