"""Baselines: what each answers, and that none looks at the picture."""

import numpy as np
import pytest

from vlseg.evaluation.baselines import GRID, NAMES, baseline
from vlseg.evaluation.run import Settings, evaluate
from vlseg.masks import rle as codec
from vlseg.types import Query, Sample, VLSegError


def answers(name, data, seed=0):
    """(status, mask) of every query, by its id."""
    outcome = evaluate(data, baseline(name, data, seed), Settings(batch=3))
    return {r.case.id: (r.case.status, codec.decode(r.prediction)) for r in outcome.records}


@pytest.mark.parametrize("name", NAMES)
def test_no_picture_is_read(boxes, name):
    data = boxes(4)
    for sample in data.samples:
        sample.image = "no such file.jpg"
    outcome = evaluate(data, baseline(name, data))
    assert not outcome.crashed
    assert [r.case.score for r in outcome.records] == [None] * 16


def test_whole_image_and_centre_box(boxes):
    data = boxes(2)
    assert all(mask.all() for _, mask in answers("baseline:whole-image", data).values())
    centre = np.zeros((60, 80), bool)
    centre[15:45, 20:60] = True
    assert all((mask == centre).all() for _, mask in answers("baseline:centre-box", data).values())


def test_oracle_box(boxes):
    data = boxes(3)
    ring = np.zeros((60, 80), bool)
    ring[10:20, 5:9] = ring[30:32, 40:60] = True
    data.samples[0].queries[0].masks = [
        codec.encode(m) for m in (ring & (np.arange(80) < 20), ring & (np.arange(80) > 20))
    ]
    got = answers("baseline:oracle-box", data)
    box = np.zeros((60, 80), bool)
    box[10:32, 5:60] = True
    assert (got["0:0"][1] == box).all()
    for n in range(3):
        assert got[f"{n}:3"][0] == "absent"
        assert (got[f"{n}:1"][1] == codec.decode(data[n].queries[1].masks[0])).all()


def test_random_instance(boxes):
    data = boxes(60)
    got = answers("baseline:random-instance", data)
    rivals = 0
    for n in range(60):
        assert got[f"{n}:3"][0] == "absent"  # no target, no distractor
        assert (got[f"{n}:0"][1] == codec.decode(data[n].queries[0].masks[0])).all()  # the only one
        chosen, query = got[f"{n}:2"][1], data[n].queries[2]
        rival = (chosen == codec.decode(query.distractors[0])).all()
        assert rival or (chosen == codec.decode(query.masks[0])).all()
        rivals += rival
    assert 15 < rivals < 45
    assert all((got[k][1] == v[1]).all() for k, v in answers("baseline:random-instance", data).items())
    other = answers("baseline:random-instance", data, seed=1)
    assert any((got[k][1] != other[k][1]).any() for k in got)


def test_mean_mask_comes_from_other_images(boxes):
    """Whatever an image's own truth is, its answer stays: it is fitted on the other half."""
    data = boxes(40)
    got = answers("baseline:mean-mask", data)
    masks = {mask.tobytes() for _, mask in got.values()}
    assert len(masks) == 2  # one a half
    assert all(0.05 < mask.mean() < 0.6 for _, mask in got.values())
    full = codec.encode(np.ones((60, 80), bool))
    changed = boxes(40)
    for query in changed.samples[0].queries:
        query.masks = query.masks and [full]
    again = answers("baseline:mean-mask", changed)
    assert all((again[f"0:{k}"][1] == got[f"0:{k}"][1]).all() for k in range(4))


def test_mean_mask_fits_better_than_its_neighbours():
    """Truths that all cover one part, and most a wider one: the shape is the set of highest mean IoU."""
    core, wide = np.zeros((2, GRID, GRID), bool)
    core[10:30, 10:30], wide[10:30, 10:40] = True, True
    samples = [
        Sample("x", [Query("x", [codec.encode(wide if n % 5 else core)], id=str(n))], str(n), size=(GRID, GRID))
        for n in range(40)
    ]

    class Data(list):
        name, split, problems, fingerprint = "data", "", [], "0"

    got = answers("baseline:mean-mask", Data(samples))
    assert all((mask == wide).all() for _, mask in got.values())


def test_wrong_calls(boxes):
    with pytest.raises(VLSegError, match="no such baseline; there are baseline:whole-image"):
        baseline("baseline:whole", boxes(1))
    data = boxes(1)
    for query in data.samples[0].queries:
        query.masks = []
    with pytest.raises(VLSegError, match="no query with a target"):
        baseline("baseline:mean-mask", data)
    data = boxes(1)  # one half is empty
    assert not evaluate(data, baseline("baseline:mean-mask", data)).crashed
