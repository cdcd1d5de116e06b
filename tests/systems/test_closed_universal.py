"""EoMT, Mask2Former, OneFormer: random checkpoints on disk, read as the library's own post-processing reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlseg.systems import closed_specimens as specimens
from vlseg.systems import eomt, mask2former, oneformer
from vlseg.systems.base import Encoder, System
from vlseg.systems.quiet import quiet_loading
from vlseg.systems.universal import Universal, task_of
from vlseg.types import VLSegError

FAMILIES = {"mask2former": mask2former, "oneformer": oneformer, "eomt": eomt}
WRITE: dict[str, Callable[[Path], None]] = {
    "mask2former": specimens.write_mask2former,
    "oneformer": specimens.write_oneformer,
    "eomt": specimens.write_eomt,
}
EIGHT = ["the person on the left", "cars", "a dog", "kitten", "trees", "the sky", "wall", "unicorn"]
CLASSES = [0, 1, 2, 3, 4, 5, 6, None]
LOW = 0.05  # presence threshold: what is random is sure of nothing
TASKS = ("panoptic", "instance", "semantic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("universal")

    def write(name: str) -> Path:
        if not (root / name).exists():
            with quiet_loading():
                WRITE[name](root / name)
        return root / name

    return write


@pytest.fixture(scope="module")
def opened(folder) -> Callable[[str, str], Universal]:
    kept: dict[tuple[str, str], Universal] = {}

    def system(name: str, task: str) -> Universal:
        if (name, task) not in kept:
            made = FAMILIES[name].open_system([str(folder(name)), None], "cpu", None, name, task)
            made.keeps = 0.01  # masks of random weights overlap
            kept[name, task] = made
        return kept[name, task]

    return system


def reference(folder: Path, name: str, task: str, image: Any, threshold: float) -> list[tuple[int, float, np.ndarray]]:
    """(class, score, mask) by the library alone: its model, its processor, its post-processing."""
    import transformers

    kind = FAMILIES[name].KIND
    with quiet_loading():
        model = getattr(transformers, kind.model).from_pretrained(folder).eval()
        processor = getattr(transformers, kind.processor).from_pretrained(folder)
    tasks = {"task_inputs": [task]} if name == "oneformer" else {}
    inputs = processor(images=[image], return_tensors="pt", **tasks)
    offsets = inputs.pop("patch_offsets", None)
    with torch.no_grad():
        output = model(**{k: v for k, v in inputs.items() if k != "text_inputs"})
    output.patch_offsets = offsets
    size = [(image.height, image.width)]
    if task == "semantic":
        found = processor.post_process_semantic_segmentation(output, target_sizes=size)[0]
        return [(int(c), 1.0, (found == c).numpy()) for c in found.unique()]
    options: dict[str, Any] = {"threshold": threshold, "target_sizes": size}
    if task == "panoptic" or name == "oneformer":
        options["overlap_mask_area_threshold"] = 0.01
    if task == "panoptic" and name != "eomt":
        options["label_ids_to_fuse"] = set()
    if task == "instance" and name == "mask2former":
        options["return_binary_maps"] = True
    found = getattr(processor, f"post_process_{task}_segmentation")(output, **options)[0]
    listed, out = found["segmentation"], []
    for number, segment in enumerate(found["segments_info"]):
        mask = listed[number].bool() if listed.ndim == 3 else listed == segment["id"]
        out.append((segment["label_id"], segment["score"], mask.numpy()))
    return out


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_masks_are_those_of_the_library(folder, opened, picture, name: str, task: str):
    system, image = opened(name, task), picture(0, 72, 96)
    expected = reference(folder(name), name, task, image, LOW)
    answers = system.segment(image, EIGHT, presence_threshold=LOW)
    shares, compared = [], 0
    for answer, label in zip(answers, CLASSES, strict=True):
        own = [mask for c, _, mask in expected if c == label and mask.any()]
        assert len(answer.segments) == (len(own) if answer.status == "found" else 0)
        if not own or answer.status != "found":
            assert task == "semantic" or not own, "a segment that the library lists must be found"
            continue
        union = np.logical_or.reduce(own)
        assert np.array_equal(answer.mask, union)
        ours = sorted(segment.area for segment in answer.segments)
        assert ours == sorted(int(mask.sum()) for mask in own)
        shares += [mask.mean() for mask in own]
        compared += len(own)
    assert compared >= 2, "at least two segments, else nothing is shown"
    assert any(0.05 <= share <= 0.95 for share in shares), shares
    assert max(shares) <= 0.95
    assert answers[-1].status == "absent"


@pytest.mark.parametrize("name", FAMILIES)
def test_one_query_equals_eight_and_a_batch_one_image(opened, picture, name: str):
    system = opened(name, "panoptic")
    assert isinstance(system, System)
    assert isinstance(system, Encoder)
    images = [picture(i, *size) for i, size in enumerate([(72, 96), (72, 96), (120, 80)])]
    batch = system.segment_batch(images, [EIGHT, EIGHT[::-1], EIGHT], presence_threshold=LOW)
    for number, (image, row) in enumerate(zip(images, batch, strict=True)):
        order = EIGHT[::-1] if number == 1 else EIGHT
        assert [a.text for a in row] == order
        assert sum(len(a.segments) for a in row) >= 2
        for text, answer in zip(order, row, strict=True):
            (alone,) = system.segment(image, [text], presence_threshold=LOW)
            assert (alone.status, alone.reason) == (answer.status, answer.reason)
            assert alone.score == pytest.approx(answer.score, abs=1e-4)
            assert (alone.mask != answer.mask).mean() < 0.005  # rounding of a batched convolution moves an edge
    encoded = system.encode_batch(images)
    assert all(e.bytes > 0 for e in encoded)
    again = system.segment_batch(encoded, [EIGHT, EIGHT[::-1], EIGHT], presence_threshold=LOW)
    assert [[a.to_dict() for a in row] for row in again] == [[a.to_dict() for a in row] for row in batch]


def test_an_image_is_passed_once_for_all_queries(opened, picture, monkeypatch):
    system = opened("mask2former", "panoptic")
    calls = []
    monkeypatch.setattr(
        system.model, "forward", lambda *a, **k: calls.append(1) or type(system.model).forward(system.model, *a, **k)
    )
    system.segment(picture(1, 90, 120), EIGHT, presence_threshold=LOW)
    assert len(calls) == 1
    (answer,) = system.segment(picture(1, 90, 120), ["a unicorn"])
    assert len(calls) == 1, "nothing to look for: the image need not be looked at"
    assert "no class of this name; classes: person, car" in (answer.reason or "")
    assert (answer.status, answer.score) == ("absent", None)


def test_eomt_in_tiles(tmp_path, picture):
    with quiet_loading():
        specimens.write_eomt(tmp_path / "ade20k_semantic", split=True)
    system = eomt.open_system([str(tmp_path / "ade20k_semantic")], "cpu", None, "eomt")
    assert system.task == "semantic"
    images = [picture(i, 60, 150) for i in range(2)]
    rows = system.segment_batch(images, [EIGHT, EIGHT], presence_threshold=0.0)
    for image, row in zip(images, rows, strict=True):
        expected = {c: m for c, _, m in reference(tmp_path / "ade20k_semantic", "eomt", "semantic", image, 0)}
        found = [(a, c) for a, c in zip(row, CLASSES, strict=True) if a.status == "found"]
        assert len(found) >= 2
        for answer, label in found:
            assert np.array_equal(answer.mask, expected[label])


def test_the_task_comes_from_the_name():
    class Config:
        _name_or_path = ""

    assert task_of("/x/mask2former-swin-tiny-coco-instance", Config) == "instance"
    assert task_of("/c/models--tue-mps--ade20k_semantic_eomt_large_512/snapshots/ab12", Config) == "semantic"
    assert task_of("/semantic/model", Config) == "panoptic"


def test_thresholds_that_cannot_be_followed(opened, picture):
    with pytest.raises(VLSegError, match="mask-threshold"):
        opened("mask2former", "semantic").segment(picture(), ["car"], mask_threshold=0.3)
    opened("mask2former", "panoptic").segment(picture(), ["car"], mask_threshold=0.3)


def test_broken_checkpoints(folder, tmp_path):
    with pytest.raises(VLSegError, match="cannot be loaded"):
        mask2former.open_system([str(tmp_path)], "cpu", None, "x")
