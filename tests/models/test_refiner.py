"""The refiner: crops against PIL, one by one and in a batch, what goes to disk, masks that are hardly any."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlseg.masks import rle as codec
from vlseg.models.refiner import Refiner, RefinerConfig, start_trunk
from vlseg.models.refiner_crop import Window, cut, cut_mask, put_back, refine, refine_each
from vlseg.types import VLSegError

TINY = RefinerConfig(tower="test_convnext", size=64, dim=16, fine=[12, 8], tokens=3, blocks=1, heads=2, iterations=2)
SIZE = (90, 120)


@pytest.fixture(scope="module")
def model() -> Refiner:
    """Random weights, so large that masks change a lot; what it expects differs from mask to mask."""
    torch.manual_seed(0)
    made = Refiner(TINY).eval()
    with torch.no_grad():
        made.tokens.mul_(50)
        made.weights[-1].weight.mul_(8)
        made.judge[-1].weight.mul_(8)
    return made


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8))


def disc(x: float, y: float, radius: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def inside(mask: np.ndarray) -> bool:
    return 0.05 <= mask.mean() <= 0.95


DISCS = [disc(60, 45, 25), disc(30, 40, 18), disc(100, 70, 22), disc(0, 0, 40), disc(118, 10, 30)]


def test_no_iteration_leaves_the_mask(model, image):
    rles = [codec.encode(mask) for mask in DISCS]
    for mask, found in zip(DISCS, refine(model, image, rles, 0), strict=True):
        assert inside(mask)
        assert np.array_equal(found.mask, mask)
        assert math.isnan(found.iou)


def test_the_same_call_gives_the_same_masks_and_a_batch_what_each_alone_gives(model, image):
    rles = [codec.encode(mask) for mask in DISCS]
    together = refine(model, image, rles)
    again = refine(model, image, rles)
    for rle, one, other in zip(rles, together, again, strict=True):
        (alone,) = refine(model, image, [rle])
        assert inside(one.mask)
        assert np.array_equal(one.mask, other.mask)
        assert np.mean(one.mask != alone.mask) < 1e-3  # sums in another order
        assert one.iou == other.iou
        assert one.iou == pytest.approx(alone.iou, abs=1e-4)
        assert 0 < one.iou < 1
    assert any(not np.array_equal(one.mask, mask) for one, mask in zip(together, DISCS, strict=True))


def test_more_crops_than_a_pass_holds(model, image):
    rles = [codec.encode(disc(20 + 4 * i, 45, 15)) for i in range(20)]
    found = refine(model, image, rles, 1)
    assert len(found) == 20
    for i in (0, 15, 16, 19):
        (alone,) = refine(model, image, [rles[i]], 1)
        assert np.mean(found[i].mask != alone.mask) < 1e-3


def test_each_iteration_on_its_own(model, image):
    rles = [codec.encode(mask) for mask in DISCS[:2]] + [codec.encode(np.zeros(SIZE, bool))]
    *found, nothing = refine_each(model, image, rles, 3)
    assert nothing == []
    for place, steps in enumerate(found):
        assert len(steps) == 3
        for n, step in enumerate(steps, 1):
            (alone,) = refine(model, image, [rles[place]], n)
            assert np.mean(step.mask != alone.mask) < 1e-3
            assert step.iou == pytest.approx(alone.iou, abs=1e-4)


def test_iterations_feed_on_the_best_mask(model):
    pixels, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 32, 32)
    with torch.inference_mode():
        steps = model(pixels, mask, 3)
        features = model.encode(pixels)
        by_hand = []
        for _ in range(3):
            step = model.step(features, mask)
            best = step.iou.argmax(1)
            mask = torch.stack([step.logits[b, best[b]] for b in range(2)]).sigmoid()
            by_hand.append(step)
    assert len(steps) == 3
    for step, other in zip(steps, by_hand, strict=True):
        assert step.logits.shape == (2, 3, 32, 32)
        assert step.iou.shape == (2, 3)
        torch.testing.assert_close(step.logits, other.logits)
    assert not torch.equal(steps[0].best, steps[1].best)


@pytest.mark.parametrize("mask", ["empty", "full", "pixel", "corner", "line"])
def test_masks_that_are_hardly_masks(model, image, mask):
    made = np.zeros(SIZE, dtype=bool)
    place = {"empty": (slice(0), slice(0)), "full": (slice(None), slice(None)), "pixel": (40, 50)}
    place |= {"corner": (SIZE[0] - 1, SIZE[1] - 1), "line": (30, slice(10, 110))}
    made[place[mask]] = True
    (found,) = refine(model, image, [codec.encode(made)])
    if mask == "empty":
        assert found is None
    else:
        assert found.mask.shape == SIZE
        assert found.mask.dtype == bool
        window = Window.around(codec.bbox(codec.encode(made)), TINY.margin)
        outside = np.ones(SIZE, dtype=bool)
        x, y, side = window.x, window.y, window.side
        outside[max(0, round(y - 1)) : round(y + side + 1), max(0, round(x - 1)) : round(x + side + 1)] = False
        assert not (found.mask & outside).any()


def test_an_image_of_one_pixel(model):
    (found,) = refine(model, Image.new("RGB", (1, 1), (200, 30, 30)), [codec.encode(np.ones((1, 1), bool))])
    assert found.mask.shape == (1, 1)


def test_a_window_within_the_image_is_a_plain_resize():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    window = Window(20, 30, 128)
    ours = cut(picture, window, 64, Image.Resampling.BICUBIC)
    theirs = np.asarray(picture.crop((20, 30, 148, 158)).resize((64, 64), Image.Resampling.BICUBIC))
    middle = (slice(2, -2), slice(2, -2))  # the crop's own edge has no pixels beyond it
    assert np.abs(ours[middle].astype(int) - theirs[middle]).max() <= 1


def test_beyond_the_image_its_edge_is_repeated():
    picture = Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32))
    found = cut(picture, Window(-8, 4, 32), 32, Image.Resampling.BOX)
    wanted = np.pad(np.asarray(picture)[4:, :24], ((0, 4), (8, 0)), mode="edge")
    assert np.array_equal(found, wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-20, 110), st.floats(-20, 90), st.floats(3, 60), st.sampled_from([16, 32, 64])
)  # fmt: skip
def test_cut_and_put_back(x: float, y: float, radius: float, cells: int):
    """A smooth mask goes into its window and comes back but for its edge."""
    mask = disc(x, y, radius)
    rle = codec.encode(mask)
    if codec.area(rle) < 50:
        return
    window = Window.around(codec.bbox(rle), 0.25)
    share = cut_mask(mask, window, cells)
    assert share.shape == (cells, cells)
    back = put_back((share.clamp(0.001, 0.999)).logit(), window, SIZE)
    wrong = np.count_nonzero(back != mask)
    edge = 2 * math.pi * radius
    assert wrong <= 0.75 * max(1.0, window.side / cells) * edge + 8


def test_bands_do_not_show(monkeypatch):
    logits, window = torch.randn(16, 16), Window(-3.3, 2.7, 80)
    whole = put_back(logits, window, SIZE)
    assert inside(whole)
    monkeypatch.setattr("vlseg.models.refiner_crop.ROWS_A_BAND", 7)
    assert np.array_equal(put_back(logits, window, SIZE), whole)


def test_the_threshold_is_a_probability():
    logits, window = torch.linspace(-4, 4, 32).expand(32, 32), Window(0, 0, 90)
    areas = [put_back(logits, window, SIZE, p).sum() for p in (0.1, 0.5, 0.9)]
    assert areas[0] > areas[1] > areas[2] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_and_loaded(model, image, tmp_path: Path, dtype):
    model.save_pretrained(tmp_path / "refiner", dtype)
    again = Refiner.from_pretrained(tmp_path / "refiner")
    assert again.config == model.config
    assert not again.training
    assert sorted(file.name for file in (tmp_path / "refiner").iterdir()) == ["config.json", "model.safetensors"]
    for key, value in model.state_dict().items():
        wanted = value.to(dtype).float()
        assert torch.equal(again.state_dict()[key], wanted), key
    rles = [codec.encode(mask) for mask in DISCS]
    for one, other in zip(refine(model, image, rles), refine(again, image, rles), strict=True):
        differs = np.mean(one.mask != other.mask)
        assert differs == 0 if dtype == torch.float32 else differs < 0.02


def test_folders_that_hold_no_refiner(model, tmp_path: Path, tiny_folder: Path):
    cases = {"nothing": tmp_path / "nothing", "another model": tiny_folder}
    model.save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cases["cut"] = tmp_path / "cut"
    model.save_pretrained(tmp_path / "other")
    text = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(text.replace('"dim": 16', '"dim": 32'))
    cases["other shape"] = tmp_path / "other"
    for name, folder in cases.items():
        with pytest.raises(VLSegError) as caught:
            Refiner.from_pretrained(folder)
        assert str(folder) in str(caught.value), name
        assert "\n" not in str(caught.value), name


def test_unfit_towers_are_refused():
    for name, words in (("no such", "timm knows no"), ("test_vit", "strides 4, 8 and 16")):
        with pytest.raises(VLSegError, match=words):
            Refiner(replace(TINY, tower=name))


def test_the_trunk_starts_from_a_pixel_encoder(tiny_folder: Path):
    from safetensors.torch import load_file

    weights = load_file(tiny_folder / "model.safetensors")
    made = Refiner(TINY)
    count = start_trunk(made, weights)
    assert count == len(made.trunk.state_dict()) > 10
    for key, value in made.trunk.state_dict().items():
        assert torch.equal(value, weights[f"pixel_encoder.trunk.{key}"].float())
    with pytest.raises(VLSegError, match="no pixel encoder of tower convnext_atto"):
        start_trunk(Refiner(RefinerConfig()), weights)
