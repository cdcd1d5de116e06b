"""Processes that vlseg starts itself: they find each other, gather exact scores, and tell what went wrong."""

import numpy as np
import pytest
import torch

from vlseg.evaluation.ranks import join, launch
from vlseg.metrics.torch_metrics import ReferringMetrics
from vlseg.types import VLSegError

NAMES = ("cIoU", "mIoU", "gIoU", "P@0.5", "N-acc", "boundary-IoU")
CASES = 11


def cases():
    rng = np.random.default_rng(4)
    prediction, target = torch.from_numpy(rng.random((2, CASES, 24, 30)) > rng.random((2, CASES, 1, 1)))
    target[3] = False
    assert 0.05 < target.float().mean() < 0.95
    return [f"case {n}" for n in range(CASES)], prediction, target


def scores(rank, world):
    """Dealt out as `DistributedSampler` does: padded with cases from the start, so that all have equally many."""
    ids, prediction, target = cases()
    dealt = [n % CASES for n in range(CASES + -CASES % world)]
    metric = ReferringMetrics(NAMES)
    for n in dealt[rank::world]:
        metric.update(ids[n : n + 1], prediction[n : n + 1], target[n : n + 1])
    return metric


def numbers(metric):
    return {name: value.item() for name, value in metric.compute().items()}


def gather(expected):
    ranks = join(expected)
    shared = numbers(scores(ranks.rank, ranks.world))
    lone = ReferringMetrics(NAMES) if ranks.rank else scores(0, 1)  # one process has not seen a case
    return ranks.rank, ranks.world, shared, numbers(lone)


def one_fails(message):
    ranks = join()
    if ranks.rank == 1:
        raise VLSegError(message)
    ranks.wait()


def test_two_processes_give_the_same_bits():
    results = launch(gather, (2,), 2)
    assert [result[:2] for result in results] == [(0, 2), (1, 2)]
    alone = numbers(scores(0, 1))
    for _, _, shared, lone in results:
        assert shared == lone == alone
    assert 0.1 < alone["mIoU"] < 0.9


@pytest.mark.slow
def test_a_process_that_fails_stops_all():
    with pytest.raises(VLSegError, match=r"^no such thing: 7$"):
        launch(one_fails, ("no such thing: 7",), 2)


@pytest.mark.slow
def test_fewer_processes_than_asked_for_are_refused():
    with pytest.raises(VLSegError, match="--processes 3: 2 came up"):
        launch(gather, (3,), 2)
