"""The scores over cases, by hand."""

import pytest

from vlseg.metrics.bootstrap import with_intervals
from vlseg.metrics.case import Case
from vlseg.metrics.nontarget import Activation
from vlseg.metrics.referring import SCORES, by_kind, summary, value


def case(intersection=0, union=0, **facts):
    return Case("a", "1", intersection=intersection, union=union, **facts)


CASES = [
    case(1, 2, kind="name"),  # IoU 1/2: not above 0.5
    case(3, 4, kind="name"),
    case(0, 1, status="absent", kind="name"),  # rejected though there
    case(0, 0, absent=True, status="absent", kind="absent"),
    case(0, 5, absent=True, kind="absent"),
]


def test_summary_by_hand():
    got = summary(CASES)
    assert got["cases"] == 5
    assert got["mIoU"] == pytest.approx((0.5 + 0.75 + 0) / 3)
    assert got["gIoU"] == pytest.approx((0.5 + 0.75 + 0 + 1 + 0) / 5)
    assert got["cIoU"] == pytest.approx((1 + 3) / (2 + 4 + 1 + 5))
    assert got["P@0.5"] == got["P@0.6"] == got["P@0.7"] == pytest.approx(1 / 3)
    assert got["P@0.8"] == got["P@0.9"] == 0
    assert got["T-acc"] == pytest.approx(2 / 3)
    assert got["N-acc"] == pytest.approx(1 / 2)


def test_scores_that_no_case_counts_for_are_left_out():
    assert set(summary(CASES[:2])) == {"cases", *SCORES} - {
        "N-acc", "boundary-IoU", "buffered-IoU", "buffered-IoU-dilated", "NTA-rate", "NTA-mass", "wrong-instance"
    }  # fmt: skip
    assert summary([]) == {"cases": 0}
    assert value("cIoU", CASES[3:]) is None  # without a target it could be nothing but 0
    assert set(with_intervals(CASES[3:])) == set(summary(CASES[3:])) - {"cases"} == {"gIoU", "N-acc"}


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_precision_is_strict(threshold):
    name, exact = f"P@{threshold}", round(threshold * 10)
    assert value(name, [case(exact, 10)]) == 0
    assert value(name, [case(exact * 100 + 1, 1000)]) == 1


def test_non_target_activation_is_over_the_cases_that_have_a_rival():
    active = case(1, 9, activation=Activation(0.75, 0.5, True))
    half = case(1, 9, activation=Activation(0.5, 0.25, False))  # 0.5 is not above 0.5
    got = summary([active, half, *CASES])
    assert (got["NTA-rate"], got["NTA-mass"], got["wrong-instance"]) == (0.5, 0.375, 0.5)


def test_by_kind():
    kinds = by_kind(CASES)
    assert set(kinds) == {"name", "absent"}
    assert kinds["name"]["cases"] == 3
    assert kinds["absent"]["N-acc"] == 0.5
