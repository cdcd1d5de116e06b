"""What a refined segment was before lives through shards of both formats, and through reading them for an export."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlseg.bulk.output import _parquet, read_results
from vlseg.export.source import Results
from vlseg.systems.base import segment_of
from vlseg.types import Answer, Coarse, Result


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_stage_and_coarse_mask_are_kept(tmp_path, format):
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:20] = True
    plain, refined = segment_of(mask, 0.9), segment_of(mask[::-1], 0.8)
    refined.stage, refined.coarse = "refined", Coarse("path", plain.rle, plain.path)
    answers = [Answer("a", "found", 0.9, (20, 30), segments=[plain, refined]), Answer("b", "absent", 0.1, (20, 30))]
    told = Result("a.png", (20, 30), "m", answers).to_dict()
    content = _parquet([told]) if format == "parquet" else json.dumps(told).encode() + b"\n"
    (tmp_path / f"results-00000-of-00001.{format}").write_bytes(content)
    (again,) = read_results(tmp_path)
    assert again == told
    assert Result.from_dict(again).answers == answers
    (item,) = Results(tmp_path / f"results-00000-of-00001.{format}")
    assert [(s.stage, s.coarse) for s in item.result[0].segments] == [("mask", None), ("refined", refined.coarse)]
