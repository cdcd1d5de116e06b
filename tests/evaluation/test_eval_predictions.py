"""Files of predictions: both formats, how they are matched, what is missing and what is left over."""

import json

import numpy as np
import pytest

from vlseg.evaluation.predictions import StoredPredictions
from vlseg.evaluation.predictor import SystemPredictor
from vlseg.evaluation.run import evaluate
from vlseg.masks import rle as codec
from vlseg.metrics.referring import summary
from vlseg.types import Query, Result, Sample, VLSegError


def results(data, system, path):
    """The answers of a system as Results, one a line."""
    lines = []
    for sample in data.samples:
        answers = system.segment(sample.image, [query.text for query in sample.queries])
        lines.append(Result(sample.id, sample.size, system.name, answers).to_json())
    path.write_text("\n".join(lines) + "\n")
    return path


def score(path, data, threshold=None):
    predictor = StoredPredictions(path, data, threshold)
    return evaluate(data, predictor), predictor


def failed(outcome):
    return {record.case.id: record.case.reason for record in outcome.records if record.case.status == "failed"}


def test_results_score_like_the_system_that_gave_them(boxes, box_system, tmp_path):
    data = boxes()
    outcome, predictor = score(results(data, box_system, tmp_path / "r.jsonl"), data)
    direct = evaluate(data, SystemPredictor(box_system))
    assert [r.case.to_dict() for r in outcome.records] == [r.case.to_dict() for r in direct.records]
    assert predictor.extra == []
    assert 0.5 < summary([r.case for r in outcome.records])["mIoU"] < 1
    listed = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    (tmp_path / "list.json").write_text(json.dumps(listed))  # a JSON list of them will do too
    again, _ = score(tmp_path / "list.json", data)
    assert [r.case for r in again.records] == [r.case for r in outcome.records]


def test_a_threshold_decides_anew(boxes, box_system, tmp_path):
    data = boxes()
    path = results(data, box_system, tmp_path / "r.jsonl")
    outcome, predictor = score(path, data, threshold=0.95)
    assert {r.case.status for r in outcome.records} == {"absent"}
    assert "score >= 0.95" in predictor.protocol


def test_what_is_missing_fails_and_what_is_left_over_is_named(boxes, box_system, tmp_path):
    data = boxes(3)
    path = results(data, box_system, tmp_path / "r.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["answers"][1]["text"] = "something else"
    lines[2]["image"] = "elsewhere.jpg"
    path.write_text("\n".join(map(json.dumps, lines)))
    outcome, predictor = score(path, data)
    assert failed(outcome) == {id: "r.jsonl has no prediction for it" for id in ("0:1", "2:0", "2:1", "2:2", "2:3")}
    assert outcome.crashed
    assert len(predictor.extra) == 5
    assert predictor.extra[0] == "r.jsonl: result 1: 'something else' is no query of image 'image 0'"
    assert "elsewhere.jpg" in predictor.extra[1]


def image_of(box):
    mask = np.zeros((60, 80), bool)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    return codec.encode(mask)


@pytest.fixture
def photographs(boxes):
    """Two samples that are files of COCO, with the same words twice on the second."""
    first = Sample("/data/train2014/COCO_train2014_000000000042.jpg", [], "a", {"coco_id": 42}, (60, 80))
    second = Sample("/data/train2014/COCO_train2014_000000000137.jpg", [], "b", {"coco_id": 137}, (60, 80))
    first.queries = [Query("The  Dog", [image_of((5, 5, 20, 20))], id="q1"), Query("cat", [], id="q2")]
    second.queries = [Query("man", [image_of((n, 10, 20, 20))], id=f"q{n}") for n in (10, 50)]
    data = boxes(1)
    data.samples[:] = [first, second]
    return data


@pytest.mark.parametrize(
    "image",
    ["a", "/data/train2014/COCO_train2014_000000000042.jpg", "COCO_train2014_000000000042.jpg",
     "COCO_train2014_000000000042", "42", 42, "elsewhere/COCO_train2014_000000000042.jpg"],
)  # fmt: skip
def test_ways_to_name_an_image(photographs, tmp_path, image):
    entry = {"image_id": image, "text": "the dog", "segmentation": image_of((5, 5, 20, 20)), "score": 0.9}
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    outcome, predictor = score(tmp_path / "p.json", photographs)
    assert predictor.extra == []
    assert outcome.records[0].case.iou == 1
    assert set(failed(outcome)) == {"q2", "q10", "q50"}


def test_an_image_name_that_stands_for_two_is_not_used(photographs, tmp_path):
    photographs.samples[1].image = "/other/COCO_train2014_000000000042.jpg"
    photographs.samples[1].queries[0].text = "the dog"
    entry = {"image": "COCO_train2014_000000000042.jpg", "answers": [{"text": "the dog"}]}
    (tmp_path / "p.jsonl").write_text(json.dumps(entry))
    outcome, predictor = score(tmp_path / "p.jsonl", photographs)
    assert len(failed(outcome)) == 4
    assert len(predictor.extra) == 1


def test_coco_results(photographs, tmp_path):
    """Parts of one answer are united from the threshold on; polygons will do; ids go before words."""
    half = image_of((5, 5, 10, 20))
    rest = [[15, 5, 25, 5, 25, 25, 15, 25]]
    entries = [
        {"image_id": 42, "caption": "the dog", "segmentation": half, "score": 0.9},
        {"image_id": 42, "caption": "the dog", "segmentation": rest, "score": 0.6},
        {"image_id": 42, "caption": "the dog", "segmentation": image_of((0, 0, 80, 60)), "score": 0.1},
        {"image_id": 42, "sent_id": "q2", "segmentation": image_of((0, 0, 80, 60)), "score": 0.3},
        {"image_id": 137, "query_id": "q10", "segmentation": image_of((10, 10, 20, 20))},
        {"image_id": 137, "text": "nobody", "segmentation": half, "score": 1},
    ]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    outcome, predictor = score(tmp_path / "p.json", photographs)
    by_id = {record.case.id: record.case for record in outcome.records}
    assert by_id["q1"].iou == 1
    assert by_id["q1"].score == 0.9
    assert (by_id["q2"].status, by_id["q2"].score) == ("absent", 0.3)
    assert by_id["q10"].iou == 1
    assert failed(outcome) == {"q50": "p.json has no prediction for it"}
    assert len(predictor.extra) == 1
    assert "'nobody'" in predictor.extra[0]
    outcome, _ = score(tmp_path / "p.json", photographs, threshold=0.7)
    assert outcome.records[0].case.iou == 0.5


def test_class_queries_take_category_ids(photographs, tmp_path):
    photographs.samples[0].queries[0].id = "coco:42:18"
    entry = {"image_id": 42, "category_id": 18, "segmentation": image_of((5, 5, 20, 20)), "score": 0.9}
    (tmp_path / "p.json").write_text(json.dumps([entry, {**entry, "category_id": 19}]))
    outcome, predictor = score(tmp_path / "p.json", photographs)
    assert outcome.records[0].case.iou == 1
    assert len(predictor.extra) == 1


def result(*answers):
    return json.dumps({"image": "b", "answers": list(answers)})


def man(left):
    return {"text": "man", "segments": [{"rle": image_of((left, 10, 20, 20))}]}


def test_queries_with_the_same_words(photographs, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(result(man(10)))  # one answer for both
    outcome, _ = score(path, photographs)
    assert [r.case.iou for r in outcome.records[2:]] == [1, 0]
    path.write_text(result(man(10), man(50), man(0)))  # one each, in order, and one too many
    outcome, predictor = score(path, photographs)
    assert [r.case.iou for r in outcome.records[2:]] == [1, 1]
    assert predictor.extra == ["p.jsonl: 'man' is answered once more than asked"]
    path.write_text(result({**man(50), "id": "q50"}, man(10)))  # an id for the second
    outcome, _ = score(path, photographs)
    assert [r.case.iou for r in outcome.records[2:]] == [1, 1]


@pytest.mark.parametrize(
    ("segment", "says"),
    [
        ({"rle": {"size": [60, 80], "counts": "x"}}, "RLE"),
        ({"rle": codec.encode(np.ones((4, 4), bool))}, "its mask is of size [4, 4], the image [60, 80]"),
        ({}, "KeyError"),
    ],
)
def test_a_broken_mask_fails_its_query_alone(photographs, tmp_path, segment, says):
    path = tmp_path / "p.jsonl"
    path.write_text(result({**man(10), "id": "q10", "segments": [segment]}, {**man(50), "id": "q50"}))
    outcome, _ = score(path, photographs)
    assert says in failed(outcome)["q10"]
    assert outcome.records[3].case.iou == 1


def test_statuses_of_the_file(photographs, tmp_path):
    path = tmp_path / "p.jsonl"
    said = [
        {**man(10), "id": "q10", "status": "failed", "reason": "no luck"},
        {**man(50), "id": "q50", "status": "odd"},
    ]
    path.write_text(result(*said))
    reasons = failed(score(path, photographs)[0])
    assert reasons["q10"] == "no luck"
    assert "its status is 'odd'" in reasons["q50"]
    path.write_text(result({**man(10), "score": 7}))
    assert "its score 7 is no number in 0..1" in failed(score(path, photographs)[0])["q10"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("[]", "holds no prediction"),
        ("{", "p.json:1: not JSON"),
        ('[{"image_id": 1}]', "entry 1 has no 'segmentation'"),
        ('{"answers": []}\n{"image": "x"}', "entry 2 has no 'answers'"),
        ('{"answers": 3}', '"answers" of entry 1 is no list'),
        ('{"answers": [3]}', "an answer is an object"),
        ('[{"image_id": 1, "segmentation": []}]', "does not say what it answers"),
        ("[3]", "entry 1 has no"),
    ],
)
def test_files_that_are_no_predictions(boxes, tmp_path, text, says):
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    with pytest.raises(VLSegError) as error:
        StoredPredictions(tmp_path / "p.json", boxes(1))
    assert says in str(error.value)
    assert "\n" not in str(error.value)
