"""One answer scored: the rules by hand, and against literal restatements of ReLA's and LISA's scripts."""

import json
from collections import Counter

import numpy as np
import pytest

from vlseg.masks import rle as codec
from vlseg.metrics.case import Case, Rules, score_case
from vlseg.metrics.referring import summary, value
from vlseg.types import Query, VLSegError


def rle(rows):
    return codec.encode(np.array(rows, bool))


def scored(prediction, targets, status="found", score=None, **more):
    """A case of a 1 x N mask; targets: one row a target."""
    query = Query("x", None if targets is None else [rle([t]) for t in targets], **more)
    size = (1, len(prediction))
    return score_case(query, size, status, rle([prediction]), score, id="a", image="1")


@pytest.mark.parametrize(
    ("prediction", "targets", "status", "expected"),
    [
        # ReLA's table: (IoU of the case, I, U, N-acc, T-acc)
        ([0, 0, 0, 0], [], "absent", (1.0, 0, 0, 1.0, None)),  # empty, rejected
        ([1, 1, 1, 0], [], "found", (0.0, 0, 3, 0.0, None)),  # empty, answered: its pixels are in the union
        ([1, 1, 1, 0], [[0, 1, 1, 1]], "found", (0.5, 2, 4, None, 1.0)),
        ([1, 1, 1, 0], [[0, 1, 1, 1]], "absent", (0.0, 0, 3, None, 0.0)),  # rejected: no stray pixels in the union
        ([1, 1, 0, 0], [[1, 0, 0, 0], [0, 1, 1, 0]], "found", (2 / 3, 2, 3, None, 1.0)),  # several targets: their union
        ([0, 0, 0, 0], [[0, 0, 0, 0]], "found", (0.0, 0, 0, None, 1.0)),  # a target without a pixel: U = 0 gives 0
        # a failed answer is wrong, whatever is true
        ([1, 1, 1, 1], [], "failed", (0.0, 0, 0, 0.0, None)),
        ([1, 1, 1, 1], [[0, 1, 1, 1]], "failed", (0.0, 0, 3, None, 0.0)),
    ],
)
def test_the_table(prediction, targets, status, expected):
    case = scored(prediction, targets, status)
    found = (case.iou, case.intersection, case.union, value("N-acc", [case]), value("T-acc", [case]))
    assert found == expected


@pytest.mark.parametrize(
    ("prediction", "targets", "ignore", "expected"),
    [
        ([1, 1, 1, 0], [[0, 1, 1, 1]], [1, 0, 0, 0], (2 / 3, 2, 3)),  # its false pixel is ignored
        ([1, 1, 1, 0], [[0, 1, 1, 1]], [0, 0, 0, 1], (2 / 3, 2, 3)),  # so is what it missed
        ([1, 0, 0, 0], [[1, 0, 0, 0]], [1, 0, 0, 0], (1.0, 0, 0)),  # nothing counts: 1 (LISA)
        ([1, 0, 0, 0], [], [1, 0, 0, 0], (1.0, 0, 0)),
        ([0, 1, 0, 0], [], [1, 0, 0, 0], (0.0, 0, 1)),
    ],
)
def test_ignored_pixels(prediction, targets, ignore, expected):
    case = scored(prediction, targets, ignore=rle([ignore]))
    assert (case.iou, case.intersection, case.union) == expected


def test_a_failed_answer_gains_nothing_where_all_is_ignored():
    assert scored([1, 0], [[1, 0]], "failed", ignore=rle([[1, 1]])).iou == 0


def test_facts_of_a_case():
    truth = np.zeros((40, 60), bool)
    small, large = truth.copy(), truth.copy()
    small[2:5, 3:12], large[10:30, 20:50] = True, True
    query = Query("two words", [codec.encode(small), codec.encode(large)], [codec.encode(truth)], "kind")
    case = score_case(query, (40, 60), "found", codec.encode(large), 0.25, id="i", image="p.jpg", rules=Rules(0.02, 0))
    assert (case.text, case.kind, case.status, case.score) == ("two words", "kind", "found", 0.25)
    assert (case.area, case.predicted, case.intersection) == (27 + 600, 600, 600)
    assert case.extent == 9  # the longer side of the smaller target
    assert case.distractors == 1
    assert case.activation is None  # its only distractor holds no pixel
    assert case.buffered == (2 * 600, 2 * 600 + 2 * 27)
    assert case.dilated == (600, 627)  # r = 0
    again = Case.from_dict(json.loads(json.dumps(case.to_dict())))
    assert again == case


def test_without_rules_nothing_is_said_of_boundaries():
    query = Query("x", [rle([[1, 0]])])
    case = score_case(query, (1, 2), "found", rle([[1, 0]]), id="a", image="1", rules=None)
    assert case.boundary is case.buffered is case.dilated is None
    assert "boundary-IoU" not in summary([case])
    missed = score_case(query, (1, 2), "absent", None, id="a", image="1")
    assert value("boundary-IoU", [missed]) == value("buffered-IoU", [missed]) == 0


def test_an_unlabelled_query_is_refused():
    with pytest.raises(VLSegError, match="a: the query is unlabelled"):
        scored([1], None)


def random_cases(count, seed):
    """Predictions, truths and ignored pixels of all densities, ``(N, 9, 11)`` bool; present, rejected ``(N,)``."""
    rng = np.random.default_rng(seed)
    shape = (count, 9, 11)
    prediction = rng.random(shape) < rng.choice([0.1, 0.5, 0.9], (count, 1, 1))
    truth = rng.random(shape) < rng.choice([0.1, 0.5, 0.9], (count, 1, 1))
    ignored = rng.random(shape) < rng.choice([0.0, 0.3, 0.995], (count, 1, 1))
    present, rejected = rng.random(count) < 0.7, rng.random(count) < 0.4
    assert 0.3 < truth.mean() < 0.7
    return prediction, truth & present[:, None, None], ignored, present, rejected


def test_rela_restated():
    """`gres_model/evaluation/refer_evaluation.py` of henghuiding/ReLA, one sample after the other.

    A sample that is called "no target" is given no pixels first: ours holds no stray ones, see docs/evaluation.md.
    """
    prediction, truth, _, present, rejected = random_cases(4000, 1)
    total = Counter()
    precise = Counter()
    for p, g, there, no in zip(prediction, truth, present, rejected, strict=True):
        p = p & ~no
        i, u = np.sum(np.logical_and(p, g)), np.sum(np.logical_or(p, g))
        total["samples"] += 1
        if not there:
            total["TP" if no else "FN"] += 1
            total["iou"] += 1 if no else 0
            total["U"] += 0 if no else u
        else:
            total["FP" if no else "TN"] += 1
            iou = 0.0 if u == 0 else (0 if no else i) / u
            total["iou"] += iou
            total["I"] += 0 if no else i
            total["U"] += u
            for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
                precise[threshold] += iou > threshold  # strictly, as CRIS; ReLA has >=
    assert min(total[k] for k in ("TP", "FN", "FP", "TN")) > 100

    cases = [
        score_case(
            Query("x", [codec.encode(g)] if there else []),
            g.shape,
            "absent" if no else "found",
            codec.encode(p),
            id=str(n),
            image="1",
            rules=None,
        )
        for n, (p, g, there, no) in enumerate(zip(prediction, truth, present, rejected, strict=True))
    ]
    got = summary(cases)
    assert got["gIoU"] == pytest.approx(total["iou"] / total["samples"], abs=1e-12)
    assert got["cIoU"] == total["I"] / total["U"]
    assert got["N-acc"] == total["TP"] / (total["TP"] + total["FN"])
    assert got["T-acc"] == total["TN"] / (total["TN"] + total["FP"])
    for threshold, count in precise.items():
        assert got[f"P@{threshold}"] == count / (total["TN"] + total["FP"])


def test_lisa_restated():
    """`validate` of LISA's train_ds.py: two-class counts without pixels of label 255, IoU 1 where the union is 0."""
    prediction, truth, ignored, *_ = random_cases(3000, 2)
    inside = union = 0
    ious = []
    for p, g, no in zip(prediction, truth, ignored, strict=True):
        output, target = p.astype(int), np.where(no, 255, g)
        output[target == 255] = 255
        hits = output[output == target]
        area_i = np.histogram(hits, bins=[0, 1, 2])[0][1]
        areas = [np.histogram(x, bins=[0, 1, 2])[0][1] for x in (output, target)]
        area_u = areas[0] + areas[1] - area_i
        inside, union = inside + area_i, union + area_u
        ious.append(area_i / (area_u + 1e-5) if area_u else 1.0)
    # LISA knows no rejection; every query has a target, and where all of it is ignored it still has one.
    kept = [n for n in range(len(truth)) if truth[n].any()]
    cases = [
        score_case(
            Query("x", [codec.encode(truth[n])], ignore=codec.encode(ignored[n])),
            truth[n].shape,
            "found",
            codec.encode(prediction[n]),
            id=str(n),
            image="1",
            rules=None,
        )
        for n in kept
    ]
    assert sum(case.union == 0 for case in cases) > 20
    assert value("gIoU", cases) == pytest.approx(np.mean([ious[n] for n in kept]), abs=1e-6)
    assert [c.iou for c in cases] == pytest.approx([ious[n] for n in kept], abs=1e-5)
    everything = np.array([(c.intersection, c.union) for c in cases]).sum(0)
    left = [n for n in range(len(truth)) if not truth[n].any()]
    stray = sum((prediction[n] & ~ignored[n]).sum() for n in left)
    assert tuple(everything) == (inside, union - stray)
    assert value("cIoU", cases) == inside / (union - stray)
