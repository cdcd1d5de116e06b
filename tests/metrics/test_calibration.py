"""Calibration error and risk-coverage against loops over their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.metrics.calibration import RiskCoverage, aurc, calibration_error, excess_aurc, trust
from vlseg.metrics.case import Case


def test_calibration_error_by_hand():
    """Two bins of 15 are used: 0.90 and 0.95 with one of two right, 0.05 with none of one right."""
    got = calibration_error(np.array([0.95, 0.94, 0.05]), np.array([True, False, False]))
    assert got == pytest.approx((abs(0.95 + 0.94 - 1) + 0.05) / 3)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_calibration_error_bin_by_bin():
    rng = np.random.default_rng(0)
    score, present = rng.random(500), rng.random(500) < 0.6
    total = 0.0
    for b in range(15):
        upper = score < (b + 1) / 15 if b < 14 else score <= 1
        members = (score >= b / 15) & upper
        if members.any():
            total += members.mean() * abs(score[members].mean() - present[members].mean())
    assert calibration_error(score, present) == pytest.approx(total)
    calibrated = rng.random(20_000)
    assert calibration_error(calibrated, rng.random(20_000) < calibrated) < 0.02


def literal_aurc(confidence, loss, rounds=4000):
    """The mean over coverages, ties in random order, averaged over many orders."""
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(rounds):
        shuffled = rng.permutation(len(loss))
        order = shuffled[np.argsort(-confidence[shuffled], kind="stable")]
        areas.append(np.mean(np.cumsum(loss[order]) / np.arange(1, len(loss) + 1)))
    return np.mean(areas), 4 * np.std(areas) / np.sqrt(rounds)


@pytest.mark.parametrize("levels", [1, 3, 40])
def test_aurc_is_the_mean_risk(levels):
    rng = np.random.default_rng(levels)
    confidence, loss = rng.permutation(40) % levels / levels, rng.random(40)
    want, slack = literal_aurc(confidence, loss, 1 if levels == 40 else 4000)
    assert aurc(confidence, loss) == pytest.approx(want, abs=slack + 1e-12)
    coverage, risk = RiskCoverage(confidence, loss).curve()
    assert aurc(confidence, loss) == pytest.approx(risk.mean())
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(loss.mean())


def test_aurc_by_hand():
    loss = np.array([0.0, 1.0])
    assert aurc(np.array([0.9, 0.1]), loss) == pytest.approx((0 + 0.5) / 2)
    assert aurc(np.array([0.1, 0.9]), loss) == pytest.approx((1 + 0.5) / 2)
    assert aurc(np.array([0.5, 0.5]), loss) == pytest.approx(0.5)
    assert excess_aurc(np.array([0.9, 0.1]), loss) == 0
    assert excess_aurc(np.array([0.1, 0.9]), loss) == pytest.approx(0.5)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12))
def test_weights_are_repetitions(rows):
    confidence, loss, times = np.array(rows, float).T
    if not times.sum():
        times[0] = 1
    repeated = [np.repeat(values, times.astype(int)) for values in (confidence, loss)]
    got = RiskCoverage(confidence, loss).area(times[None])
    assert got[0] == pytest.approx(aurc(*repeated))


def test_confidence_in_an_answer():
    cases = [
        Case("a", "1", score=0.9, status="found", intersection=3, union=4),
        Case("b", "1", score=0.2, status="absent", absent=True),
        Case("c", "1", score=0.7, status="failed"),
    ]
    confidence, loss = trust(cases)
    assert confidence.tolist() == pytest.approx([0.9, 0.8, 0.0])
    assert loss.tolist() == pytest.approx([0.25, 0.0, 1.0])
