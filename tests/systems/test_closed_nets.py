"""Networks with a class a pixel, and Mask R-CNN: saved, loaded through their real path, read as their library reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from vlseg.systems.closed_net import FILE, ClosedNet, build_net
from vlseg.systems.net_norms import GroupNormInstead
from vlseg.systems.registry import load_system
from vlseg.systems.segnet import SegNet
from vlseg.systems.torchvision_models import open_deeplabv3, open_mask_rcnn
from vlseg.types import VLSegError

LABELS = ["background", "car", "dog", "person"]
EIGHT = ["the car", "dogs", "a person", "background", "automobile", "men", "the dog on the left", "unicorn"]
CLASS = [1, 2, 3, 0, 1, 3, 2, None]
SMALL = {"unet": "resnet18", "unet++": "resnet18", "deeplabv3+": "resnet18", "fpn": "resnet18", "segformer": "resnet18"}


def balanced(net: ClosedNet, image: Any) -> None:
    """Move the last bias so that the classes share the pixels."""
    layers = [m for m in net.net.modules() if isinstance(m, nn.Conv2d) and m.out_channels == len(net.labels)]
    last = layers[-1]
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, size=(128, 160))
        net.eval()
        logits = net(pixels)
        last.weight.div_(logits.std())
        logits = net(pixels)
        last.bias.sub_(logits.mean((0, 2, 3)))


BUILDERS = {"deeplabv3": "deeplabv3_mobilenet_v3_large", "fcn": "fcn_resnet50"}


@pytest.mark.parametrize("name", [*SMALL, "dpt", "segnet", "deeplabv3", pytest.param("fcn", marks=pytest.mark.slow)])
def test_a_folder_answers_as_its_network_does(tmp_path: Path, picture, name: str):
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if name == "segnet":
        options = {"widths": [8, 16, 16], "convolutions": [1, 1, 1]}
    encoder = "tu-test_vit" if name == "dpt" else SMALL.get(name, BUILDERS.get(name))
    net = build_net(name, LABELS, encoder, image={"area": 96 * 128, "multiple": 32}, **options)
    image = picture(1, 90, 120)
    balanced(net, image)
    net.save_pretrained(tmp_path)
    system = load_system(tmp_path, "cpu")
    answers = system.segment(image, EIGHT, presence_threshold=0.01)
    # by hand: the picture as the folder says it is made ready, the network, the highest logit
    height, width = system.images.input_size(90, 120)
    pixels = torch.from_numpy(np.array(image.resize((width, height), 3, reducing_gap=3.0))).float() / 255
    pixels = (pixels - torch.tensor(net.image["mean"])) / torch.tensor(net.image["std"])
    with torch.no_grad():
        logits = net.eval()(pixels.permute(2, 0, 1)[None])
        winner = F.interpolate(logits, size=(90, 120), mode="bilinear")[0].argmax(0).numpy()
    shares = []
    for answer, label in zip(answers, CLASS, strict=True):
        if label is None:
            assert (answer.status, answer.score) == ("absent", None)
            assert "classes: background, car" in (answer.reason or "")
            continue
        assert np.array_equal(answer.mask, winner == label)
        shares.append(answer.mask.mean())
    assert sum(0.05 <= share <= 0.95 for share in shares[:4]) >= 2, shares
    batch = system.segment_batch([image, picture(2, 60, 80)], [EIGHT, EIGHT[:1]], presence_threshold=0.01)
    assert [a.to_dict() for a in batch[0]] == [a.to_dict() for a in answers]


def test_a_folder_of_the_library_itself(tmp_path: Path, picture):
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, classes=4)
    net.save_pretrained(tmp_path)
    with pytest.raises(VLSegError, match="names of its classes are not known"):
        load_system(tmp_path, "cpu")
    (tmp_path / FILE).write_text(json.dumps({"labels": LABELS[:2]}))
    with pytest.raises(VLSegError, match="2 names"):
        load_system(tmp_path, "cpu")
    (tmp_path / FILE).write_text(json.dumps({"labels": LABELS}))
    made = ClosedNet.from_pretrained(tmp_path)
    assert any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(made(x), net.eval()(x))
    made.save_pretrained(tmp_path / "again")
    again = smp.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_no_batch_norm_learns(tmp_path: Path):
    torch.manual_seed(0)
    net = build_net("unet", LABELS, "resnet18")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    net.save_pretrained(tmp_path)
    assert sum(isinstance(m, GroupNormInstead) for m in ClosedNet.from_pretrained(tmp_path).modules()) > 20
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "running" in key]
    kept = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    held = ClosedNet(kept, "unet", LABELS, described={}).train()
    held(torch.randn(2, 3, 64, 64))
    assert (kept[1].running_mean == 0).all()


def test_segnet_learns_a_toy_scene():
    """Two classes told by colour: pixels right within a few seconds."""
    torch.manual_seed(0)
    truth = torch.zeros(2, 48, 48, dtype=torch.int64)
    truth[0, 8:30, 10:40] = 1
    truth[1, 20:44, 4:22] = 1
    pixels = torch.randn(2, 3, 48, 48) * 0.3 + truth[:, None] * torch.tensor([1.0, -1, 0.5])[None, :, None, None]
    net = SegNet(2, [16, 32], [1, 1])
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(pixels), truth).backward()
        optimizer.step()
    found = net(pixels).argmax(1)
    iou = ((found == 1) & (truth == 1)).sum() / ((found == 1) | (truth == 1)).sum()
    assert iou > 0.95
    assert net(torch.randn(1, 3, 37, 51)).shape == (1, 2, 37, 51)


def test_segnet_puts_values_where_pooling_found_them():
    net = SegNet(2, [8], [1])
    net.encoder[0], net.decoder[0], net.classify = nn.Identity(), nn.Identity(), nn.Identity()
    x = torch.randn(1, 3, 8, 8)
    pooled = F.max_pool2d(x, 2)
    out = net(x)
    assert torch.equal(F.max_pool2d(out.abs(), 2), pooled.abs())
    assert torch.equal(out[out != 0], x[out != 0])
    assert (out != 0).sum() == pooled.numel()


def test_deeplabv3_from_a_pth(tmp_path: Path, picture):
    from torchvision.models import segmentation
    from torchvision.models.segmentation import DeepLabV3_MobileNet_V3_Large_Weights as Weights

    torch.manual_seed(0)
    own = Weights.DEFAULT
    net = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).eval()
    ready, image = own.transforms(), picture(1, 90, 120)
    with torch.no_grad():
        net.classifier[4].weight.mul_(20)
        logits = net(ready(image)[None])["out"]
        net.classifier[4].bias.sub_(logits.mean((0, 2, 3)))
        logits = net(ready(image)[None])["out"]
        winner = F.interpolate(logits, size=(90, 120), mode="bilinear")[0].argmax(0).numpy()
    torch.save(net.state_dict(), tmp_path / "d.pth")
    system = open_deeplabv3([str(tmp_path / "d.pth"), None], "cpu")
    categories = own.meta["categories"]
    most = [int(c) for c in np.argsort(-np.bincount(winner.ravel(), minlength=21))[:3] if c]
    answers = system.segment(image, [f"the {categories[c]}" for c in most], presence_threshold=0.001)
    shares = [(winner == c).mean() for c in most]
    assert any(0.05 <= share <= 0.95 for share in shares), shares
    for answer, label in zip(answers, most, strict=True):
        assert np.array_equal(answer.mask, winner == label)
    with pytest.raises(VLSegError, match="neither a file nor weights of torchvision"):
        open_deeplabv3(["COCO_V9", None], "cpu")


def test_mask_rcnn_from_a_pth(tmp_path: Path, picture):
    from torchvision.models import detection
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights as Weights

    torch.manual_seed(0)
    net = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    with torch.no_grad():
        net.roi_heads.box_predictor.cls_score.weight.mul_(60)
        net.roi_heads.box_predictor.cls_score.bias[0] = -4
        net.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(60)
    file = tmp_path / "m.pth"
    torch.save(net.state_dict(), file)
    system = open_mask_rcnn([str(file), None], "cpu")
    for one in (net, system.net):  # fewer and smaller: the same work on both sides
        one.transform.min_size, one.transform.max_size = (160,), 220
        one.rpn._pre_nms_top_n["testing"], one.rpn._post_nms_top_n["testing"] = 100, 40
        one.roi_heads.detections_per_img = 16
    images = [picture(1, 90, 120), picture(3, 90, 120)]
    ready, names = Weights.DEFAULT.transforms(), Weights.DEFAULT.meta["categories"]
    compared = 0
    for number, image in enumerate(images):
        with torch.no_grad():
            (found,) = net([ready(image)])
        chosen = [c for c in found["labels"].unique().tolist() if names[c] != "N/A"][:20]
        queries = [f"the {names[c]}" for c in chosen]
        level = float(found["masks"].median())
        answers = system.segment(image, queries, presence_threshold=0.0, mask_threshold=min(max(level, 0.05), 0.95))
        together = system.segment_batch(images, [queries, queries], presence_threshold=0.0)[number]
        for answer, label, batched in zip(answers, chosen, together, strict=True):
            masks = (found["masks"][found["labels"] == label, 0] > min(max(level, 0.05), 0.95)).numpy()
            expected = sorted(int(mask.sum()) for mask in masks if mask.any())
            assert sorted(segment.area for segment in answer.segments) == expected
            assert np.array_equal(answer.mask, masks.any(0))
            assert batched.score == pytest.approx(answer.score, abs=1e-4)
            compared += len([1 for mask in masks if 0.05 <= mask.mean() <= 0.95])
    assert compared >= 2
