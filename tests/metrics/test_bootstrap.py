"""Bootstrap intervals against scipy's bootstrap, and paired differences."""

import numpy as np
import pytest
import scipy.stats

from vlseg.metrics import bootstrap
from vlseg.metrics.bootstrap import interval, paired_differences, with_intervals
from vlseg.metrics.calibration import calibration_error, excess_aurc, trust
from vlseg.metrics.case import Case
from vlseg.metrics.nontarget import Activation
from vlseg.metrics.referring import SCORES, summary


def cases(n=400, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        union, absent, found = int(rng.integers(10, 100)), bool(rng.random() < 0.2), bool(rng.random() < 0.7)
        rival = not absent and rng.random() < 0.5
        made.append(
            Case(
                str(i),
                image=str(i // 4),
                absent=absent,
                status="found" if found else "absent",
                score=float(rng.random()),
                intersection=int(rng.integers(0, union)) if found and not absent else 0,
                union=union,
                boundary=None if absent else (int(rng.integers(0, 10)), 10),
                activation=Activation(float(rng.random()), 0.1, bool(rng.random() < 0.1)) if rival else None,
            )
        )
    return made


def scipy_interval(terms, resamples=2000, seed=0):
    sums = {}
    for image, above, below in terms:
        row = sums.setdefault(image, [0.0, 0.0])
        row[0], row[1] = row[0] + above, row[1] + below
    columns = tuple(np.array(list(sums.values())).T)
    found = scipy.stats.bootstrap(
        columns,
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval


@pytest.mark.parametrize("seed", [0, 5])
def test_intervals_are_those_of_scipy(seed, monkeypatch):
    """The very numbers: scipy draws from the generator as we do. Chunks of the draws make no difference."""
    made = cases(seed=seed)
    terms = {name: [(c.image, *term) for c in made if (term := SCORES[name](c)) is not None] for name in SCORES}
    one = {name: interval(t, seed=seed) for name, t in terms.items() if t}
    for name, (_, ci95) in one.items():
        assert ci95 == pytest.approx(scipy_interval(terms[name], seed=seed), abs=1e-12), name
    together = with_intervals(made, seed=seed)
    for name in ("cIoU", "gIoU"):  # those that every image counts for
        assert together[name]["ci95"] == pytest.approx(one[name][1], abs=1e-6)
    monkeypatch.setattr(bootstrap, "_CHUNK", 1)
    assert with_intervals(made, resamples=50, seed=seed) == chunked(made, 50, seed)


def chunked(made, resamples, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_CHUNK", 10**9)
        return with_intervals(made, resamples, seed)


def test_values_are_those_of_the_summary():
    made = cases()
    plain, wide = summary(made), with_intervals(made)
    assert set(wide) == set(plain) - {"cases"} | {"ECE", "AURC", "E-AURC"}
    for name, entry in wide.items():
        low, high = entry["ci95"]
        if name in plain:
            assert entry["value"] == pytest.approx(plain[name], abs=1e-6)
        assert low <= entry["value"] <= high
        assert low < high or name == "NTA-mass"
    assert wide["ECE"]["value"] == pytest.approx(
        calibration_error(np.array([c.score for c in made]), np.array([not c.absent for c in made])), abs=1e-6
    )
    assert wide["E-AURC"]["value"] == pytest.approx(excess_aurc(*trust(made)), abs=1e-6)
    assert wide["N-acc"]["cases"] == sum(c.absent for c in made)
    assert set(wide) - set(with_intervals(made, ranking=False)) == {"AURC", "E-AURC"}


def test_scores_of_order_are_resampled_like_the_rest():
    """ECE and AURC of a drawn resample, computed anew from the repeated cases."""
    made = cases(60)
    images = list(dict.fromkeys(c.image for c in made))
    drawn = np.random.default_rng(3).integers(0, len(images), (40, len(images)))
    values = {"ECE": [], "E-AURC": []}
    for row in drawn:
        repeated = [c for i in row for c in made if c.image == images[i]]
        score = np.array([c.score for c in repeated])
        values["ECE"].append(calibration_error(score, np.array([not c.absent for c in repeated])))
        values["E-AURC"].append(excess_aurc(*trust(repeated)))
    got = with_intervals(made, resamples=40, seed=3)
    for name, numbers in values.items():
        assert got[name]["ci95"] == pytest.approx(np.percentile(numbers, [2.5, 97.5]), abs=1e-6)


def test_whole_images_are_drawn():
    """Four equal cases an image tell no more than one: the interval must not shrink."""
    one = [(str(i), v, 1.0) for i, v in enumerate(np.random.default_rng(2).random(100))]
    assert interval(one)[1] == pytest.approx(interval([t for t in one for _ in range(4)])[1])


def test_a_score_that_few_images_count_for():
    """Resamples that hold none of them are left out, not counted as 0."""
    made = [Case("a", "1", absent=True, status="absent"), *(Case(str(i), str(i + 2), union=1) for i in range(30))]
    assert with_intervals(made)["N-acc"]["ci95"] == [1.0, 1.0]
    assert with_intervals([]) == {}


def test_pairing_narrows_the_interval():
    a = cases(seed=1)
    b = [Case.from_dict({**c.to_dict(), "intersection": min(c.union, c.intersection + c.found)}) for c in a]
    paired = paired_differences(a, b)["cIoU"]
    alone = with_intervals(a)["cIoU"]["ci95"]
    assert paired["difference"] == pytest.approx(summary(b)["cIoU"] - summary(a)["cIoU"], abs=1e-6)
    assert 0 < paired["ci95"][0] < paired["difference"] < paired["ci95"][1]
    assert paired["ci95"][1] - paired["ci95"][0] < 0.2 * (alone[1] - alone[0])
    same = paired_differences(a, a)
    assert {tuple(entry["ci95"]) for entry in same.values()} == {(0.0, 0.0)}
