"""SAM 2 behind another system: masks as the library gives them, nothing else touched."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vlseg.masks.rle import area, bbox, decode
from vlseg.masks.svg import path_to_rle
from vlseg.segmenter import Segmenter
from vlseg.systems.base import Encoder, segment_of
from vlseg.systems.refine_sam2 import RefinedBySam2
from vlseg.systems.sam2 import Sam2Masks
from vlseg.types import Answer, Result, VLSegError
from vlseg.types import Coarse as Coarser

SIZE = (120, 160)
BOX = (20, 30, 90, 100)  # x0, y0, x1, y1


class Coarse:
    """Answers "blob" with a disc, "box" with a full box, anything else with absent; in path mode it says so."""

    name, protocol, modes, presence_threshold = "coarse", "coarse", ("mask", "path"), 0.5

    def mask(self, text: str) -> np.ndarray:
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        if text == "blob":
            return (y - 60) ** 2 + (x - 70) ** 2 < 40**2
        return (x >= BOX[0]) & (x < BOX[2]) & (y >= BOX[1]) & (y < BOX[3])

    def segment_batch(self, images, queries, *, presence_threshold=None, mask_threshold=0.5, mode="mask"):
        return [[self.answer(text, mode) for text in row] for row in queries]

    def answer(self, text: str, stage: str = "mask") -> Answer:
        if text not in ("blob", "box"):
            return Answer(text, "absent", 0.1, SIZE)
        segment = segment_of(self.mask(text), 0.9)
        segment.stage = stage
        return Answer(text, "found", 0.9, SIZE, segments=[segment])


class MasksAlone(Coarse):
    """A system that knows no mode."""

    modes = ("mask",)

    def segment_batch(self, images, queries, *, presence_threshold=None, mask_threshold=0.5):
        return super().segment_batch(images, queries)


@pytest.fixture(scope="module")
def folder(specimen):
    return specimen("grounded-sam2")[1]


@pytest.fixture(scope="module")
def picture_of_size():
    from vlseg.systems.specimens import pictures

    return pictures()[0]


def plain(folder, picture, mask: np.ndarray | None, box) -> np.ndarray:
    """What transformers says on its own."""
    from transformers import Sam2Model, Sam2Processor

    model, processor = Sam2Model.from_pretrained(folder).eval(), Sam2Processor.from_pretrained(folder)
    inputs = processor(images=picture, input_boxes=[[list(map(float, box))]], return_tensors="pt")
    if mask is not None:
        side = model.prompt_encoder.mask_input_size
        small = torch.nn.functional.interpolate(
            torch.from_numpy(mask)[None, None].float(), side, mode="bilinear", antialias=True
        )
        inputs["input_masks"] = small * 20 - 10
    with torch.inference_mode():
        output = model(**inputs, multimask_output=False)
    return processor.post_process_masks(output.pred_masks, inputs["original_sizes"])[0][0, 0].numpy()


def test_a_mask_and_a_box_prompt_sam2(folder, picture_of_size):
    system = RefinedBySam2(Coarse(), Sam2Masks.from_pretrained(str(folder), "cpu", None))
    blob, box, absent = system.segment(picture_of_size, ["blob", "box", "nothing"])
    assert (absent.status, absent.segments) == ("absent", [])
    for answer, mask, corners in (
        (blob, Coarse().mask("blob"), (31, 21, 110, 100)),
        (box, None, BOX),
    ):
        assert (answer.status, answer.score, answer.segments[0].score) == ("found", 0.9, 0.9)
        wanted = plain(folder, picture_of_size, mask, corners)
        assert 0.05 <= wanted.mean() <= 0.95
        assert np.array_equal(decode(answer.segments[0].rle), wanted)
    assert not np.array_equal(blob.mask, Coarse().mask("blob"))
    assert "sam 2" in system.protocol
    assert isinstance(system, Encoder)
    again = system.segment_batch(system.encode_batch([picture_of_size]), [["blob", "box", "nothing"]])[0]
    assert again == [blob, box, absent]


@pytest.mark.parametrize("mode", ["mask", "path"])
def test_answers_hold_both_masks_and_the_stage(folder, picture_of_size, mode):
    """As the answers of our own refiner do."""
    system = RefinedBySam2(Coarse(), Sam2Masks.from_pretrained(str(folder), "cpu", None))
    assert system.modes == ("mask", "path")
    after = system.segment(picture_of_size, ["blob", "box"], mode=mode)
    before = [Coarse().answer(text, mode) for text in ("blob", "box")]
    for old, new in zip(before, after, strict=True):
        (was,), (now,) = old.segments, new.segments
        assert 0.05 <= new.mask.mean() <= 0.95
        assert now.rle != was.rle
        assert (now.stage, now.coarse) == ("refined", Coarser(mode, was.rle, was.path))
        assert (now.area, now.bbox) == (area(now.rle), bbox(now.rle))
        assert path_to_rle(now.path, SIZE) == now.rle
    told = Result("a.png", SIZE, "coarse", after, system.protocol)
    assert Result.from_dict(json.loads(told.to_json())).answers == after


def test_a_mask_that_would_vanish_stays_and_says_so(folder, picture_of_size):
    system = RefinedBySam2(MasksAlone(), Sam2Masks.from_pretrained(str(folder), "cpu", None))
    (answer,) = system.segment(picture_of_size, ["blob"], mask_threshold=1 - 1e-12)
    assert answer == Coarse().answer("blob")


def test_the_segmenter_takes_a_refiner(folder, picture_of_size, tiny_folder, queries):
    segmenter = Segmenter(tiny_folder, device="cpu")
    before = segmenter(picture_of_size, queries, presence_threshold=0.0)
    after = segmenter(picture_of_size, queries, presence_threshold=0.0, refine=f"sam2={folder}")
    assert [a.status for a in before] == [a.status for a in after]
    assert [a.score for a in before] == [a.score for a in after]
    assert any(a.segments != b.segments for a, b in zip(before, after, strict=True))
    assert "refined by sam 2" in after.protocol
    assert "refined" not in before.protocol


def test_a_segmenter_refines_all_its_calls(folder, picture_of_size, tiny_folder, queries):
    """So that a server and bulk runs refine."""
    named = Segmenter(tiny_folder, device="cpu", refine=f"sam2={folder}")
    assert isinstance(named.system, RefinedBySam2)
    plain = Segmenter(tiny_folder, device="cpu")
    given = named(picture_of_size, queries, presence_threshold=0.0)
    assert given.answers == plain(picture_of_size, queries, 0.0, refine=f"sam2={folder}").answers
    unrefined = named(picture_of_size, queries, presence_threshold=0.0, refine="none")
    assert unrefined.answers == plain(picture_of_size, queries, presence_threshold=0.0).answers
    with pytest.raises(VLSegError, match="has no path mode"):
        named(picture_of_size, queries, mode="path")
    tiled = Segmenter(tiny_folder, device="cpu", refine=f"sam2={folder}", tile=64)
    assert "refined by sam 2; larger images in tiles of 64 px" in tiled.protocol()
    assert {answer.size for answer in tiled(picture_of_size, queries)} == {SIZE}


def test_without_a_folder_or_network_one_line_says_how(monkeypatch, tmp_path, tiny_folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(VLSegError, match=r"--refine sam2: facebook/sam2.1-hiera-small: .*name sam2=FOLDER"):
        Segmenter(tiny_folder, device="cpu", refine="sam2")


def test_the_verb_and_bulk_runs_refine(folder, picture_of_size, tiny_folder, tmp_path, capsys):
    from vlseg.cli.app import main

    picture_of_size.save(tmp_path / "a.png")
    common = ["segment", str(tmp_path), "red", "--model", str(tiny_folder), "--device", "cpu", "--refine"]
    assert main([*common, f"sam2={folder}", "--json", "--presence-threshold", "0"]) in (0, 1)
    said = json.loads(capsys.readouterr().out.splitlines()[0])
    assert "refined by sam 2" in said["protocol"]
    bulk = [*common, f"sam2={folder}", "--out", str(tmp_path / "out"), "--engine", "local", "--quiet"]
    assert main([*bulk, "--presence-threshold", "0"]) in (0, 1)
    line = next((tmp_path / "out").rglob("*.jsonl")).read_text().splitlines()[0]
    assert json.loads(line)["answers"] == said["answers"]


def test_a_server_refines(folder, picture_of_size, tiny_folder):
    import io

    from fastapi.testclient import TestClient

    from vlseg.serving.app import create_app
    from vlseg.serving.service import Service
    from vlseg.serving.settings import ServerSettings

    segmenter = Segmenter(tiny_folder, device="cpu", refine=f"sam2={folder}")
    file = io.BytesIO()
    picture_of_size.save(file, "png")
    with TestClient(create_app(Service({"mini": segmenter}, ServerSettings())), "http://localhost") as client:
        sent = {"data": {"query": "red", "presence_threshold": "0"}}
        for _ in range(2):  # the second time from the server's own cache of features
            said = client.post("/v1/segment", files={"file": ("a.png", file.getvalue())}, **sent)
            assert said.status_code == 200, said.text
            assert said.json()["answers"] == segmenter(picture_of_size, "red", 0.0).to_dict()["answers"]
            assert "refined by sam 2" in said.json()["protocol"]
