"""A U-Net by the loop: trained on a JSONL, taken up again to the same weights, loaded by Segmenter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from vlseg.config import from_dict
from vlseg.masks import rle as codec
from vlseg.segmenter import Segmenter
from vlseg.training import checkpoint
from vlseg.training.closed import ClosedTrainer, class_map, classes_of, loss_sums, train
from vlseg.training.config import TrainConfig
from vlseg.training.dry_run import dry_run
from vlseg.types import VLSegError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of a red disc ("ball") and a blue square ("boxes") that overlap; the disc is the smaller."""
    root = tmp_path_factory.mktemp("toy")
    lines = []
    for i in range(6):
        random = np.random.default_rng(i)
        y, x = np.mgrid[:64, :64]
        centre = random.integers(20, 44, 2)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 100
        box = (abs(y - 32) < 18) & (abs(x - random.integers(24, 40)) < 14)
        pixels = random.normal(128, 8, (64, 64, 3))
        pixels[box] = (20, 40, 220)
        pixels[disc] = (230, 30, 30)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{i}.png")
        queries = [{"text": "ball", "masks": [codec.encode(disc)]}, {"text": "the boxes", "masks": [codec.encode(box)]}]
        lines.append(json.dumps({"image": f"{i}.png", "queries": queries}))
    (root / "toy.jsonl").write_text("\n".join(lines) + "\n")
    return root / "toy.jsonl"


def toy(out: Path, data: Path, **changes) -> TrainConfig:
    tree = {
        "out": str(out),
        "steps": 20,
        "log_every": 5,
        "eval_every": 10,
        "save_every": 5,
        "mixed_precision": "no",
        "threads": 1,
        "trackers": [],
        "model": {"preset": None, "area": 64 * 64},
        "data": {"train": str(data), "val": str(data), "workers": 0, "images": 3, "queries": 1, "world": None},
        "optim": {"lr": 2e-3, "warmup": 2, "ema": 0},
        "closed": {"architecture": "segnet", "options": {"widths": [16, 32], "convolutions": [1, 1]}},
        **changes,
    }
    return from_dict(TrainConfig, tree)


UNET = {
    "architecture": "unet",
    "encoder": "resnet18",
    "options": {"encoder_depth": 3, "decoder_channels": [32, 16, 16]},
}


def test_unet_trains_resumes_and_answers(data: Path, tmp_path: Path):
    train(toy(tmp_path / "whole", data, closed=UNET))
    stopped = toy(tmp_path / "cut", data, closed=UNET)

    class Cut(ClosedTrainer):
        def train_step(self, batches):
            record = super().train_step(batches)
            if self.step == 7:
                self._stop(15, None)
            return record

    with pytest.raises(KeyboardInterrupt):
        Cut(stopped).run()
    AcceleratorState._reset_state(True)
    train(toy(tmp_path / "cut", data, closed=UNET))
    one, other = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "cut"))
    assert one is not None
    assert other is not None
    assert one["step"] == other["step"] == 20
    assert [key for key in one["model"] if not torch.equal(one["model"][key], other["model"][key])] == []
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert any("val" in line for line in lines)
    segmenter = Segmenter(tmp_path / "whole" / "final", device="cpu")
    answers = segmenter(str(data.parent / "0.png"), ["the balls", "a box", "zebra"], presence_threshold=0.01)
    truth = json.loads(data.read_text().splitlines()[0])["queries"]
    assert answers[2].status == "absent"
    for answer, query in zip(answers.answers[:2], truth, strict=True):
        mask = codec.decode(query["masks"][0])
        assert 0.05 < mask.mean() < 0.95
        assert (answer.mask & mask).sum() / (answer.mask | mask).sum() > 0.5


def test_truth_is_a_map_of_classes(data: Path, tmp_path: Path):
    run = ClosedTrainer(toy(tmp_path, data))
    assert run.core.labels == ["background", "ball", "box"]
    batch = next(run.batches())
    truth = class_map(batch, run.core.labels)
    assert truth.shape == (3, 64, 64)
    assert truth.unique().tolist() == [0, 1, 2]
    for b in range(3):  # all queries, whatever data.queries says; the disc lies on the box
        ball = next(k for k in range(2) if batch.packed.ids[b, k] == 1)
        disc = batch.regions[b, batch.targets[b, ball].nonzero()[0, 0]] > 0
        assert torch.equal(truth[b] == 1, disc)
    batch.ignored = torch.zeros(3, 2, 64, 64, dtype=torch.bool)
    batch.ignored[0, 0, :10] = True
    ignored = class_map(batch, run.core.labels)
    assert (ignored[0, :10] == 255).all()
    logits = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = logits.clone()
    changed[0, :, :10] += torch.randn(3, 10, 64)
    for one, other in zip(loss_sums(logits, ignored), loss_sums(changed, ignored), strict=True):
        assert one == pytest.approx(float(other), rel=1e-6)
    assert loss_sums(logits, truth)[0] != pytest.approx(float(loss_sums(changed, truth)[0]))


def test_what_does_not_go(data: Path, tmp_path: Path):
    with pytest.raises(VLSegError, match=r"adapter\.kind: not for a closed set"):
        ClosedTrainer(toy(tmp_path, data, adapter={"kind": "lora"}))
    for section in ("paths", "reinforce"):
        with pytest.raises(VLSegError, match=rf"{section}\.on: not for a closed set"):
            ClosedTrainer(toy(tmp_path, data, **{section: {"on": True}}))
    with pytest.raises(VLSegError, match="no architecture 'vnet'"):
        ClosedTrainer(toy(tmp_path, data, closed={"architecture": "vnet"}))
    assert classes_of(toy(tmp_path, data).data) == ["background", "ball", "box"]


TORCHVISION = [("deeplabv3", "deeplabv3_mobilenet_v3_large"), ("fcn", "fcn_resnet50")]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "encoder"), TORCHVISION)
def test_networks_of_torchvision_learn_and_answer(data: Path, tmp_path: Path, architecture: str, encoder: str):
    closed = {"architecture": architecture, "encoder": encoder}
    train(toy(tmp_path, data, closed=closed, steps=6, log_every=1, eval_every=0, save_every=6))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6
    assert min(losses[3:]) < losses[0]
    answers = Segmenter(tmp_path / "final", device="cpu")(str(data.parent / "0.png"), ["ball"], presence_threshold=0)
    assert answers[0].status in ("found", "failed")


def test_a_dry_run_tells_of_the_network(data: Path, tmp_path: Path):
    config = toy(tmp_path / "run", data)
    weights = sum(p.numel() for p in ClosedTrainer(toy(tmp_path / "run", data)).core.parameters())
    AcceleratorState._reset_state(True)
    told = dry_run(config)
    assert f"parameters: {weights:,} trained of {weights:,} (100.00%)" in told
    assert "classes: 3: background, ball, box" in told
    assert "tokens a row" not in told
    assert "steps: 20, 3 pictures and 6 expressions each" in told
    assert not (tmp_path / "run").exists()
