"""The path codec: any mask becomes a string of its grammar, any such string becomes a mask, and both keep still."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks import rle as codec
from vlseg.masks.path_codec import PathCodec

CODEC = PathCodec()


def blobs(seed: int, size: tuple[int, int]) -> np.ndarray:
    """A mask of a few discs, some cut out."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, bool)
    for k in range(4):
        y, x = random.uniform(0, size[0]), random.uniform(0, size[1])
        disc = (rows - y) ** 2 + (columns - x) ** 2 < random.uniform(3, 0.4 * min(size)) ** 2
        mask = mask & ~disc if k == 3 else mask | disc
    return mask


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max(1, (a | b).sum())


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_comes_back_and_its_iou_is_what_is_said(seed):
    mask = blobs(seed, (90, 120))
    assert 0.02 < mask.mean() < 0.95
    tokens = CODEC.encode(mask)
    assert CODEC.encode(mask) == tokens
    assert CODEC.vocabulary.accepts(tokens)
    back = CODEC.decode(tokens, mask.shape)
    assert iou(mask, back) > 0.9
    assert (codec.decode(CODEC.decode_rle(tokens, mask.shape)) == back).all()
    told = CODEC.encode_many([mask])[0]
    assert told.iou == pytest.approx(iou(mask, CODEC.decode(told.tokens, mask.shape)))


@pytest.mark.parametrize("mask", [np.zeros((9, 7), bool), np.ones((9, 7), bool), np.eye(9, dtype=bool)])
def test_empty_full_and_thin(mask):
    tokens = CODEC.encode(mask)
    assert CODEC.vocabulary.accepts(tokens)
    back = CODEC.decode(tokens, mask.shape)
    assert back.shape == mask.shape
    assert back.any() == mask.any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 60))
def test_any_string_of_the_grammar_decodes(seed, height, width):
    random, words = np.random.default_rng(seed), CODEC.vocabulary
    tokens: list[int] = []
    for _ in range(40):
        allowed = np.flatnonzero(words.valid_next(words.run(tokens)[-1]))
        if not len(allowed):
            break
        kind = int(random.choice(allowed))
        tokens.append(int(random.choice(np.flatnonzero(words.token_class == kind))))
    whole = words.finish(tokens)
    assert words.accepts(whole)
    mask = CODEC.decode(whole, (height, width))
    assert mask.shape == (height, width)
    assert (CODEC.decode(whole, (height, width)) == mask).all()
