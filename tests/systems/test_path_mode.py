"""Path mode behind `System` and `Segmenter`: the model's own path, its exact raster, rings as they come."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from vlseg.bulk.output import read_results
from vlseg.cli import main
from vlseg.evaluation.samples import read_samples
from vlseg.masks import rle as codec
from vlseg.masks.path_codec import PathCodec
from vlseg.masks.svg import path_to_rle
from vlseg.models.path_head import add_paths
from vlseg.segmenter import Segmenter
from vlseg.systems.base import PathSystem
from vlseg.systems.native import NativeSystem
from vlseg.systems.native_paths import mask_boxes
from vlseg.systems.quiet import quiet_loading
from vlseg.types import Result, VLSegError


@pytest.fixture(scope="module")
def path_folder(tiny_folder, tmp_path_factory, picture, queries):
    """The tiny checkpoint with path mode, its rows spread so that queries write different paths. Read-only."""
    system = NativeSystem.from_pretrained(tiny_folder, "cpu")
    model, processor = system.model, system.processor
    add_paths(model, processor, PathCodec(grid=6, box_bins=32, curves=True), 24)
    first = model.config.paths["first"]
    rows = model.vlm.get_input_embeddings().weight.data
    for seed in range(100):
        noise = torch.Generator().manual_seed(seed)
        rows[first:] = torch.randn(rows[first:].shape, generator=noise) * 0.05 * rows[:first].std()
        answers = system.segment(picture(), queries, presence_threshold=0, mode="path")
        paths = {answer.segments[0].path for answer in answers if answer.segments}
        if len(paths) == len(queries) and max(answer.mask.mean() for answer in answers) > 0.05:
            break
    folder = tmp_path_factory.mktemp("paths")
    with quiet_loading():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(path_folder):
    """A Segmenter of that checkpoint."""
    return Segmenter(path_folder, device="cpu")


def test_the_path_is_the_mask(drawn, picture, queries):
    result = drawn(picture(), queries, presence_threshold=0, mode="path")
    assert [answer.text for answer in result] == queries
    found = [answer for answer in result if answer.status == "found"]
    assert len(found) == len(queries)
    assert len({answer.segments[0].path for answer in found}) == len(found)
    shares = [answer.mask.mean() for answer in found]
    assert any(0.05 <= share <= 0.95 for share in shares), shares
    for answer in found:
        (segment,) = answer.segments
        assert path_to_rle(segment.path, (120, 160)) == segment.rle
        assert segment.area == codec.area(segment.rle) > 0
        assert segment.bbox == codec.bbox(segment.rle)
    assert "path: the likeliest tokens" in result.protocol
    masks = drawn(picture(), queries, presence_threshold=0)
    assert [a.score for a in masks] == pytest.approx([a.score for a in result], abs=1e-6)
    assert all(a.segments[0].path != b.segments[0].path for a, b in zip(masks, found, strict=True))


def test_packed_equals_one_by_one_and_batches(drawn, picture, queries):
    rows = [queries, queries[1:3]]
    both = drawn([picture(0), picture(1)], rows, presence_threshold=0, mode="path")
    for number, row in enumerate(rows):
        for k, text in enumerate(row):
            (alone,) = drawn(picture(number), text, presence_threshold=0, mode="path")
            packed = both[number][k]
            assert [(s.rle, s.path) for s in alone.segments] == [(s.rle, s.path) for s in packed.segments]


def test_who_is_absent_writes_nothing(drawn, picture, queries, monkeypatch):
    result = drawn(picture(), queries, mode="path")
    status = {answer.status for answer in drawn(picture(), queries)}
    assert status == {"found", "absent"}
    for answer, mask in zip(result, drawn(picture(), queries), strict=True):
        assert (answer.status == "absent") == (mask.status == "absent")
        assert bool(answer.segments) == (answer.status == "found")
    steps = []
    inner = drawn.system.model.vlm.model.forward
    monkeypatch.setattr(drawn.system.model.vlm.model, "forward", lambda **k: steps.append(1) or inner(**k))
    assert {a.status for a in drawn(picture(), queries, presence_threshold=1, mode="path")} == {"absent"}
    assert len(steps) == 1, "only the packed row itself was read"


def test_the_box_of_the_mask_begins_the_path(path_folder, picture, queries):
    boxed = Segmenter(path_folder, device="cpu")
    system, paths = boxed.system, boxed.system.model.config.paths
    written = boxed(picture(), queries, presence_threshold=0, mode="path")
    paths["box"] = "mask"
    told = NativeSystem(system.model, system.processor, "boxed")
    answers = Segmenter(told)(picture(), queries, presence_threshold=0, mode="path")
    assert "paths begin with the mask's box" in answers.protocol
    assert "box" not in written.protocol
    masks = boxed(picture(), queries, presence_threshold=0)
    kept = []
    for answer, mask, own in zip(answers, masks, written, strict=True):
        assert 0.05 < mask.mask.mean() < 0.95
        assert answer.segments != own.segments
        left, top, width, height = frame(answer.segments[0].path)
        x, y, w, h = mask.segments[0].bbox
        assert left >= x - 160 / paths["box_bins"] - 1
        assert top >= y - 120 / paths["box_bins"] - 1
        assert left + width <= x + w + 160 / paths["box_bins"] + 1
        assert top + height <= y + h + 120 / paths["box_bins"] + 1
        kept.append((left, top))
    assert len(set(kept)) > 1


def test_without_a_mask_the_model_writes_the_box_too(path_folder, picture, queries):
    """And the protocol says so: what a mask without a pixel has no box of is the model's own."""
    plain = Segmenter(path_folder, device="cpu")
    system, paths = plain.system, plain.system.model.config.paths
    with torch.no_grad():
        system.model.mask_head.bias.bias.sub_(1e4)
    masks = plain(picture(), queries, presence_threshold=0)
    assert {answer.status for answer in masks} == {"failed"}
    written = plain(picture(), queries, presence_threshold=0, mode="path")
    paths["box"] = "mask"
    boxed = Segmenter(NativeSystem(system.model, system.processor, "boxed"))
    answers = boxed(picture(), queries, presence_threshold=0, mode="path")
    assert "or where the mask is empty with one of the model's own" in answers.protocol
    assert [answer.segments for answer in answers] == [answer.segments for answer in written]
    assert any(0.05 <= answer.mask.mean() <= 0.95 for answer in answers)


def test_a_segmenter_of_path_mode(path_folder, tiny_folder, drawn, picture, queries):
    """For all its calls that name no mode."""
    segmenter = Segmenter(path_folder, device="cpu", mode="path")
    found = segmenter(picture(), queries, presence_threshold=0)
    named = drawn(picture(), queries, presence_threshold=0, mode="path")
    assert (found.answers, found.protocol) == (named.answers, named.protocol)
    assert segmenter.protocol(0) == found.protocol != drawn.protocol(0)
    masks = drawn(picture(), queries, presence_threshold=0)
    assert segmenter(picture(), queries, presence_threshold=0, mode="mask").answers == masks.answers
    assert masks.answers != found.answers
    (batch,) = segmenter([picture()], [queries], presence_threshold=0)
    assert batch.answers == found.answers
    with pytest.raises(VLSegError, match="has no path mode"):
        Segmenter(tiny_folder, device="cpu", mode="path")
    with pytest.raises(VLSegError, match="'ring': unknown; known: mask, path"):
        Segmenter(path_folder, device="cpu", mode="ring")
    with pytest.raises(VLSegError, match="tiles give masks alone"):
        Segmenter(path_folder, device="cpu", mode="path", tile=64)


def frame(path: str) -> tuple[float, float, float, float]:
    """x, y, width, height of the numbers of a path."""
    places = np.array(re.findall(r"-?[0-9.]+", path), float).reshape(-1, 2)
    return (*places.min(0), *(places.max(0) - places.min(0)))


def test_crumbs_do_not_widen_the_box():
    logits = torch.full((1, 3, 20, 30), -5.0)
    logits[0, 0, 4:12, 6:18] = 5.0
    logits[0, 0, 18, 28] = 5.0  # less than a tenth of the piece above
    logits[0, 1] = logits[0, 0]
    paths = PathCodec(grid=6, box_bins=30)
    wanted = np.array([[True, False, True]])
    boxes = mask_boxes(logits, wanted, paths)
    assert list(boxes) == [(0, 0)], "asked for, and not empty"
    first = paths.vocabulary.first["box"]
    assert np.abs(np.array(boxes[0, 0]) - first - (6, 6, 17, 17)).max() <= 1  # bins of 1 pixel across, 2/3 down


def test_streams(drawn, picture, queries):
    whole = drawn(picture(), queries, presence_threshold=0, mode="path")
    parts = list(drawn.stream(picture(), queries, 0))
    last = {part.index: part for part in parts}
    assert [part.done for part in last.values()] == [True] * len(queries)
    assert sum(part.done for part in parts) == len(queries)
    assert [last[k].answer for k in range(len(queries))] == whole.answers
    drawn_at = [list(drawn.stream(picture(), queries, 0, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert drawn_at[0] == drawn_at[1] != drawn_at[2]
    assert any(not part.done for parts in drawn_at for part in parts), "some path has several rings"
    early = list(drawn.stream(picture(), queries, 0, max_tokens=6))
    assert all(part.answer.segments[0].path.count("M") == 1 for part in early if part.answer.segments)
    absent = list(drawn.stream(picture(), queries, 1))
    assert [part.answer.status for part in absent] == ["absent"] * len(queries)


def test_a_query_that_is_too_long_fails_alone(drawn, picture, queries):
    texts = [queries[0], "dog " * 100, queries[1]]
    result = drawn(picture(), texts, presence_threshold=0, mode="path")
    assert "too long" in result[1].reason
    assert (result[0].segments, result[2].segments) == tuple(
        a.segments for a in drawn(picture(), queries[:2], presence_threshold=0, mode="path")
    )


def test_a_path_without_a_pixel_fails(drawn, picture, monkeypatch):
    monkeypatch.setattr("vlseg.models.grammar.PathGrammar.masked", empty_path)
    answer = drawn(picture(), "the red dog", presence_threshold=0, mode="path")[0]
    assert (answer.status, answer.segments) == ("failed", [])
    assert "encloses no pixel" in answer.reason


def empty_path(self, logits, state, left=None):
    """Nothing but the end of the path."""
    out = torch.full_like(logits, float("-inf"))
    out[..., self.vocabulary.first["end"]] = 0.0
    return out


def test_old_checkpoints_have_no_path_mode(segmenter, picture):
    assert segmenter.system.model.config.paths == {}
    assert segmenter.system.modes == ("mask",)
    with pytest.raises(VLSegError, match="has no path mode"):
        segmenter(picture(), "red", mode="path")
    with pytest.raises(VLSegError, match="has no path mode"):
        segmenter.stream(picture(), "red")


def test_reloaded_checkpoints_keep_it(drawn, path_folder):
    assert isinstance(drawn.system, PathSystem)
    assert drawn.system.modes == ("mask", "path")
    paths = drawn.system.model.config.paths
    first = drawn.system.processor.tokenizer.convert_tokens_to_ids("<path_end>")
    assert paths == {"grid": 6, "box_bins": 32, "joint": True, "curves": True, "first": first, "max_tokens": 24}


@pytest.mark.parametrize("typed", ["<ring>", "the <xy_3_5> dog", "<path_end>", "<box_3><box_4>"])
def test_typed_text_is_no_path_token(drawn, typed):
    ids = drawn.system.processor.query_ids(typed)
    assert max(ids) < drawn.system.model.config.paths["first"]
    assert len(ids) > len(drawn.system.processor.query_ids("the dog"))


def test_the_command_line(path_folder, picture, tmp_path, capsys):
    picture().save(tmp_path / "a.png")
    call = [
        "segment",
        str(tmp_path / "a.png"),
        "the red dog",
        "blue cat",
        "--model",
        str(path_folder),
        "--presence-threshold",
        "0",
    ]
    out = tmp_path / "out"
    assert main([*call, "--mode", "path", "--out", str(out), "--device", "cpu"]) in (0, 1)
    told = json.loads((out / "a.json").read_text())
    assert "path: the likeliest tokens" in told["protocol"]
    for answer in told["answers"]:
        for segment in answer["segments"]:
            assert path_to_rle(segment["path"], (120, 160)) == segment["rle"]
            assert np.isfinite(segment["score"])
    capsys.readouterr()


def test_scores_are_those_of_the_written_paths(path_folder, drawn, picture, queries, tmp_path, capsys):
    """`vlseg eval --mode path` over pictures whose truth is what mask mode finds: paths are scored, and said to be."""
    lines, given = [], []
    for seed in range(3):
        picture(seed).save(tmp_path / f"{seed}.png")
        masks = drawn(picture(seed), queries, presence_threshold=0)
        asked = [{"text": a.text, "masks": [segment.rle for segment in a.segments]} for a in masks if a.segments]
        lines.append(json.dumps({"image": f"{seed}.png", "queries": asked}))
        given += drawn(picture(seed), [one["text"] for one in asked], presence_threshold=0, mode="path")
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    call = ["eval", "--model", str(path_folder), "--data", str(tmp_path / "data.jsonl"), "--device", "cpu"]
    call += ["--presence-threshold", "0", "--mode", "path", "--batch", "1"]
    assert main([*call, "--out", str(tmp_path / "out")]) in (0, 1)
    capsys.readouterr()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "mask: the path as written" in report["protocol"]["answers"]
    records = read_samples(tmp_path / "out")
    assert [record.case.status for record in records] == [answer.status for answer in given]
    found = [(record, answer) for record, answer in zip(records, given, strict=True) if answer.segments]
    assert len(found) > 8
    assert any(0.05 < answer.mask.mean() < 0.95 for _, answer in found)
    for record, answer in found:
        assert record.prediction == answer.segments[0].rle
    assert main([*call, "--mask-threshold", "0.4", "--out", str(tmp_path / "other")]) == 2
    assert "leave the option out with --mode path" in capsys.readouterr().err
    assert main([*call, "--mode", "mask", "--out", str(tmp_path / "out")]) == 2  # another run's folder
    capsys.readouterr()


def test_a_model_without_paths_is_not_scored_by_them(tiny_folder, tmp_path, capsys):
    call = ["eval", "--data", "sprites?n=2&size=64x64", "--mode", "path", "--out", str(tmp_path)]
    assert main([*call, "--model", str(tiny_folder)]) == 2
    assert "has no path mode; use --mode mask" in capsys.readouterr().err
    assert main([*call, "--model", "baseline:empty"]) == 2
    assert "--mode: only for a model that is run" in capsys.readouterr().err


def test_bulk(path_folder, drawn, picture, queries, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        picture(seed).save(tmp_path / "photos" / f"{seed}.png")
    (tmp_path / "words.txt").write_text("\n".join(queries))
    call = ["segment", str(tmp_path / "photos"), "--queries", str(tmp_path / "words.txt"), "--model", str(path_folder)]
    call += ["--mode", "path", "--presence-threshold", "0", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*call, "--shard-size", "2", "--batch", "2"]) in (0, 1)
    capsys.readouterr()
    results = [Result.from_dict(data) for data in read_results(tmp_path / "out")]
    assert len(results) == 3
    found = 0
    for seed, result in enumerate(results):
        alone = drawn(picture(seed), queries, presence_threshold=0, mode="path")
        assert "path: the likeliest tokens" in result.protocol
        for answer, other in zip(result, alone, strict=True):
            assert answer.status == other.status
            assert [s.path for s in answer.segments] == [s.path for s in other.segments]
            found += answer.status == "found"
            for segment in answer.segments:
                assert path_to_rle(segment.path, (120, 160)) == segment.rle
    assert found > 8
