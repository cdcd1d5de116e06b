"""What a run leaves behind: report.json by its contract, samples, Markdown, the gallery."""

import base64
import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlseg.data.dataset import Problem
from vlseg.evaluation.baselines import baseline
from vlseg.evaluation.gallery import choose, picture, write_gallery
from vlseg.evaluation.markdown import cell, console, markdown, write_markdown
from vlseg.evaluation.predictor import SystemPredictor
from vlseg.evaluation.report import build_report, read_report, write_report
from vlseg.evaluation.run import Settings, evaluate
from vlseg.evaluation.samples import read_samples, write_samples
from vlseg.evaluation.slices import slices
from vlseg.masks import rle as codec
from vlseg.metrics.bootstrap import with_intervals
from vlseg.metrics.case import Case
from vlseg.types import VLSegError

SETTINGS = Settings(batch=3)


@pytest.fixture
def made(boxes, box_system):
    """(report, outcome, data): with a failure, an unlabelled query, a broken record and a baseline."""
    data = boxes(6)
    data.problems.append(Problem("boxes.json: annotation 17", "no polygon"))
    data.samples[4].queries[0].text += " <b>crash</b>"
    data.samples[5].queries[1].masks = None
    predictor = SystemPredictor(box_system, mask_threshold=0.35)
    outcome = evaluate(data, predictor, SETTINGS)
    others = {"baseline:whole-image": evaluate(data, baseline("baseline:whole-image", data), SETTINGS)}
    return build_report(outcome, data, predictor, SETTINGS, others, notes=["a note"]), outcome, data


def test_report_by_the_contract(made):
    report, outcome, _ = made
    assert list(report)[:4] == ["protocol", "cases", "metrics", "slices"]
    assert report["cases"] == 23
    cases = [record.case for record in outcome.records]
    want = with_intervals(cases)
    assert set(report["metrics"]) == set(want)
    assert {"cIoU", "mIoU", "P@0.5", "gIoU", "N-acc", "T-acc", "boundary-IoU", "NTA-rate", "wrong-instance"} <= set(
        want
    )
    for name, entry in report["metrics"].items():
        assert entry == {"value": want[name]["value"], "ci95": want[name]["ci95"]}
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    for part in report["slices"].values():
        assert set(part) == {"cases", "metrics"}
        assert all(set(entry) == {"value", "ci95"} for entry in part["metrics"].values())
    assert report["baselines"]["baseline:whole-image"]["N-acc"]["value"] == 0
    counts = report["counts"]
    assert (counts["images"], counts["present"], counts["absent"]) == (6, 17, 6)
    assert (counts["failed"], counts["failed by an error"], counts["left out"]) == (1, 1, 1)
    assert counts["unlabelled queries skipped"] == 1
    assert counts["by metric"]["N-acc"] == 6
    assert report["failures"] == [f"4:0 ({cases[16].text}): RuntimeError: out of luck"]
    assert report["left_out"] == ["boxes.json: annotation 17: no polygon"]
    assert report["notes"] == ["a note"]
    protocol = report["protocol"]
    assert (protocol["model"], protocol["data"], protocol["split"]) == ("box-system", "boxes", "val")
    assert (protocol["mode"], protocol["batch"], protocol["buffer_radius_px"]) == ("free-running", 3, 3)
    assert protocol["boundary_dilation_ratio"] == 0.02
    assert len(protocol["deviations"]) == 1
    assert set(report["times"]["image"]) == {"p50_ms", "p95_ms"}
    assert report["versions"]["pycocotools"]
    json.dumps(report, allow_nan=False)


def test_only_times_differ_between_two_runs(boxes, box_system):
    reports = []
    for _ in range(2):
        predictor = SystemPredictor(box_system)
        reports.append(build_report(evaluate(boxes(), predictor, SETTINGS), boxes(), predictor, SETTINGS))
        del reports[-1]["times"]
    assert json.dumps(reports[0]) == json.dumps(reports[1])


def test_hashes_tell_cases_and_predictions_apart(boxes, box_system):
    def hashes(data, **options):
        predictor = SystemPredictor(box_system, **options)
        return build_report(evaluate(data, predictor, SETTINGS), data, predictor, SETTINGS)["hashes"]

    a, b, c = hashes(boxes()), hashes(boxes(seed=1)), hashes(boxes(), presence_threshold=0.95)
    assert a["cases"] == c["cases"] != b["cases"]
    assert len({h["predictions"] for h in (a, b, c)}) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in a.values())


def test_report_on_disk(made, tmp_path):
    report, *_ = made
    write_report(tmp_path, report)
    assert read_report(tmp_path) == json.loads(json.dumps(report))
    with pytest.raises(VLSegError, match=r"nowhere.report.json: not there"):
        read_report(tmp_path / "nowhere")
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(VLSegError, match="not a report"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(VLSegError, match="cannot be read"):
        read_report(tmp_path)


def test_slices():
    cases = [
        Case("a", "1", "one", area=1023, distractors=0, kind="name"),
        Case("b", "1", "one two three", area=1024, distractors=1, kind="place"),
        Case("c", "1", "one two three four five six", area=96**2, distractors=4),
        Case("d", "1", "w " * 10, absent=True, kind="absent", distractors=2),
        Case("e", "1", "one two", area=5, distractors=5),
    ]
    got = {name: "".join(case.id for case in part) for name, part in slices(cases).items()}
    assert got == {
        "presence: present": "abce",
        "presence: absent": "d",
        "size: small (< 32² px)": "ae",
        "size: medium (< 96² px)": "b",
        "size: large": "c",
        "length: 1-2 words": "ae",
        "length: 3-5 words": "b",
        "length: 6-9 words": "c",
        "length: 10 words or more": "d",
        "distractors: none": "a",
        "distractors: 1": "b",
        "distractors: 2-4": "c",
        "distractors: 5 or more": "e",
        "kind: absent": "d",
        "kind: name": "a",
        "kind: place": "b",
    }
    assert list(got)[:4] == [
        "presence: present",
        "presence: absent",
        "size: small (< 32² px)",
        "size: medium (< 96² px)",
    ]
    assert list(slices(cases[:1])) == []  # a group of one slice says nothing new


def test_samples_round_trip(made, tmp_path):
    _, outcome, _ = made
    write_samples(tmp_path, outcome.records)
    assert read_samples(tmp_path) == outcome.records
    table = pq.read_table(tmp_path / "samples.parquet").to_pydict()
    for n, record in enumerate(outcome.records):
        size = [table["height"][n], table["width"][n]]
        truth = codec.decode({"size": size, "counts": table["truth"][n]})
        prediction = codec.decode({"size": size, "counts": table["prediction"][n]})
        assert table["intersection"][n] == (truth & prediction).sum()
        assert table["union"][n] == (truth | prediction).sum()
        assert table["iou"][n] == record.case.iou
    with pytest.raises(VLSegError, match="not there"):
        read_samples(tmp_path / "x")
    (tmp_path / "samples.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(VLSegError, match="not the samples of a report"):
        read_samples(tmp_path)


def test_markdown(made, tmp_path):
    report, *_ = made
    text = write_markdown(tmp_path, report).read_text()
    assert text == markdown(report)
    assert '<span style="color:red">**Not by the protocol**: mask threshold 0.35' in text
    for name, entry in report["metrics"].items():
        assert f"| {name} | {entry['value']:.4f} |" in text
    assert "## Baselines" in text
    assert "presence: absent" in report["slices"]
    for name, part in report["slices"].items():
        assert f"| {cell(name)} ({part['cases']}) |" in text
    assert "RuntimeError: out of luck" in text
    assert "&lt;b&gt;crash" in text  # words are no markup
    assert "annotation 17: no polygon" in text
    assert "(p50)" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) > 40
    shown = console(report)
    assert "17 with a target, 6 without; 1 failed; 1 unlabelled queries skipped; 1 records left out" in shown
    assert "baseline:whole-image  mIoU" in shown


def test_gallery(made, tmp_path):
    report, outcome, data = made
    data.samples[2].image = tmp_path / "gone.png"
    page = write_gallery(tmp_path, outcome.records, data, report).read_text()
    for title in ("Worst", "Found though not there", "Failed"):
        assert f"<h2>{title}</h2>" in page
    assert "gone.png: no such file" in page
    assert "&lt;b&gt;crash&lt;/b&gt;" in page
    assert "<b>crash</b>" not in page
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(", page)  # needs nothing else
    pictures = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", page)
    assert len(pictures) > 8
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (80, 60)


def test_the_gallery_shows_each_case_once(made):
    _, outcome, _ = made
    groups = choose(outcome.records, each=4)
    ids = [record.case.id for part in groups.values() for record in part]
    assert len(ids) == len(set(ids))
    worst = [record.case.iou for record in groups["Worst"]]
    assert worst == sorted(worst)
    assert worst[0] == min(r.case.iou for r in outcome.records if r.case.found and not r.case.absent)
    assert len(groups["Worst"]) == 4


def test_a_picture_is_scaled_and_drawn_on(made):
    _, outcome, data = made
    record = outcome.records[1]  # asked for beside its place
    large = data[0].image.resize((800, 600), Image.Resampling.NEAREST)
    mask = codec.decode(record.truth)
    record.truth = codec.encode(np.kron(mask, np.ones((10, 10), bool)))
    record.prediction = codec.encode(np.zeros((600, 800), bool))
    drawn = picture(large, record, side=200)
    assert drawn.size == (200, 150)
    plain = np.asarray(large.resize((200, 150), Image.Resampling.BILINEAR)).astype(int)
    changed = (np.abs(np.asarray(drawn).astype(int) - plain) > 2).any(2)
    x, y, w, h = (v * 200 / 800 for v in codec.bbox(record.truth))
    assert changed[round(y) + 4 : round(y + h) - 4, round(x) + 4 : round(x + w) - 4].sum() == 0  # an outline only
    assert changed[round(y), round(x) : round(x + w)].all()
