"""The refiner behind any system: what was before stays beside what it made, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vlseg.cli import main
from vlseg.masks import rle as codec
from vlseg.masks.svg import path_to_mask
from vlseg.models.refiner import Refiner, RefinerConfig
from vlseg.models.refiner_crop import refine
from vlseg.segmenter import Segmenter
from vlseg.systems.base import Encoder, segment_of
from vlseg.systems.native import NativeSystem
from vlseg.systems.refine_vlseg import RefinedByVlseg
from vlseg.systems.refining import refined
from vlseg.types import Answer, Result, VLSegError

SIZE = (120, 160)
TEXTS = ["blob", "two", "box", "nothing", "broken"]


def blob(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


BOX = np.zeros(SIZE, bool)
BOX[30:100, 20:90] = True
MASKS = {"blob": [blob(70, 60, 40)], "two": [blob(40, 40, 25), blob(110, 80, 30)], "box": [BOX]}


class Coarse:
    """Answers with discs and a box; in path mode it says so."""

    name, protocol, modes, presence_threshold = "coarse", "coarse", ("mask", "path"), 0.5
    mode = "mask"

    def segment_batch(self, images, queries, *, presence_threshold=None, mask_threshold=0.5, mode="mask"):
        self.mode = mode
        return [[self.answer(text) for text in row] for row in queries]

    def answer(self, text: str) -> Answer:
        if text == "broken":
            return Answer(text, "failed", None, SIZE, "could not be asked")
        if text not in MASKS:
            return Answer(text, "absent", 0.1, SIZE)
        segments = [segment_of(mask, 0.9 - 0.1 * i) for i, mask in enumerate(MASKS[text])]
        for segment in segments:
            segment.stage = self.mode
        return Answer(text, "found", 0.9, SIZE, segments=segments)


@pytest.fixture(scope="module")
def model() -> Refiner:
    """A tiny refiner whose random masks differ from what it is given."""
    torch.manual_seed(1)
    config = RefinerConfig(tower="test_convnext", size=64, dim=16, fine=[12, 8], blocks=1, heads=2, iterations=2)
    made = Refiner(config).eval()
    with torch.no_grad():
        made.tokens.mul_(50)
        made.weights[-1].weight.mul_(8)
    return made


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("refiner")
    model.save_pretrained(place, torch.float32)
    return place


@pytest.fixture(scope="module")
def picture_of_size(picture):
    made = picture(0)
    assert (made.height, made.width) == SIZE
    return made


@pytest.mark.parametrize("mode", ["mask", "path"])
def test_answers_hold_both_masks_and_the_stage(model, picture_of_size, mode):
    system = RefinedByVlseg(Coarse(), model)
    before = Coarse().segment_batch([picture_of_size], [TEXTS], mode=mode)[0]
    after = system.segment(picture_of_size, TEXTS, mode=mode)
    assert "refined by vlseg-refiner, 2 iterations" in system.protocol
    assert system.modes == ("mask", "path")
    changed = 0
    for old, new in zip(before, after, strict=True):
        assert (new.text, new.status, new.score, new.reason) == (old.text, old.status, old.score, old.reason)
        assert len(new.segments) == len(old.segments)
        wanted = refine(model, picture_of_size, [segment.rle for segment in old.segments])
        for was, now, found in zip(old.segments, new.segments, wanted, strict=True):
            assert 0.05 <= found.mask.mean() <= 0.95
            assert (now.stage, now.coarse.stage) == ("refined", mode)
            assert (now.coarse.rle, now.coarse.path) == (was.rle, was.path)
            assert now.score == was.score
            assert np.array_equal(codec.decode(now.rle), found.mask)
            assert np.array_equal(path_to_mask(now.path, SIZE), found.mask)
            assert (now.area, now.bbox) == (codec.area(now.rle), codec.bbox(now.rle))
            changed += now.rle != was.rle
    assert changed == 4
    told = Result("a.png", SIZE, "coarse", after, system.protocol)
    assert Result.from_dict(json.loads(told.to_json())).answers == told.answers


def test_zero_iterations_change_nothing(model, picture_of_size):
    system = RefinedByVlseg(Coarse(), model, iterations=0)
    assert system.segment(picture_of_size, TEXTS) == Coarse().segment_batch([picture_of_size], [TEXTS])[0]


def test_a_mask_that_would_vanish_stays_and_says_so(model, picture_of_size):
    system = RefinedByVlseg(Coarse(), model)
    (answer,) = system.segment(picture_of_size, ["blob"], mask_threshold=1 - 1e-12)
    (segment,) = answer.segments
    assert (segment.stage, segment.coarse) == ("mask", None)
    assert np.array_equal(codec.decode(segment.rle), MASKS["blob"][0])


def test_an_image_encoded_once_gives_the_same(model, tiny_folder, picture_of_size, queries):
    system = RefinedByVlseg(NativeSystem.from_pretrained(tiny_folder, "cpu"), model)
    assert isinstance(system, Encoder)
    encoded = system.encode_batch([picture_of_size])
    assert encoded[0].bytes > 3 * SIZE[0] * SIZE[1]
    wanted = system.segment_batch([picture_of_size], [queries], presence_threshold=0.0)
    assert system.segment_batch(encoded, [queries], presence_threshold=0.0) == wanted
    assert any(segment.stage == "refined" for answer in wanted[0] for segment in answer.segments)


def test_the_segmenter_takes_a_folder(folder, tiny_folder, picture_of_size, queries):
    segmenter = Segmenter(tiny_folder, device="cpu")
    before = segmenter(picture_of_size, queries, presence_threshold=0.0)
    after = segmenter(picture_of_size, queries, presence_threshold=0.0, refine=f"vlseg={folder}")
    assert [a.status for a in before] == [a.status for a in after]
    assert {s.stage for a in before for s in a.segments} == {"mask"}
    refined_ones = [(a, b) for a, b in zip(before, after, strict=True) if b.segments]
    assert len(refined_ones) >= 3
    for old, new in refined_ones:
        assert [s.coarse.rle for s in new.segments] == [s.rle for s in old.segments]
    assert "vlseg-refiner" in after.protocol
    assert "refiner" not in before.protocol


def test_as_many_iterations_as_asked_for(folder, tiny_folder, picture_of_size, queries):
    """By the class's argument, for all calls that refine; the protocol names them."""
    plain = Segmenter(tiny_folder, device="cpu", refine_iterations=3)
    three = plain(picture_of_size, queries, presence_threshold=0.0, refine=f"vlseg={folder}")
    own = Segmenter(tiny_folder, device="cpu", refine=f"vlseg={folder}")
    two = own(picture_of_size, queries, presence_threshold=0.0)
    assert "vlseg-refiner, 3 iterations" in three.protocol
    assert "vlseg-refiner, 2 iterations" in two.protocol
    model = Refiner.from_pretrained(folder)
    changed = 0
    for a, b in zip(three, two, strict=True):
        for x, y in zip(a.segments, b.segments, strict=True):
            (wanted,) = refine(model, picture_of_size, [x.coarse.rle], 3)
            assert x.rle == wanted.rle
            assert x.coarse == y.coarse
            changed += x.rle != y.rle
    assert changed >= 2
    none = Segmenter(tiny_folder, device="cpu", refine=f"vlseg={folder}", refine_iterations=0)
    assert {s.stage for a in none(picture_of_size, queries, presence_threshold=0.0) for s in a.segments} == {"mask"}


@pytest.mark.parametrize(
    ("refine", "iterations", "words"),
    [("vlseg", 9, "must lie in 0..8"), ("vlseg", -1, "must lie in 0..8"), ("sam2", 2, "has no iterations")],
)
def test_wrong_iterations(tiny_folder, refine, iterations, words):
    with pytest.raises(VLSegError, match=words):
        Segmenter(tiny_folder, device="cpu", refine=refine, refine_iterations=iterations)


def test_the_verb_takes_iterations(folder, tiny_folder, picture_of_size, tmp_path, capsys):
    """One image and bulk runs alike."""
    (tmp_path / "photos").mkdir()
    picture_of_size.save(tmp_path / "photos" / "a.png")
    common = ["segment", str(tmp_path / "photos"), "the red dog", "--model", str(tiny_folder), "--device", "cpu"]
    common += ["--presence-threshold", "0", "--refine", f"vlseg={folder}", "--refine-iterations"]
    assert main([*common, "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "vlseg-refiner, 1 iterations" in told["protocol"]
    bulk = [*common, "1", "--out", str(tmp_path / "out"), "--engine", "local", "--quiet"]
    assert main(bulk) == 0
    line = next((tmp_path / "out").rglob("*.jsonl")).read_text().splitlines()[0]
    assert json.loads(line)["answers"] == told["answers"]
    capsys.readouterr()
    for number, words in (("9", "must lie in 0..8"), ("-1", "must be at least 0"), ("two", "not a whole number")):
        assert main([*common, number]) == 2
        assert words in capsys.readouterr().err
    assert main([*common[:7], "--refine-iterations", "2"]) == 2
    assert "Name it with --refine vlseg" in capsys.readouterr().err


def test_tiles_come_before_the_refiner(folder, tiny_folder, picture_of_size, queries):
    segmenter = Segmenter(tiny_folder, device="cpu", tile=96, refine=f"vlseg={folder}")
    found = segmenter(picture_of_size, queries, presence_threshold=0.0)
    assert "refined" in {s.stage for a in found for s in a.segments}


@pytest.mark.parametrize(
    ("refine", "words"),
    [("vlsek", "unknown; known: none, vlseg"), ("vlseg=", "unknown"), ("vlseg=/no/such", "no config.json in /no/such")],
)
def test_wrong_refiners(refine, words):
    with pytest.raises(VLSegError, match=words) as caught:
        refined(Coarse(), refine)
    assert "\n" not in str(caught.value)


def test_the_embedded_refiner_makes_masks_sharper():
    """It knows sprites: coarse masks of an unseen scene come nearer to the truth, and their edges nearer still."""
    from vlseg.metrics.boundary import boundary_overlap
    from vlseg.systems.registry import EMBEDDED_REFINER, WEIGHTS
    from vlseg.training.refine_examples import scene_examples

    folder = WEIGHTS / EMBEDDED_REFINER
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4e6
    model = Refiner.from_pretrained(folder)
    examples = scene_examples(
        906_001, 0, 24, kinds=["path", "written path", "wobbly", "low resolution"], size=(256, 256)
    )
    before, after, edges = [], [], []
    for example in examples:
        (found,) = refine(model, example.image, [example.coarse])
        rle, truth = codec.encode(found.mask), codec.decode(example.truth)
        before.append(codec.iou([example.coarse], [example.truth])[0, 0])
        after.append(codec.iou([rle], [example.truth])[0, 0])
        ours, theirs = (boundary_overlap(mask, truth) for mask in (found.mask, codec.decode(example.coarse)))
        edges.append(ours[0] / ours[1] - theirs[0] / theirs[1])
    assert 0.5 < np.mean(before) < 0.9
    assert np.mean(after) > np.mean(before) + 0.03
    assert np.mean(edges) > 0.03
