"""What an export tells of its answers is what they are, and it can tell that they are others."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from results_made import iou, segment

from vlseg.cli import main
from vlseg.export import agreement
from vlseg.export.agreement import Agreement, in_words
from vlseg.export.models import FACTS, describe, export_model
from vlseg.segmenter import Segmenter
from vlseg.types import Answer, VLSegError

SIZE = (40, 60)


def box(first, last):
    mask = np.zeros(SIZE, bool)
    mask[10:30, first:last] = True
    return mask


def answer(mask):
    """found with a mask; "absent" and "failed" as they are."""
    if isinstance(mask, str):
        return Answer("it", mask, 0.1, SIZE, "too long" if mask == "failed" else None)
    return Answer("it", "found", 0.9, SIZE, segments=[segment(mask, 0.9)])


@pytest.mark.parametrize(("source", "export", "same", "masks", "mean"), [
    ([box(0, 30), box(0, 30), "absent"], [box(0, 30), box(10, 40), "absent"], 1.0, 2, 0.75),
    ([box(0, 30), "absent", "absent", "failed"], ["absent", box(0, 30), "absent", "failed"], 0.5, 2, 0.0),
    ([box(0, 30), box(0, 30)], ["failed", box(0, 30)], 0.5, 2, 0.5),
    (["absent", "failed"], ["absent", "absent"], 0.5, 0, None),
])  # fmt: skip
def test_what_counts(asked, monkeypatch, tmp_path, source, export, same, masks, mean):
    """Two boxes that share two thirds of each overlap by a half; both absent is agreement, and no mask."""
    rows = {"source": source, "export": export}

    def load(folder, **_):
        return lambda image, texts: SimpleNamespace(answers=[answer(mask) for mask in rows[folder.name]])

    monkeypatch.setattr(agreement, "Segmenter", load)
    found = Agreement(str(asked(["it"] * len(source), 1)))
    found.ask_source(tmp_path / "source")
    told = found.of(tmp_path / "export")
    assert (told["images"], told["queries"], told["masks"]) == (1, len(source), masks)
    assert (told["same_status"], told["mean_iou"]) == (same, mean if mean is None else pytest.approx(mean))
    assert (f"mean IoU {mean:.4f}" if masks else "no masks to compare") in in_words(told)


@pytest.mark.parametrize(("kind", "options", "least"), [
    ("merged", {}, 1.0), ("int8", {}, 0.98), ("int4", {"group": 32}, 0.6), ("int4", {"group": 8}, 0.6),
])  # fmt: skip
def test_what_is_told_is_what_both_answer(tiny_folder, segmenter, queries, asked, tmp_path, kind, options, least):
    data = asked(queries)
    out = export_model(kind, tiny_folder, tmp_path / "out", data=str(data), limit=2, **options)
    told = json.loads((out / FACTS).read_text())["agreement"]
    pictures = [data.with_name("0.png"), data.with_name("1.png")]
    theirs = [a for result in segmenter(pictures, queries) for a in result]
    mine = [a for result in Segmenter(out, device="cpu")(pictures, queries) for a in result]
    assert any(a.status == "found" for a in theirs)
    assert any(a.status == "absent" for a in theirs)
    assert all(0.05 < a.mask.mean() < 0.95 for a in theirs if a.status == "found")
    overlaps = [iou(a.mask, b.mask) for a, b in zip(mine, theirs, strict=True) if a.mask.any() or b.mask.any()]
    same = np.mean([a.status == b.status for a, b in zip(mine, theirs, strict=True)])
    assert told == {"data": str(data), "images": 2, "queries": 10, "same_status": pytest.approx(same),
                    "masks": len(overlaps), "mean_iou": pytest.approx(np.mean(overlaps))}  # fmt: skip
    assert told["mean_iou"] >= least
    assert (told["mean_iou"] == 1.0) == (kind == "merged")  # rounding is seen
    assert describe(out).endswith(in_words(told))


def test_the_verb_tells_it(tiny_folder, queries, asked, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["merged", tiny_folder, f"data={asked(queries)}", "limit=1", "dtype=float16"]
    assert main(["export", *map(str, words), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    told = json.loads((out / FACTS).read_text())["agreement"]
    assert (told["images"], told["queries"]) == (1, 5)
    assert told["mean_iou"] > 0.99
    assert captured.err.splitlines()[-1].endswith(in_words(told))


def test_what_cannot_be_measured_is_said_before_anything_is_written(tiny_folder, queries, asked, tmp_path):
    def fails(match, **options):
        with pytest.raises(VLSegError, match=match) as told:
            export_model("merged", tiny_folder, tmp_path / "out", **options)
        assert "\n" not in str(told.value)
        assert list(tmp_path.iterdir()) == []

    data = asked(queries, 1)
    fails("spritez", data="spritez?n=4")
    fails("limit 0: must be a number of pictures", data=str(data), limit=0)
    fails("limit many: must be", data=str(data), limit="many")
    fails("limit: a number of pictures of data=SPEC", limit=3)
    fails("did you mean data", dataa=str(data))
    fails("no query in its first 20 pictures", data=str(asked([], 1)))
    data.with_name("0.png").write_bytes(b"no picture")
    fails("0.png", data=str(data))
