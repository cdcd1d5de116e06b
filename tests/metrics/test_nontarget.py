"""Non-target activation by hand, and masks against probability maps."""

import numpy as np
import pytest

from vlseg.masks import rle as codec
from vlseg.metrics.nontarget import Activation, activation, soft_activation
from vlseg.types import VLSegError


def row(*pixels):
    return np.array([pixels], bool)


def both_ways(prediction, target, *distractors):
    """From run lengths and from arrays; they must agree."""
    one = activation(codec.encode(prediction), codec.encode(target), [codec.encode(d) for d in distractors])
    other = soft_activation(prediction.astype(np.float32), target, distractors)
    assert one == other
    return one


def test_by_hand():
    target, near, far = row(1, 1, 0, 0, 0, 0), row(0, 0, 1, 1, 0, 0), row(0, 0, 0, 0, 1, 1)
    assert both_ways(target, target, near, far) == Activation(0.0, 0.0, False)
    # half of `near` is on, 1 of 3 predicted pixels strays; the target is still hit best: 2/3 against 1/4
    assert both_ways(row(1, 1, 1, 0, 0, 0), target, near, far) == Activation(0.5, pytest.approx(1 / 3), False)
    assert both_ways(row(0, 1, 1, 1, 0, 0), target, near, far) == Activation(1.0, pytest.approx(2 / 3), True)
    assert not both_ways(row(1, 1, 1, 0, 0, 0), target, near).active  # a half is not above a half
    assert both_ways(row(0, 0, 1, 1, 0, 0), target, near).active
    # as much of the one as of the other: the distractor must win, not draw
    assert both_ways(row(0, 1, 1, 0, 0, 0), target, near) == Activation(0.5, 0.5, False)
    # an empty answer activates nothing
    assert both_ways(row(0, 0, 0, 0, 0, 0), target, near) == Activation(0.0, 0.0, False)


def test_what_a_distractor_shares_with_the_target_is_no_stray():
    target, over = row(1, 1, 0, 0), row(0, 1, 1, 0)
    got = both_ways(row(1, 1, 0, 0), target, over)
    assert got == Activation(0.5, 0.0, False)


def test_distractors_without_a_pixel_do_not_count():
    target, nothing = row(1, 0), row(0, 0)
    assert both_ways(target, target, nothing) is None
    assert both_ways(row(0, 1), target, nothing, row(0, 1)) == Activation(1.0, 1.0, True)


def test_random_masks_both_ways():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(500):
        masks = rng.random((2 + int(rng.integers(1, 4)), 6, 7)) < rng.choice([0.2, 0.5, 0.8])
        got = activation(*map(codec.encode, masks[:2]), [codec.encode(d) for d in masks[2:]])
        want = soft_activation(masks[0].astype(float), masks[1], list(masks[2:]))
        assert (got.peak, got.stray) == pytest.approx((want.peak, want.stray))
        assert got.wrong == want.wrong
        wrong += got.wrong
    assert 50 < wrong < 450


def test_probabilities():
    p = np.array([[0.9, 0.6, 0.4, 0.1]])
    got = soft_activation(p, row(1, 0, 0, 0), [row(0, 1, 1, 0)])
    assert (got.peak, got.stray, got.wrong) == (pytest.approx(0.5), pytest.approx(0.5), False)
    with pytest.raises(VLSegError, match="one shape"):
        soft_activation(p, row(1, 0), [])
