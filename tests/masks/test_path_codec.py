"""Masks to path tokens and back: exact reports, one string a mask, every shape, and what the codec is worth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks import rle as runs
from vlseg.masks.path_codec import Encoded, PathCodec
from vlseg.masks.svg import path_to_mask
from vlseg.types import RLE, VLSegError

from .strategies import blobs, checkerboard, masks, nested
from .test_tokens import strings

COCO = Path(__file__).parents[2] / "../shared/data/coco-small/instances.json"
CODECS = [PathCodec(), PathCodec(curves=True), PathCodec(grid=128, joint=False), PathCodec(grid=17, box_bins=50)]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b) if (a | b).any() else 1.0


def check(codec: PathCodec, mask: np.ndarray, found: Encoded) -> np.ndarray:
    """All that must hold of any encoding; returns what it decodes to."""
    vocabulary = codec.vocabulary
    drawn = codec.decode(found.tokens, mask.shape)
    assert drawn.shape == mask.shape
    assert found.iou == iou(drawn, mask)
    assert codec.decode_rle(found.tokens, mask.shape) == runs.encode(drawn)
    np.testing.assert_array_equal(path_to_mask(codec.svg(found.tokens, mask.shape), mask.shape), drawn)
    assert codec.write(*vocabulary.read(found.tokens)) == found.tokens, "not in canonical order"
    return drawn


@settings(max_examples=25)
@given(
    st.sampled_from(CODECS), st.lists(masks(), min_size=1, max_size=3), st.sampled_from([0, 1e-3, 0.03]), st.booleans()
)
def test_any_masks(codec: PathCodec, some: list[np.ndarray], price: float, fast: bool):
    found = codec.encode_many(some, price, effort="fast" if fast else "thorough")
    for mask, encoded in zip(some, found, strict=True):
        check(codec, mask, encoded)
        assert (len(encoded.tokens) == 1) == (not mask.any())
        # Nothing but a box would leave this much.
        assert encoded.iou >= mask[np.ix_(mask.any(1), mask.any(0))].mean() - 0.5 if mask.any() else encoded.iou == 1
    alone = codec.encode_many([np.asfortranarray(some[-1])], price, effort="fast" if fast else "thorough")
    assert alone == found[-1:], "neighbours on the canvas, or the order of memory, make a difference"


@settings(max_examples=25)
@given(masks())
def test_no_pixel_is_lost_where_tokens_cost_nothing(mask: np.ndarray):
    (found,) = PathCodec().encode_many([mask], price=0)
    np.testing.assert_array_equal(check(PathCodec(), mask, found), mask)


def test_no_pixel_of_a_large_mask_is_lost_either():
    """One that the search scales down, on a grid that is fine enough."""
    mask = blobs(300, 400, 12)
    codec = PathCodec(1024, joint=False)
    (found,) = codec.encode_many([mask], price=0, effort="fast")
    np.testing.assert_array_equal(check(codec, mask, found), mask)


@given(strings(), st.integers(1, 30), st.sampled_from([1, 3, 40, 20_000]))
def test_whatever_the_grammar_accepts_decodes(case, height: int, width: int):
    vocabulary, tokens = case
    codec = PathCodec(vocabulary.grid, vocabulary.box_bins, vocabulary.joint, vocabulary.curves)
    drawn = codec.decode(tokens, (height, width))
    assert drawn.shape == (height, width)
    np.testing.assert_array_equal(path_to_mask(codec.svg(tokens, (height, width)), (height, width)), drawn)
    assert all(len(ring) >= 3 for ring in codec.rings(tokens, (height, width)))
    np.testing.assert_array_equal(codec.decode(tokens, (height, width)), drawn)


def square(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


HOLE = square((60, 80), 5, 5, 50, 70) & ~square((60, 80), 15, 20, 40, 50)
ISLAND = HOLE | square((60, 80), 22, 28, 33, 41)


@pytest.mark.parametrize("codec", CODECS[:3])
@pytest.mark.parametrize(
    ("mask", "floor", "longest"),
    [
        pytest.param(np.zeros((9, 9), bool), 1, 1, id="empty"),
        pytest.param(np.ones((480, 640), bool), 1, 5, id="full"),
        pytest.param(square((480, 640), 7, 9, 8, 10), 1, 5, id="one pixel"),
        pytest.param(square((480, 640), 0, 639, 1, 640), 1, 5, id="one pixel in a corner"),
        pytest.param(square((480, 640), 100, 3, 101, 630), 1, 5, id="horizontal line"),
        pytest.param(square((480, 640), 3, 100, 470, 101), 1, 5, id="vertical line"),
        pytest.param(np.eye(40, dtype=bool), 0.95, 90, id="diagonal line"),
        pytest.param(HOLE, 0.99, 40, id="hole"),
        pytest.param(ISLAND, 0.99, 60, id="island in a hole"),
        pytest.param(nested(15, 15), 0.9, 90, id="nested"),
        pytest.param(square((40, 40), 2, 2, 9, 9) | square((40, 40), 30, 30, 39, 38), 0.99, 40, id="far apart"),
    ],
)
def test_shapes(codec: PathCodec, mask: np.ndarray, floor: float, longest: int):
    (found,) = codec.encode_many([mask], price=3e-4)
    check(codec, mask, found)
    assert found.iou >= floor
    assert len(found.tokens) <= longest


def test_holes_and_islands_are_rings_of_their_own():
    codec = PathCodec()
    rings = codec.vocabulary.read(codec.encode(ISLAND))[1]
    assert len(rings) == 3
    assert [ring.doubled_area for ring in rings] == sorted((r.doubled_area for r in rings), reverse=True)


def test_pixels_that_touch_at_corners_are_one_ring():
    codec = PathCodec()
    assert len(codec.vocabulary.read(codec.encode(np.eye(30, dtype=bool), price=1e-4))[1]) == 1


@pytest.mark.parametrize("shape", [(12, 20_000), (20_000, 12), (600, 20_000)])
def test_very_wide_masks(shape: tuple[int, int]):
    y, x = (v / n for v, n in zip(np.ogrid[: shape[0], : shape[1]], shape, strict=True))
    mask = ((x - 0.5) / 0.45) ** 2 + ((y - 0.5) / 0.42) ** 2 < 1
    assert 0.05 < mask.mean() < 0.95
    (found,) = PathCodec().encode_many([mask])
    check(PathCodec(), mask, found)
    assert found.iou > 0.95
    small = np.zeros(shape, dtype=bool)
    small[2:9, 5:9] = True  # an object of few pixels, in bins of 20
    (found,) = PathCodec().encode_many([small], price=0)
    check(PathCodec(), small, found)
    assert found.iou > 0.9


def test_a_noisy_mask_takes_no_time_or_tokens_without_end():
    mask = np.random.default_rng(0).random((90, 90)) < 0.5
    (found,) = PathCodec().encode_many([mask])
    check(PathCodec(), mask, found)
    (found,) = PathCodec().encode_many([checkerboard(30, 40)], budget=50)
    assert len(found.tokens) <= 50


@pytest.mark.parametrize("codec", CODECS[:3])
def test_more_tokens_where_they_cost_less(codec: PathCodec):
    some = [blobs(80, 100, 8, seed) for seed in range(3)]
    prices = [1e-4, 1e-3, 1e-2]
    points = codec.trade_offs(some, prices)
    tokens = np.array([[len(p.tokens) for p in mine] for mine in points])
    worth = np.array([[p.iou for p in mine] for mine in points])
    assert (np.diff(tokens.mean(axis=0)) < 0).all()
    assert (np.diff(worth.mean(axis=0)) < 0).all()
    assert worth[:, 0].min() > 0.985
    # At each price, what was found for it is the best of the three, or nearly.
    value = worth[:, None, :] - np.array(prices)[:, None] * tokens[:, None, :]
    assert (np.diagonal(value, axis1=1, axis2=2) >= value.max(axis=2) - 0.01).all()


def test_thorough_is_better_than_fast():
    some = [blobs(80, 100, 5, seed) for seed in range(4)]
    loss = {
        effort: np.mean([1 - e.iou + 1e-3 * len(e.tokens) for e in PathCodec().encode_many(some, 1e-3, effort=effort)])
        for effort in ("fast", "thorough")
    }
    assert loss["thorough"] < loss["fast"]


def test_curves_are_taken_where_they_pay():
    y, x = np.indices((300, 300))
    disc = (x - 150) ** 2 + (y - 150) ** 2 < 140**2
    found = {
        curves: PathCodec(512, joint=False, curves=curves).encode_many([disc], 2e-4)[0] for curves in (False, True)
    }
    codec = PathCodec(512, joint=False, curves=True)
    check(codec, disc, found[True])
    assert sum(ring.cubics for ring in codec.vocabulary.read(found[True].tokens)[1]) >= 2
    assert " C " in codec.svg(found[True].tokens, disc.shape)
    assert len(found[True].tokens) < 0.8 * len(found[False].tokens)
    assert found[True].iou > 0.995


def test_encoding_what_was_decoded():
    """The pixels of a path lose little more, and need no more tokens."""
    codec = PathCodec()
    first = codec.encode_many([blobs(90, 120, 7, seed) for seed in range(6)])
    drawn = [codec.decode(e.tokens, (90, 120)) for e in first]
    second = codec.encode_many(drawn)
    assert np.mean([len(e.tokens) for e in second]) <= np.mean([len(e.tokens) for e in first]) + 0.5
    assert np.mean([e.iou for e in second]) > np.mean([e.iou for e in first])


def test_budgets():
    codec = PathCodec()
    some = [blobs(40, 60, sigma, 1) for sigma in (3, 6, 12)] + [np.zeros((5, 5), bool)]
    found = codec.encode_many(some, budget=90, effort="fast")
    assert 70 < sum(len(e.tokens) for e in found) <= 90
    alike = [codec.encode_many([mask], budget=30, effort="fast")[0].iou for mask in some[:3]]
    assert np.mean([e.iou for e in found[:3]]) > np.mean(alike)
    for mask, encoded in zip(some, found, strict=True):
        check(codec, mask, encoded)
    worth = [codec.encode_many(some[1:2], budget=n, effort="fast")[0] for n in (1, 5, 12, 40)]
    assert [len(e.tokens) for e in worth[:2]] == [1, 5]
    assert [e.iou for e in worth] == sorted(e.iou for e in worth)
    with pytest.raises(VLSegError, match="3 tokens is too small for 4 masks: 4 is the least"):
        codec.encode_many(some, budget=3)


def test_rles_are_masks():
    mask = blobs(50, 70, 5)
    codec = PathCodec()
    assert codec.encode(runs.encode(mask)) == codec.encode(mask)
    assert codec.encode_many([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PathCodec(grid=1), "2 to 256 places"),
        (lambda: PathCodec(grid=512), "2 to 256 places"),
        (lambda: PathCodec(grid=5000, joint=False), "2 to 4096"),
        (lambda: PathCodec(box_bins=1), "bins"),
        (lambda: PathCodec().encode(np.zeros((3, 3))), "bool array or an RLE"),
        (lambda: PathCodec().encode(np.zeros(3, bool)), "bool array or an RLE"),
        (lambda: PathCodec().encode({"size": [2, 2], "counts": "zz"}), "RLE"),
        (lambda: PathCodec().encode(np.eye(3, dtype=bool), price=-1), "prices of a token"),
        (lambda: PathCodec().encode(np.eye(3, dtype=bool), price=float("nan")), "prices of a token"),
        (lambda: PathCodec().trade_offs([np.eye(3, dtype=bool)], [0.1, 0.01]), "ascending"),
        (lambda: PathCodec().encode(np.eye(3, dtype=bool), price=1, budget=9), "not both"),
        (lambda: PathCodec().encode(np.eye(3, dtype=bool), effort="hard"), "no effort 'hard'"),  # type: ignore[arg-type]
        (lambda: PathCodec().decode([5, 5], (4, 4)), "breaks off after 2 tokens"),
    ],
)
def test_wrong_calls(call, message: str):
    with pytest.raises(VLSegError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def photographs(count: int) -> list[RLE]:
    if not COCO.is_file():
        pytest.skip("needs ../shared/data/coco-small")
    content = json.loads(COCO.read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    instances = [a for a in content["annotations"] if not a["iscrowd"]]
    chosen = np.random.default_rng(3).permutation(len(instances))[:count]
    return [runs.from_coco(instances[i]["segmentation"], *sizes[instances[i]["image_id"]]) for i in chosen]


@pytest.mark.parametrize(("codec", "tokens"), [(PathCodec(), 26), (PathCodec(256, joint=False), 45)])
def test_instances_of_photographs(codec: PathCodec, tokens: float):
    """A sample; benchmarks/paths.py has all of them."""
    some = photographs(40)
    found = codec.encode_many(some, price=5e-4)
    for mask, encoded in zip(some, found, strict=True):
        check(codec, runs.decode(mask), encoded)
    assert np.mean([e.iou for e in found]) > 0.99
    assert np.mean([len(e.tokens) for e in found]) < tokens
