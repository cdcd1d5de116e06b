from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.masks.svg import path_to_rle
from vlseg.systems import passes
from vlseg.systems.base import System, decide
from vlseg.systems.native import NativeSystem, pick_device, pick_dtype
from vlseg.types import VLSegError


@pytest.fixture(scope="module")
def system(segmenter) -> NativeSystem:
    return segmenter.system


def same(a, b) -> None:
    """Equal answers; scores to rounding, masks bit for bit."""
    assert [x.text for x in a] == [x.text for x in b]
    assert [x.status for x in a] == [x.status for x in b]
    assert [x.score for x in a] == pytest.approx([x.score for x in b], abs=1e-5)
    assert [[s.rle for s in x.segments] for x in a] == [[s.rle for s in x.segments] for x in b]


def test_is_a_system(system: NativeSystem):
    assert isinstance(system, System)


def test_packed_equals_one_by_one(system: NativeSystem, picture, queries, assert_foreground):
    packed = system.segment(picture(), queries, presence_threshold=0)
    assert_foreground(packed)
    assert len({a.segments[0].rle["counts"] for a in packed}) == len(queries), "masks must differ to tell a mix-up"
    single = [system.segment(picture(), [q], presence_threshold=0)[0] for q in queries]
    same(packed, single)


def test_passes_share_the_encoding(system: NativeSystem, picture, queries, monkeypatch, assert_foreground):
    whole = system.segment(picture(), queries, presence_threshold=0)
    assert_foreground(whole)
    calls = []
    encode = system.model.encode_image
    monkeypatch.setattr(system.model, "encode_image", lambda pixels: calls.append(1) or encode(pixels))
    monkeypatch.setattr(passes, "QUERIES_A_PASS", 2)
    same(system.segment(picture(), queries, presence_threshold=0), whole)
    monkeypatch.setattr(passes, "QUERIES_A_PASS", 64)
    monkeypatch.setattr(passes, "TOKENS_A_PASS", 8)
    same(system.segment(picture(), queries, presence_threshold=0), whole)
    assert len(calls) == 2


def test_more_queries_than_a_pass_holds(system: NativeSystem, picture, queries):
    many = system.segment(picture(), queries * 20, presence_threshold=0)
    assert len(many) == 100
    same(many[95:], many[:5])


def test_batch_equals_one_by_one(system: NativeSystem, picture, queries, assert_foreground):
    shapes = [(120, 160), (160, 120), (60, 80), (300, 100), (120, 160)]
    images = [picture(i, *shape) for i, shape in enumerate(shapes)]
    rows = [queries[: i + 1] for i in range(len(images))]
    batch = system.segment_batch(images, rows, presence_threshold=0)
    for image, row, answers in zip(images, rows, batch, strict=True):
        assert_foreground(answers)
        assert answers[0].size == (image.height, image.width)
        same(answers, system.segment(image, row, presence_threshold=0))


def test_found_absent_failed(system: NativeSystem, picture, queries, assert_foreground):
    answers = system.segment(picture(), queries)
    assert sorted(a.status for a in answers) == ["absent", "absent", "found", "found", "found"]
    assert_foreground(answers)
    for answer in answers:
        assert (answer.status == "found") == (answer.score >= system.presence_threshold)
        assert len(answer.segments) == (answer.status == "found")
    (empty,) = system.segment(picture(), queries[:1], presence_threshold=0, mask_threshold=0.999999)
    assert empty.status == "failed"
    assert "no pixel" in empty.reason
    assert empty.score == pytest.approx(answers[0].score)


def test_a_segment_is_consistent(system: NativeSystem, picture, queries):
    answer = system.segment(picture(3, 97, 141), queries, presence_threshold=0)[0]
    segment, mask = answer.segments[0], answer.mask
    assert mask.shape == (97, 141)
    assert segment.area == mask.sum()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    assert segment.bbox == box
    assert path_to_rle(segment.path, (97, 141)) == segment.rle == codec.encode(mask)


def test_a_query_that_is_too_long_fails_alone(system: NativeSystem, picture, queries):
    answers = system.segment(picture(), [queries[0], "red " * 2500, queries[1]], presence_threshold=0)
    assert [a.status for a in answers] == ["found", "failed", "found"]
    assert "too long" in answers[1].reason
    assert answers[1].score is None
    same([answers[0], answers[2]], system.segment(picture(), queries[:2], presence_threshold=0))
    (alone,) = system.segment(picture(), ["x" * 10_000])
    assert alone.status == "failed"


@pytest.mark.parametrize("text", ["[SEG]", "[REJ]", "<image>", "[PAD]", "<end>", "a [SEG] b"])
def test_typed_control_tokens_are_plain_text(system: NativeSystem, picture, queries, text: str):
    ids = system.processor.query_ids(text)
    tokenizer = system.processor.tokenizer
    assert not set(ids) & set(tokenizer.all_special_ids)
    spaced = text.replace("[", " [ ").replace("]", " ] ").replace("<", " < ").replace(">", " > ")
    assert ids == system.processor.query_ids(spaced)
    answers = system.segment(picture(), [text, queries[0]], presence_threshold=0)
    assert answers[0].text == text
    same(answers[1:], system.segment(picture(), queries[:1], presence_threshold=0))


@pytest.mark.parametrize("queries", [[], [""], ["red", " \t"], ["\udcff"], [3]])
def test_wrong_queries(system: NativeSystem, picture, queries):
    with pytest.raises(VLSegError, match="query"):
        system.segment(picture(), queries)


@pytest.mark.parametrize("options", [{"presence_threshold": 1.5}, {"mask_threshold": 0}, {"mask_threshold": 1}])
def test_wrong_thresholds(system: NativeSystem, picture, options):
    with pytest.raises(VLSegError, match="threshold"):
        system.segment(picture(), ["red"], **options)


def test_images_without_queries_of_their_own(system: NativeSystem, picture):
    with pytest.raises(VLSegError, match="one list an image"):
        system.segment_batch([picture()], [["red"], ["blue"]])


def test_odd_shapes(system: NativeSystem, queries):
    for size in ((1, 1), (20000, 200), (3, 4000)):
        answers = system.segment(Image.new("RGB", size, "red"), queries, presence_threshold=0)
        assert [a.size for a in answers] == [(size[1], size[0])] * len(queries)


def test_half_precision_weights_load_as_float32(system: NativeSystem, tiny_folder, tmp_path):
    from vlseg.systems.quiet import quiet_loading

    half = NativeSystem.from_pretrained(tiny_folder, "cpu").model.half()
    with quiet_loading():
        half.save_pretrained(tmp_path)
    system.processor.save_pretrained(tmp_path)
    assert NativeSystem.from_pretrained(tmp_path, "cpu").model.dtype == torch.float32


def test_bfloat16_answers_alike(system: NativeSystem, tiny_folder, picture, queries):
    low = NativeSystem.from_pretrained(tiny_folder, "cpu", "bfloat16").segment(picture(), queries)
    high = system.segment(picture(), queries)
    for a, b in zip(low, high, strict=True):
        assert a.score == pytest.approx(b.score, abs=0.1)
        assert (a.mask == b.mask).mean() > 0.9 or a.status != b.status


def test_decide_refuses_what_is_no_number():
    answer = decide("a", float("nan"), 0.5, (2, 2), lambda: np.ones((2, 2), bool))
    assert answer.status == "failed"


def test_devices_and_dtypes():
    assert pick_device("cpu").type == "cpu"
    assert pick_dtype(None, torch.device("cpu")) == torch.float32
    with pytest.raises(VLSegError, match="this machine has"):
        pick_device("cuda:99")
    with pytest.raises(VLSegError, match="this machine has"):
        pick_device("toaster")
    with pytest.raises(VLSegError, match="known: float32"):
        pick_dtype("int7", torch.device("cpu"))
