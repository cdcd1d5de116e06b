"""The torchmetrics classes; that several processes give the same bits is in tests/evaluation/test_ranks.py."""

import math

import pytest
import torch
from torchmetrics import MetricCollection

from vlseg.masks import rle as codec
from vlseg.metrics.case import score_case
from vlseg.metrics.referring import SCORES, summary
from vlseg.metrics.torch_metrics import ReferringMetric, ReferringMetrics
from vlseg.types import Query, VLSegError


@pytest.fixture
def batch():
    """Ids, predictions and targets of eight cases, two of them without a target, one of these rejected."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand((2, 8, 30, 40), generator=generator) > 0.4).unbind()
    target[6:] = False
    prediction[7] = False
    assert 0.05 < prediction.float().mean() < 0.95
    return [f"case {n}" for n in range(8)], prediction, target


def distractors_of(prediction):
    return [[codec.encode(mask.numpy())] for mask in prediction.roll(1, -1)]


def test_values_are_those_of_the_plain_functions(batch):
    ids, prediction, target = batch
    rivals = distractors_of(prediction)
    ignore = torch.zeros_like(target)
    ignore[..., :7] = True
    metric = ReferringMetrics(tuple(SCORES))
    metric.update(ids[:3], prediction[:3], target[:3], distractors=rivals[:3], ignore=ignore[:3])
    metric.update(ids[3:], prediction[3:], target[3:], distractors=rivals[3:], ignore=ignore[3:])
    cases = []
    for id, p, t, d in zip(ids, prediction.numpy(), target.numpy(), rivals, strict=True):
        query = Query("", [codec.encode(t)] if t.any() else [], d, ignore=codec.encode(ignore[0].numpy()))
        status = "found" if p.any() else "absent"
        cases.append(score_case(query, t.shape, status, codec.encode(p), id=id, image=""))
    want = summary(cases)
    got = metric.compute()
    assert set(got) == set(SCORES) == set(want) - {"cases"}
    for name, score in got.items():
        assert score.dtype == torch.float64
        assert score.item() == pytest.approx(want[name], abs=1e-12), name


def test_a_case_counts_once(batch):
    ids, prediction, target = batch
    metric = ReferringMetrics(["cIoU", "gIoU"])
    metric.update(ids, prediction, target)
    once = metric.compute()
    metric.update(ids[2:5], ~prediction[2:5], target[2:5])  # a sampler that pads sees a case again
    assert metric.compute() == once
    metric.reset()
    metric.update(ids[::-1], prediction.flip(0), target.flip(0))
    assert metric.compute() == once  # the very bits, whatever the order


def test_run_lengths_and_tensors_are_the_same(batch):
    ids, prediction, target = batch
    a, b = ReferringMetric("mIoU"), ReferringMetric("mIoU")
    a.update(ids, prediction, target)
    b.update(ids, codec.encode_many(prediction.numpy()), codec.encode_many(target.numpy()))
    assert a.compute() == b.compute()
    assert 0.2 < a.compute() < 0.8
    assert a(ids[:2], prediction[:2], target[:2]).ndim == 0  # forward gives the batch's value


def test_what_a_model_rejected_is_no_prediction(batch):
    ids, prediction, target = batch
    metric = ReferringMetrics(["N-acc", "T-acc", "cIoU"])
    metric.update(ids, prediction, target, rejected=[True] * 8)
    got = metric.compute()
    assert (got["N-acc"], got["T-acc"], got["cIoU"]) == (1, 0, 0)
    metric.reset()
    metric.update(ids, prediction, target, absent=[False] * 8, rejected=torch.zeros(8))
    got = metric.compute()
    assert math.isnan(got["N-acc"])  # no case counts for it
    assert got["T-acc"] == 1


def test_in_a_collection(batch):
    ids, prediction, target = batch
    names = {"ciou": "cIoU", "giou": "gIoU", "edge": "boundary-IoU"}
    together = MetricCollection({key: ReferringMetric(name) for key, name in names.items()})
    for _ in range(2):  # torchmetrics joins metrics of equal state after the first update
        together.update(ids, prediction, target)
    for key, name in names.items():
        alone = ReferringMetric(name)
        alone.update(ids, prediction, target)
        assert together.compute()[key] == alone.compute()


def test_wrong_calls_are_refused(batch):
    ids, prediction, target = batch
    with pytest.raises(VLSegError, match="no score 'IoU'; there are mIoU"):
        ReferringMetric("IoU")
    metric = ReferringMetric()
    with pytest.raises(VLSegError, match="7 ids, 8 predictions"):
        metric.update(ids[:7], prediction, target)
    with pytest.raises(VLSegError, match="threshold logits with > 0"):
        metric.update(ids, prediction.float(), target)
    with pytest.raises(VLSegError, match="rejected: 1 flags for 8 cases"):
        metric.update(ids, prediction, target, rejected=[True])
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(ReferringMetric().compute())
