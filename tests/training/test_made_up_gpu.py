"""A training step and an answer on a GPU that is made up, where tensors left on the CPU stand out."""

import numpy as np
import pytest
import torch
from made_up_gpu import CUDA, OnGpu, gpu, move, plain
from PIL import Image

from vlseg.models.presets import build_preset
from vlseg.systems.native import NativeSystem
from vlseg.training.batches import Batch
from vlseg.training.checkpoint import Ema
from vlseg.training.config import LossSection, OptimSection
from vlseg.training.objective import loss_sums
from vlseg.training.optimizer import build_optimizer

PLAIN = LossSection()
WORDS = ["the", "red", "dog", "left", "of", "mug"]


def built(**head):
    return build_preset("tiny", WORDS, nouns=7, seed=3, head=head)


def batch_of(processor):
    random = torch.Generator().manual_seed(0)
    regions = torch.zeros(1, 2, 64, 64, dtype=torch.uint8)
    regions[0, 0, 8:40, 4:28], regions[0, 1, 20:60, 34:60] = 1, 1
    targets = torch.tensor([[[True, False], [False, True], [False, False]]])
    return Batch(
        pixels=torch.randint(0, 256, (1, 64, 64, 3), generator=random, dtype=torch.uint8),
        regions=regions,
        nouns=torch.tensor([[1, 2]]),
        targets=targets,
        distractors=torch.tensor([[[False, True], [True, False], [False, False]]]),
        packed=processor.pack([["the red dog", "mug left of the dog", "the mug"]]),
    )


def step(model, processor, batch, weights=PLAIN, matrix_lr=0.0):
    """One step as a run makes it; losses by name, and the averaged weights behind it."""
    optimizer = build_optimizer(model, OptimSection(lr=1e-3, matrix_lr=matrix_lr))
    average = Ema(model.parameters(), 0.9)
    output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
    losses = loss_sums(output, batch, model.config, weights)
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    average.update()
    return losses, average.average


FORMS = [
    ({}, {}, 0.0),
    ({"slots": 3, "presence": True, "presence_dim": 8, "ground": 16, "group": 8}, {"stray": 0.3, "edge": 1.0}, 0.01),
    ({"fusion": "rca"}, {"target_form": "talent"}, 0.0),
]


@pytest.mark.parametrize(("head", "weights", "matrix_lr"), FORMS, ids=["plain", "everything", "talent"])
def test_a_training_step_stays_on_the_gpu_and_gives_what_the_cpu_gives(head, weights, matrix_lr):
    settings = LossSection(**weights), matrix_lr
    model, processor = built(**head)
    batch = batch_of(processor)
    before = [p.detach().clone() for p in model.parameters()]
    with gpu():
        losses, average = step(move(built(**head)[0]), processor, batch.to(CUDA), *settings)
        assert all(isinstance(value, OnGpu) and value.device == CUDA for value in losses.values())
        assert all(isinstance(value, OnGpu) for value in average)
    expected, after = step(model, processor, batch, *settings)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(plain(losses[name]), value, msg=name)
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2
    for ours, theirs in zip(average, after, strict=True):
        torch.testing.assert_close(plain(ours), theirs, atol=1e-5, rtol=1e-4)


def test_an_answer_on_the_gpu_is_that_on_the_cpu():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    model, processor = built()
    asked = image, ["the red dog", "the mug"]
    expected = NativeSystem(model.eval(), processor, "cpu").soft_answers(*asked)
    with gpu():
        found = NativeSystem(move(model), processor, "gpu").soft_answers(*asked)
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        shares = {t: theirs.mask((48, 64), t).mean() for t in np.linspace(0.02, 0.98, 193)}
        middle = min(shares, key=lambda t: abs(shares[t] - 0.5))
        assert 0.05 < shares[middle] < 0.95
        assert (ours.mask((48, 64), middle) == theirs.mask((48, 64), middle)).mean() > 0.99


@pytest.mark.parametrize("left", ["queries", "mean", "truth"])
def test_a_tensor_left_on_the_cpu_is_noticed(monkeypatch, left):
    """The test above can fail: each of these would stop a real GPU."""
    model, processor = built()
    whole = batch_of(processor)
    with gpu():
        batch = whole.to(CUDA)
        if left == "queries":
            batch.packed = whole.packed
        elif left == "truth":
            batch.targets = whole.targets
        else:
            mean = torch.zeros(3)
            monkeypatch.setattr(processor, "normalise", lambda pixels: (pixels.float() - mean).permute(0, 3, 1, 2))
        with pytest.raises(RuntimeError, match="same device"):
            step(move(model), processor, batch)
