"""A Mask R-CNN by the loop: its truth and losses against torchvision's own, resumed to equal weights, its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torchvision.models.detection.image_list import ImageList

from vlseg.config import from_dict
from vlseg.masks import rle as codec
from vlseg.segmenter import Segmenter
from vlseg.systems.closed_net import FILE, ClosedNet
from vlseg.systems.instance_net import InstanceNet, build_instance_net
from vlseg.systems.registry import load_system
from vlseg.training import checkpoint
from vlseg.training.closed import train
from vlseg.training.closed_instance_losses import NAMES, InstanceLosses, idle, mostly_ignored
from vlseg.training.closed_instances import InstanceTrainer, instances
from vlseg.training.config import TrainConfig
from vlseg.training.dry_run import dry_run
from vlseg.types import VLSegError

SIDE = 96
SMALL = {
    "anchors": [12, 24, 48, 96, 192],
    "box_batch_size_per_image": 32,
    "rpn_batch_size_per_image": 64,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 40,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 40,
    "box_score_thresh": 1e-6,
    "box_detections_per_img": 16,
}
CLOSED = {"architecture": "mask-rcnn", "encoder": "resnet18", "options": SMALL}


def shapes(i: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Picture i (96, 96, 3) of two red discs and one or two blue boxes, and their masks; every fourth is empty."""
    random = np.random.default_rng(i)
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = random.normal(128, 8, (SIDE, SIDE, 3))
    discs, boxes = [], []
    if i % 4 != 3:
        corners = random.permutation([(24, 24), (24, 72), (72, 24), (72, 72)])
        for number, corner in enumerate(corners[: 3 + i % 2]):
            (cy, cx), size = corner + random.integers(-4, 5, 2), random.integers(13, 19)
            if number < 2:
                discs.append((y - cy) ** 2 + (x - cx) ** 2 < size**2)
                pixels[discs[-1]] = (230, 30, 30)
            else:
                boxes.append((abs(y - cy) < size) & (abs(x - cx) < size))
                pixels[boxes[-1]] = (20, 40, 220)
    return pixels.clip(0, 255).astype(np.uint8), discs, boxes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of discs and boxes, two of them without any."""
    root = tmp_path_factory.mktemp("shapes")
    lines = []
    for i in range(8):
        pixels, discs, boxes = shapes(i)
        Image.fromarray(pixels).save(root / f"{i}.png")
        queries = [
            {"text": "the discs", "masks": [codec.encode(mask) for mask in discs]},
            {"text": "box", "masks": [codec.encode(mask) for mask in boxes]},
        ]
        lines.append(json.dumps({"image": f"{i}.png", "queries": queries}))
    (root / "toy.jsonl").write_text("\n".join(lines) + "\n")
    return root / "toy.jsonl"


def toy(out: Path, jsonl: Path, feed: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """Three steps of two pictures. feed: changes of the data."""
    tree = {
        "out": str(out),
        "steps": 3,
        "log_every": 1,
        "eval_every": 0,
        "save_every": 3,
        "mixed_precision": "no",
        "threads": 1,
        "trackers": [],
        "model": {"preset": None, "area": SIDE * SIDE},
        "data": {"train": str(jsonl), "val": None, "workers": 0, "images": 2, "world": None, **(feed or {})},
        "optim": {"lr": 1e-4, "warmup": 1, "ema": 0},
        "closed": CLOSED,
        **changes,
    }
    return from_dict(TrainConfig, tree)


def small_net(labels: tuple[str, ...] = ("background", "box", "disc")) -> InstanceNet:
    torch.manual_seed(0)
    return build_instance_net(labels, "resnet18", image={"area": SIDE * SIDE}, **SMALL)


def test_truth_is_the_masks_of_each_class(data: Path, tmp_path: Path):
    run = InstanceTrainer(toy(tmp_path, data, {"images": 8}))
    assert run.core.labels == ["background", "box", "disc"]  # "the discs" and "box" as the other closed nets read them
    batch = next(run.batches())
    counts = []
    for b, truth in enumerate(instances(batch)):
        i = next(i for i in range(8) if np.array_equal(shapes(i)[0], batch.pixels[b].numpy()))
        _, discs, boxes = shapes(i)
        wanted = [*((1, mask) for mask in boxes), *((2, mask) for mask in discs)]
        counts.append(len(wanted))
        assert sorted(truth["labels"].tolist()) == [label for label, _ in wanted]
        for label, mask, box in zip(truth["labels"], truth["masks"], truth["boxes"], strict=True):
            assert any(label == own and np.array_equal(mask, one) for own, one in wanted)
            ys, xs = np.nonzero(mask.numpy())
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert not truth["ignored"].any()
    assert sorted(counts) == [0, 0, 3, 3, 3, 3, 4, 4]
    # what is ignored: one disc wholly, by a map of its query
    b = counts.index(3)
    disc = instances(batch)[b]["masks"][-1].bool()
    batch.ignored = torch.zeros(8, 2, SIDE, SIDE, dtype=torch.bool)
    batch.ignored[b, 0] = disc
    left = instances(batch)[b]
    assert len(left["labels"]) == 2
    assert torch.equal(left["ignored"], disc)


def test_losses_are_those_of_torchvision_where_nothing_is_ignored(data: Path, tmp_path: Path):
    run = InstanceTrainer(toy(tmp_path, data))
    net = run.core.train().net
    batch = next(b for b in run.batches() if any(len(truth["labels"]) for truth in instances(b)))
    pixels, truths = run.processor.normalise(batch.pixels), instances(batch)
    theirs = ["loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
    expected = torch.zeros(5)
    for b, truth in enumerate(truths):
        torch.manual_seed(7 + b)
        one, target = pixels[b : b + 1], [{key: truth[key] for key in ("boxes", "labels", "masks")}]
        maps, images = net.backbone(one), ImageList(one, [(SIDE, SIDE)])
        proposals, found = net.rpn(images, maps, target)
        found |= net.roi_heads(maps, proposals, images.image_sizes, target)[1]
        expected += torch.stack([found[name] for name in theirs])
    assert (expected > 0).all()
    # a picture at a time: whichever rank has a picture, its losses are the same
    alone = sum(run.plain(pixels[b : b + 1], truths[b : b + 1], 7 + b) for b in range(len(truths)))
    assert torch.allclose(alone, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(run.plain(pixels, truths, 7), expected, rtol=1e-3)


def test_what_is_ignored_counts_for_nothing():
    net = small_net()
    losses = InstanceLosses(net).train()
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[0, 20:60, 20:60] = 1
    truth = {"boxes": torch.tensor([[20.0, 20, 60, 60]]), "labels": torch.tensor([1]), "masks": mask}
    ignored = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    ignored[30:60, 30:60] = True
    other = mask.clone()
    other[0, 40:55, 40:55] = 0  # another mask of the same box, unlike in what is ignored alone
    one, two = (losses(pixels, [{**truth, "masks": m, "ignored": ignored}], 3) for m in (mask, other))
    assert torch.allclose(one, two, rtol=1e-5)
    none = torch.zeros_like(ignored)
    one, two = (losses(pixels, [{**truth, "masks": m, "ignored": none}], 3) for m in (mask, other))
    assert (one - two).abs()[NAMES.index("mask")] > 1e-5
    # boxes in ignored pixels are no background; an empty picture teaches background, one ignored as a whole nothing
    boxes = torch.tensor([[30.0, 30, 60, 60], [0, 0, 20, 20], [20, 20, 60, 60], [-9, -9, 0, 0]])
    assert mostly_ignored(boxes, ignored).tolist() == [True, False, True, False]  # the third: 900 of 1,600 pixels
    empty = {key: value[:0] for key, value in truth.items()}
    taught = losses(pixels, [{**empty, "ignored": none}], 3)
    assert dict(zip(NAMES, (taught > 0).tolist(), strict=True)) == {
        "classifier": True, "box": False, "mask": False, "objectness": True, "rpn_box": False
    }  # fmt: skip
    nothing = losses(pixels, [{**empty, "ignored": ~none}], 3)
    assert nothing.tolist() == [0.0] * 5
    nothing.sum().backward()
    assert [name for name, p in losses.named_parameters() if p.grad is None] == []
    assert float(idle(torch.ones(3))) == 0


def test_trains_resumes_and_loads(data: Path, tmp_path: Path):
    average = {"lr": 1e-4, "warmup": 1, "ema": 0.5}
    train(toy(tmp_path / "whole", data, optim=average))

    class Cut(InstanceTrainer):
        def train_step(self, batches):
            record = super().train_step(batches)
            if self.step == 2:
                self._stop(15, None)
            return record

    AcceleratorState._reset_state(True)
    with pytest.raises(KeyboardInterrupt):
        Cut(toy(tmp_path / "cut", data, optim=average)).run()
    AcceleratorState._reset_state(True)
    train(toy(tmp_path / "cut", data, optim=average))
    one, other = (checkpoint.load_newest(tmp_path / name / "checkpoints") for name in ("whole", "cut"))
    assert one is not None
    assert other is not None
    assert one["step"] == other["step"] == 3
    assert [key for key in one["model"] if not torch.equal(one["model"][key], other["model"][key])] == []
    same = zip(one["ema"]["average"], other["ema"]["average"], strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(set(NAMES) < set(line) for line in lines if "loss" in line)
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][name] for name in NAMES), rel=1e-3)
    # final/ holds the averages, opens as mask-rcnn, and answers as its network does
    system: Any = load_system(tmp_path / "whole" / "final", "cpu")
    assert "Mask R-CNN" in system.protocol
    assert [p.shape for p in system.net.parameters()] == [p.shape for p in one["ema"]["average"]]
    assert all(torch.equal(a, b) for a, b in zip(system.net.parameters(), one["ema"]["average"], strict=True))
    picture = Image.open(data.parent / "0.png")
    with torch.inference_mode():
        found = InstanceNet.from_pretrained(tmp_path / "whole" / "final")(
            system.images.pixel_values(picture, (SIDE, SIDE))
        )[0]
    seen = system.look([picture])[0]
    assert len(found["scores"]) >= 2, found
    for key, own in zip(("labels", "scores", "masks", "boxes"), seen, strict=True):
        assert torch.equal(found[key], own)
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    with pytest.raises(VLSegError, match="names its classes itself"):
        load_system(f"mask-rcnn={tmp_path}/whole/final,{tmp_path}/names.txt", "cpu")
    with pytest.raises(VLSegError, match=r"is a mask-rcnn; say closed=mask-rcnn"):
        ClosedNet.from_pretrained(tmp_path / "whole" / "final")
    # and a run can go on from it
    AcceleratorState._reset_state(True)
    source = {"preset": None, "source": str(tmp_path / "whole" / "final")}
    onward = InstanceTrainer(toy(tmp_path / "onward", data, model=source))
    assert torch.equal(next(onward.plain.parameters()), one["ema"]["average"][0])


def test_weights_of_a_file(tmp_path: Path):
    from torchvision.models import resnet18

    torch.manual_seed(5)
    trunk = resnet18(weights=None)
    for module in trunk.modules():  # as after training: statistics of its own
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    net = build_instance_net(["background", "a"], "resnet18", str(tmp_path / "resnet18.pth"), **SMALL)
    body = net.net.backbone.body
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trunk.eval()
        stem = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
        expected = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(stem))))
        assert torch.equal(net.train().net.backbone.body(x)["3"], expected)  # its norms keep their statistics
    net.save_pretrained(tmp_path / "net")
    again = InstanceNet.from_pretrained(tmp_path / "net")
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert json.loads((tmp_path / "net" / FILE).read_text())["architecture"] == "mask-rcnn"
    # a whole Mask R-CNN of other classes: all but the last layers
    torch.save(net.net.state_dict(), tmp_path / "whole.pth")
    other = build_instance_net(["background", "a", "b"], "resnet18", str(tmp_path / "whole.pth"), **SMALL)
    mine, theirs = other.net.state_dict(), net.net.state_dict()
    unlike = {key.rpartition(".")[0] for key in mine if not torch.equal(mine[key], theirs[key])}
    last = {"box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"}
    assert unlike == {f"roi_heads.{name}" for name in last}
    assert len(body.state_dict()) > 50
    with pytest.raises(VLSegError, match=r"fits no resnet34 of torchvision \(no backbone.body"):
        build_instance_net(["background", "a"], "resnet34", str(tmp_path / "resnet18.pth"))
    with pytest.raises(VLSegError, match="neither a file nor weights of torchvision: IMAGENET1K_V1"):
        build_instance_net(["background", "a"], "resnet18", "no.pth")


@pytest.mark.parametrize("encoder", [None, pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.slow)])
def test_the_builders_of_torchvision(encoder: str | None):
    net = build_instance_net(["background", "a"], encoder)
    assert net.count() == 2
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())


def test_a_dry_run_tells_of_the_network(data: Path, tmp_path: Path):
    told = dry_run(toy(tmp_path / "run", data, steps=2))
    assert "classes: 3: background, box, disc" in told
    assert "backbone" in told
    assert "(100.00%)" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": {"kind": "lora"}}, r"adapter\.kind: not for a closed set of classes \(closed=mask-rcnn\)"),
        ({"qat": {"kind": "int8"}}, r"qat\.kind: not for a closed set"),
        ({"closed": {**CLOSED, "dice": 0.5}}, r"closed\.dice: not for mask-rcnn"),
        ({"closed": {**CLOSED, "encoder": "vgg16"}}, r"closed\.encoder 'vgg16': mask-rcnn has maskrcnn_resnet50_fpn"),
        ({"closed": {**CLOSED, "options": {"min_size": 64}}}, r"closed\.options\.min_size: closed\.image says"),
        ({"closed": {**CLOSED, "options": {"anchors": [8, 16]}}}, r"closed\.options\.anchors=\[8, 16\]: give 5 sides"),
        ({"closed": {**CLOSED, "options": {"depth": 3}}}, r"closed\.options\.depth: neither anchors nor"),
    ],
)
def test_what_does_not_go(data: Path, tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(VLSegError, match=words) as told:
        train(toy(tmp_path, data, **changes))
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_finds_the_instances_that_it_has_learned(data: Path, tmp_path: Path):
    two = data.with_name("two.jsonl")  # one with two discs and a box, one empty
    lines = data.read_text().splitlines()
    two.write_text(f"{lines[0]}\n{lines[3]}\n")
    changes = {"steps": 80, "log_every": 5, "eval_every": 80, "save_every": 80}
    feed = {"val": str(two), "val_split": "train"}
    train(toy(tmp_path, two, feed, **changes, optim={"lr": 2e-4, "warmup": 5, "ema": 0}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    scores = [line["val"]["mIoU"] for line in lines if "val" in line]
    assert scores[-1] > 0.7
    segmenter = Segmenter(tmp_path / "final", device="cpu")
    result = segmenter(str(data.parent / "0.png"), ["the discs", "a box", "zebra"])
    _, discs, boxes = shapes(0)
    for answer, masks in zip(result.answers[:2], (discs, boxes), strict=True):
        assert answer.status == "found"
        for mask in masks:  # each object is a segment of its own
            assert 0.05 <= mask.mean() <= 0.95
            overlaps = codec.iou([codec.encode(mask)], [segment.rle for segment in answer.segments])[0]
            assert overlaps.max() > 0.5
    assert len(result[0].segments) >= 2
    assert result[2].status == "absent"
    empty = segmenter(str(data.parent / "3.png"), ["disc", "box"])
    assert [answer.status for answer in empty.answers] == ["absent", "absent"]
