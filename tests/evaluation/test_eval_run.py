"""Running a predictor over data: batches, what goes wrong, going on after a stop, several processes."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vlseg.evaluation.batch import Batch, Record, case_id, size_of
from vlseg.evaluation.predictor import SystemPredictor
from vlseg.evaluation.ranks import ALONE, Ranks, join
from vlseg.evaluation.run import Settings, evaluate
from vlseg.evaluation.shards import Shards
from vlseg.masks import rle as codec
from vlseg.metrics.referring import summary
from vlseg.types import Query, Sample, VLSegError

SMALL = Settings(batch=2)


class Meeting(Ranks):
    """One of several processes that are run here one after the other."""

    def wait(self):
        pass


def run(data, system, settings=SMALL, folder=None, ranks=ALONE, **options):
    return evaluate(data, SystemPredictor(system, **options), settings, folder, {"data": data.name}, ranks)


def same(a, b):
    return [r.to_dict() for r in a.records] == [r.to_dict() for r in b.records]


def test_scores_that_can_be_worked_out(boxes, box_system):
    data = boxes()
    outcome = run(data, box_system)
    assert [record.case.id for record in outcome.records] == [f"{n}:{k}" for n in range(7) for k in range(4)]
    assert [len(call) for call in box_system.calls] == [2, 2, 2, 1]
    for record in outcome.records:
        n, k = map(int, record.case.id.split(":"))
        query = data[n].queries[k]
        assert (record.case.text, record.case.kind, record.sample) == (query.text, query.kind, n)
        if k == 1:  # asked for 3 pixels beside it
            width = codec.bbox(query.masks[0])[2]
            assert record.case.iou == pytest.approx((width - 3) / (width + 3))
        else:
            assert record.case.iou == (k != 3 or n % 2)
    got = summary([record.case for record in outcome.records])
    assert (got["N-acc"], got["T-acc"]) == (pytest.approx(3 / 7), 1)
    assert (outcome.images, outcome.unlabelled, outcome.left_out, outcome.crashed) == (7, 0, [], False)
    assert len(outcome.seconds) == 5  # the images of the first call are not timed


def test_limit_and_thresholds(boxes, box_system):
    outcome = run(boxes(), box_system, Settings(batch=8, limit=3), presence_threshold=0.95)
    assert len(outcome.records) == 12
    assert {record.case.status for record in outcome.records} == {"absent"}
    assert len(outcome.seconds) == 3  # a lone call is timed, cold as it is


def test_unlabelled_queries_are_skipped_and_counted(boxes, box_system):
    data = boxes(3)
    data.samples[0].queries[1].masks = None
    data.samples[2].queries = [Query("box 1 1 5 5", None)]
    outcome = run(data, box_system)
    assert (outcome.unlabelled, len(outcome.records), outcome.images) == (2, 7, 2)
    assert all(len(row) in (3, 4) for call in box_system.calls for row in call)


def test_a_query_that_crashes_the_system_fails_alone(boxes, box_system):
    data = boxes(4)
    data.samples[1].queries[2].text += " crash"
    outcome = run(data, box_system)
    failed = [record for record in outcome.records if record.case.status == "failed"]
    assert [record.case.id for record in failed] == ["1:2"]
    assert failed[0].case.reason == "RuntimeError: out of luck"
    assert (failed[0].crashed, outcome.crashed) == (True, True)
    assert failed[0].case.iou == 0
    clean = run(boxes(4), box_system)
    others = [(a, b) for a, b in zip(outcome.records, clean.records, strict=True) if a.case.id != "1:2"]
    assert all(a.to_dict() == b.to_dict() for a, b in others)


def test_an_answer_that_failed_by_its_own_word_is_no_crash(boxes, box_system):
    data = boxes(1)
    data.samples[0].queries[0].text = "box 1 1 0 0"  # found, without a pixel
    record = run(data, box_system).records[0]
    assert (record.case.status, record.crashed) == ("failed", False)
    assert "holds no pixel" in record.case.reason


@pytest.mark.parametrize("wrong", ["too few", "another size"])
def test_answers_that_do_not_fit(boxes, box_system, wrong):
    data = boxes(2)

    def answer(images, queries, **options):
        rows = type(box_system).segment_batch(box_system, images, queries, **options)
        if wrong == "too few":
            return [row[1:] for row in rows]
        rows[0][0].segments[0].rle = codec.encode(np.ones((5, 5), bool))
        return rows

    box_system.segment_batch = answer
    outcome = run(data, box_system)
    first = outcome.records[0].case
    assert first.status == "failed"
    assert ("another number" if wrong == "too few" else "of size [5, 5], the image [60, 80]") in first.reason
    assert sum(record.crashed for record in outcome.records) == (8 if wrong == "too few" else 1)


def test_images_and_masks_that_do_not_fit(boxes, box_system, tmp_path):
    data = boxes(4)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    data.samples[0].image = tmp_path / "broken.jpg"
    data.samples[1].queries[0].masks = [codec.encode(np.ones((5, 5), bool))]

    class Broken(type(data)):
        def __getitem__(self, index):
            if index == 2:
                raise VLSegError("mask 3 is malformed")
            return super().__getitem__(index)

    outcome = run(Broken(data.samples), box_system)
    assert len(outcome.records) == 4 + 3 + 4
    assert {r.case.status for r in outcome.records[:4]} == {"failed"}
    assert "broken.jpg: not an image" in outcome.records[0].case.reason
    assert outcome.left_out == [
        "1:0: its mask is of size [5, 5], the image [60, 80] ([height, width])",
        "sample 2: mask 3 is malformed",
    ]
    assert outcome.crashed


def test_ids_of_cases_and_sizes():
    sample = Sample("a.jpg", [Query("x", [], id="own"), Query("y", [])], "s")
    assert (case_id(sample, 3, 0), case_id(sample, 3, 1)) == ("own", "s/1")
    assert case_id(replace(sample, id=""), 3, 1) == "3/1"
    assert size_of(sample) == (1, 1)  # no such file
    assert size_of(replace(sample, size=(4, 5))) == (4, 5)
    sample.queries[1].ignore = codec.encode(np.ones((6, 7), bool))
    assert size_of(sample) == (6, 7)


def test_two_cases_of_one_id_are_refused(boxes, box_system):
    data = boxes(2)
    data.samples[1].queries[0].id = "0:0"
    with pytest.raises(VLSegError, match="1 ids that stand for several queries, such as '0:0'"):
        run(data, box_system)


def test_a_run_goes_on_where_it_was_stopped(boxes, box_system, tmp_path):
    whole = run(boxes(), box_system, folder=tmp_path / "whole")
    assert same(whole, run(boxes(), box_system))
    box_system.calls.clear()

    class Stopped(type(box_system)):
        def segment_batch(self, images, queries, **options):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().segment_batch(images, queries, **options)

    with pytest.raises(KeyboardInterrupt):
        run(boxes(), Stopped(), folder=tmp_path / "stopped")
    (tmp_path / "stopped" / ".part-1-000002.json").write_text("{")  # what a kill may leave
    resumed = run(boxes(), box_system, folder=tmp_path / "stopped")
    assert len(box_system.calls) == 2  # the last two of four batches
    assert same(whole, resumed)
    assert same(whole, run(boxes(), box_system, folder=tmp_path / "stopped"))
    assert len(box_system.calls) == 2


def test_what_crashed_is_tried_again(boxes, box_system, tmp_path):
    data = boxes(5)
    crashing = boxes(5)
    crashing.samples[3].queries[0].text += " crash"
    assert run(crashing, box_system, folder=tmp_path).crashed
    box_system.calls.clear()
    assert same(run(data, box_system, folder=tmp_path), run(data, box_system))
    assert len(box_system.calls) == 1 + 3  # the one batch, and the three of the run beside it


def test_batches_of_another_run_are_refused(boxes, box_system, tmp_path):
    run(boxes(3), box_system, folder=tmp_path)
    with pytest.raises(VLSegError, match=r"evaluation of another data, limit; name another --out"):
        evaluate(boxes(3), SystemPredictor(box_system), SMALL, tmp_path, {"data": "others", "limit": 3})
    (tmp_path / "000000.json").write_text("{")
    with pytest.raises(VLSegError, match=r"000000.json: cannot be read .*delete"):
        run(boxes(3), box_system, folder=tmp_path)


def test_batches_that_nobody_knows_are_thrown_away(boxes, box_system, tmp_path):
    Shards(tmp_path).write(Batch(0, images=9))
    assert run(boxes(2), box_system, folder=tmp_path).images == 2


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_and_change_nothing(boxes, box_system, tmp_path, world):
    alone = run(boxes(), box_system, folder=tmp_path / "alone")
    calls = [str(call) for call in box_system.calls]
    box_system.calls.clear()
    for rank in reversed(range(1, world)):
        shared = tmp_path / "shared"
        Shards(shared).open({"data": "boxes"})
        assert run(boxes(), box_system, folder=shared, ranks=Meeting(rank, world)) is None
    assert 0 < len(box_system.calls) < 4
    together = run(boxes(), box_system, folder=shared, ranks=Meeting(0, world))
    assert same(alone, together)
    assert sorted(map(str, box_system.calls)) == sorted(calls)  # the same images in the same calls
    with pytest.raises(VLSegError, match="meet in a folder"):
        run(boxes(), box_system, ranks=Meeting(0, world))


def test_a_record_goes_to_json_and_back(boxes, box_system):
    for record in run(boxes(3), box_system).records:
        assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_teacher_forcing(boxes, box_system):
    with pytest.raises(VLSegError, match="--teacher-forced: box-system generates no tokens"):
        SystemPredictor(box_system, teacher_forced=True)

    class Generating(type(box_system)):
        teacher_forcing = True

        def segment_batch(self, images, queries, *, teacher_forced=False, **options):
            assert teacher_forced
            return super().segment_batch(images, queries, **options)

    predictor = SystemPredictor(Generating(), mask_threshold=0.35, teacher_forced=True)
    assert predictor.mode == "teacher-forced"
    assert len(predictor.deviations) == 2
    assert "0.35 instead of 0.5" in predictor.deviations[0]
    outcome = evaluate(boxes(2), predictor)
    assert {record.case.status for record in outcome.records} <= {"found", "absent"}
    assert SystemPredictor(box_system).deviations == []


def test_joining_no_other_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() == Ranks(0, 1, 0)
    join().wait()
    with pytest.raises(VLSegError, match="--processes 3: 1 came up"):
        join(3)
    assert Ranks(1, 2, 1).device("cpu") == "cpu"
    assert Ranks().device("cuda:1") == "cuda:1"


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Ranks(n, 3, n).device(None) for n in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert Ranks(1, 3, 1).device("cuda") == "cuda:1"
    assert Ranks(1, 3, 1).device("cuda:0") == "cuda:0"
    assert Ranks(0, 1, 0).device(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Ranks(1, 2, 1).device(None) is None
