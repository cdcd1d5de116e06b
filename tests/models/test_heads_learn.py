"""Every head on every encoder learns: 20 steps on one batch at least halve the loss of its masks."""

import itertools

import pytest
import torch
from test_pixel_encoders import SPECS

from vlseg.models.presets import build_preset
from vlseg.training.batches import SceneBatches
from vlseg.training.config import DataSection, LossSection, OptimSection, Stage
from vlseg.training.objective import loss_sums
from vlseg.training.optimizer import build_optimizer
from vlseg.worlds.sprites import SpriteWorld

HEADS = {
    "dot": {"kind": "dot"},
    "eomt": {"kind": "eomt", "blocks": 2},
    "sam": {"kind": "sam"},
    "dot, rca": {"kind": "dot", "fusion": "rca"},
    "eomt, rca, slots": {"kind": "eomt", "blocks": 2, "fusion": "rca", "slots": 3},
    "sam, rca, slots": {"kind": "sam", "fusion": "rca", "slots": 3},
    "dot, slots": {"kind": "dot", "slots": 3},
}
ENCODERS = {**SPECS, "vlm": {"kind": "vlm"}}
QUICK = ("timm vit", "clip vit/14", "clip resnet", "dinov2", "swin", "sam2 hiera", "vlm")
FIRST = [(head, "timm convnext") for head in HEADS] + [("dot", name) for name in QUICK]
OTHERS = [pair for pair in itertools.product(HEADS, ENCODERS) if pair not in FIRST]
MASKS = ("mask", "coarse", "slots", "target", "stray")


@pytest.mark.parametrize(("head", "encoder"), FIRST)
def test_learns(head, encoder):
    learns(head, encoder)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "encoder"), OTHERS)
def test_learns_all(head, encoder):
    learns(head, encoder)


def learns(head, encoder):
    world = SpriteWorld()
    model, processor = build_preset(
        "tiny", world.vocabulary(), 0, 0, head={**HEADS[head], "presence": True}, pixel_encoder=ENCODERS[encoder]
    )
    data = SceneBatches(DataSection(seed=1, queries=4), [Stage(99, 2, [[64, 96]])], processor, 9)
    batch = data[4]
    pixels = processor.normalise(batch.pixels)
    optimizer = build_optimizer(model, OptimSection(lr=3e-3, matrix_lr=2e-2, weight_decay=0.0))
    weights = LossSection(stray=0.3)
    model.train()
    history = []
    for step in range(21):
        model.set_progress(step / 20)
        output = model(pixel_values=pixels, **batch.packed.tensors())
        losses = loss_sums(output, batch, model.config, weights)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(sum(float(losses[name].detach()) for name in MASKS if name in losses))
    assert history[-1] < 0.5 * history[0], [round(value, 2) for value in history]
