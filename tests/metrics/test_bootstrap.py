"""Bootstrap intervals against scipy-free restatements and hand cases."""

import numpy as np
import pytest

from vlseg.metrics.bootstrap import interval, ratios, with_intervals
from vlseg.metrics.referring import Case, summary


def cases(n=400, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        union = int(rng.integers(10, 100))
        absent = bool(rng.random() < 0.2)
        made.append(
            Case(
                image=str(i // 4),
                kind="name",
                intersection=0 if absent else int(rng.integers(0, union)),
                union=union,
                absent=absent,
                found=bool(rng.random() < 0.7),
                score=0.5,
                area=union,
                extent=30.0,
                wrong=bool(rng.random() < 0.1),
                has_distractor=bool(rng.random() < 0.5),
            )
        )
    return made


def test_values_are_those_of_the_summary():
    made = cases()
    plain, wide = summary(made), with_intervals(made)
    assert set(wide) == set(plain) - {"cases"}
    for name, entry in wide.items():
        assert entry["value"] == pytest.approx(plain[name], abs=1e-4)
        assert entry["ci95"][0] < entry["value"] < entry["ci95"][1]


def test_interval_covers_like_the_normal_approximation():
    """For a mean over independent images the percentile interval is close to mean ± 1.96 standard errors."""
    values = np.random.default_rng(1).random(500)
    mean, (low, high) = interval([(str(i), v, 1.0) for i, v in enumerate(values)])
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - error, abs=0.15 * error)
    assert high == pytest.approx(mean + error, abs=0.15 * error)


def test_whole_images_are_drawn():
    """Four equal cases an image tell no more than one: the interval must not shrink."""
    one = [(str(i), v, 1.0) for i, v in enumerate(np.random.default_rng(2).random(100))]
    assert interval(one)[1] == pytest.approx(interval([t for t in one for _ in range(4)])[1])


def test_ratios_of_an_absent_case():
    case = Case("1", "absent", 0, 5, True, True, 0.9, 0, 0.0, False, False)
    assert ratios([case]) == {"N-acc": [("1", 0.0, 1.0)]}
