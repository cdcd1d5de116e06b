"""Two reports side by side."""

import json

import pytest

from vlseg.evaluation.compare import compare, console, markdown, right, write_comparison
from vlseg.evaluation.predictor import SystemPredictor
from vlseg.evaluation.report import build_report, write_report
from vlseg.evaluation.run import SETTINGS, Settings, evaluate
from vlseg.evaluation.samples import write_samples
from vlseg.metrics.bootstrap import paired_differences
from vlseg.metrics.case import Case, Rules
from vlseg.types import VLSegError


@pytest.fixture
def reports(tmp_path, boxes, box_system):
    """reports(name, data, change, settings, **options): a report in a folder, answers changed by `change`."""

    def write(name, data, change=lambda text: text, settings=SETTINGS, **options):
        class Changed(type(box_system)):
            def one(self, image, text, threshold):
                return super().one(image, change(text), threshold)

        predictor = SystemPredictor(Changed(), **options)
        predictor.name = name
        outcome = evaluate(data, predictor, settings)
        folder = tmp_path / name
        folder.mkdir()
        write_report(folder, build_report(outcome, data, predictor, settings))
        write_samples(folder, outcome.records)
        return folder, [record.case for record in outcome.records]

    return write


def worse(text):
    """Misses half of the boxes that begin in an even column."""
    words = text.split()
    if int(words[1]) % 2 == 0:
        words[3] = str(max(1, int(words[3]) // 3))
    return " ".join(words)


def test_differences_and_changed_cases(reports, boxes, tmp_path):
    (a, cases_a), (b, cases_b) = reports("good", boxes(12)), reports("worse", boxes(12), worse)
    found = compare(a, b)
    assert found["metrics"] == paired_differences(cases_a, cases_b)
    assert found["metrics"]["mIoU"]["difference"] < -0.1
    assert found["metrics"]["mIoU"]["ci95"][1] < 0
    changed = [(x, y) for x, y in zip(cases_a, cases_b, strict=True) if right(x) != right(y)]
    assert (found["won"], found["lost"]) == (0, len(changed))
    assert found["lost"] > 5
    assert {entry["id"] for entry in found["changed"]} == {x.id for x, _ in changed}
    entry = found["changed"][0]
    assert entry["to"] == "a"
    assert entry["a"]["iou"] - entry["b"]["iou"] == max(round(x.iou, 6) - round(y.iou, 6) for x, y in changed)
    turned = compare(b, a)
    assert (turned["won"], turned["lost"]) == (found["lost"], 0)
    assert turned["metrics"]["mIoU"]["difference"] == -found["metrics"]["mIoU"]["difference"]
    write_comparison(tmp_path, found)
    assert json.loads((tmp_path / "compare.json").read_text()) == json.loads(json.dumps(found))
    text = (tmp_path / "compare.md").read_text()
    assert text == markdown(found)
    assert "# B: worse against A: good" in text
    assert "| B is lower |" in text
    assert "## Lost by B" in text
    assert "## Won by B" not in text
    assert f"changed hands: 0 to B, {found['lost']} to A" in console(found)


def test_a_report_against_itself(reports, boxes):
    a, _ = reports("a", boxes())
    found = compare(a, a)
    assert found["changed"] == []
    assert all(entry["difference"] == 0 and entry["ci95"] == [0, 0] for entry in found["metrics"].values())


def test_reports_that_cannot_be_compared(reports, boxes, tmp_path):
    a, _ = reports("a", boxes())
    other, _ = reports("other", boxes(seed=1))
    fewer, _ = reports("fewer", boxes(), settings=Settings(limit=3))
    wider, _ = reports("wider", boxes(), settings=Settings(rules=Rules(radius=9)))
    for folder, says in (
        (other, "not the same cases"),
        (fewer, r"\(28 cases\), .*fewer over boxes val \(12 cases\)"),
        (wider, "differ in buffer radius px: 3, 9"),
        (tmp_path / "none", "report.json: not there"),
    ):
        with pytest.raises(VLSegError, match=says):
            compare(a, folder)
    (a / "samples.parquet").unlink()
    with pytest.raises(VLSegError, match=r"samples.parquet: not there"):
        compare(a, a)


def test_deviations_are_said_again(reports, boxes):
    a, _ = reports("a", boxes())
    b, _ = reports("b", boxes(), mask_threshold=0.35)
    found = compare(a, b)
    assert len(found["deviations"]) == 1
    assert "**Not by the protocol**" in markdown(found)


def test_what_is_right():
    assert right(Case("a", "1", intersection=51, union=100))
    assert not right(Case("a", "1", intersection=50, union=100))
    assert right(Case("a", "1", absent=True, status="absent"))
    assert not right(Case("a", "1", absent=True, status="failed"))
