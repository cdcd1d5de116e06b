"""Metrics on hand-worked masks."""

import numpy as np
import pytest

from vlseg.metrics.referring import by_kind, case_of, summary


def case(prediction, truth, distractors=(), **facts):
    given = {"image": "1", "kind": "name", "absent": False, "found": True, "score": 0.9, "extent": 30.0}
    arrays = [np.array(d, bool) for d in distractors]
    return case_of(np.array(prediction, bool), np.array(truth, bool), arrays, **{**given, **facts})


def test_summary_by_hand():
    cases = [
        case([[1, 1, 0, 0]], [[1, 0, 0, 0]]),  # IoU 1/2: not above 0.5
        case([[1, 1, 1, 0]], [[1, 1, 1, 1]]),  # 3/4
        case([[0, 0, 0, 0]], [[1, 0, 0, 0]], found=False),  # rejected though there
        case([[0, 0, 0, 0]], [[0, 0, 0, 0]], absent=True, found=False, kind="absent"),
        case([[1, 0, 0, 0]], [[0, 0, 0, 0]], absent=True, kind="absent"),
    ]
    got = summary(cases)
    assert got["mIoU"] == pytest.approx((0.5 + 0.75 + 0) / 3)
    assert got["cIoU"] == pytest.approx((1 + 3) / (2 + 4 + 1))
    assert got["P@0.5"] == pytest.approx(1 / 3)
    assert got["T-acc"] == pytest.approx(2 / 3)
    assert got["N-acc"] == pytest.approx(1 / 2)
    assert set(by_kind(cases)) == {"name", "absent"}
    assert [c.iou for c in cases[3:]] == [1.0, 0.0]


def test_wrong_instance():
    right = case([[1, 1, 0, 0]], [[1, 1, 0, 0]], [[[0, 0, 1, 1]]])
    wrong = case([[0, 1, 1, 1]], [[1, 1, 0, 0]], [[[0, 0, 1, 1]]])
    assert (right.wrong, wrong.wrong) == (False, True)
    assert summary([right, wrong])["wrong-instance"] == 0.5
