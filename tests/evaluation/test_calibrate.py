"""Calibration on data whose truth is known."""

import numpy as np
import pytest

from vlseg.evaluation.calibrate import best_threshold, platt


def test_platt_finds_the_truth():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, 20_000)
    present = rng.random(len(x)) < 1 / (1 + np.exp(-(0.7 * x - 1.2)))
    assert platt(x, present) == pytest.approx((0.7, -1.2), abs=0.06)


def test_platt_of_separable_data_stays_finite():
    a, b = platt(np.array([-5.0, -4.0, 4.0, 5.0]), np.array([False, False, True, True]))
    assert 0 < a < 10
    assert abs(b) < 1


def test_best_threshold():
    score = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.8])
    present = np.array([False, False, False, True, True, True])
    assert 0.3 < best_threshold(score, present) <= 0.6
