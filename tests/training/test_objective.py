"""The objective as a whole: every form of the target-aware loss, slots, and pixels that no loss may look at."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlseg.losses.mask import IGNORE
from vlseg.models.presets import build_preset
from vlseg.training.batches import SceneBatches
from vlseg.training.config import DataSection, LossSection, Stage
from vlseg.training.objective import counted, loss_sums, wanted
from vlseg.worlds.sprites import SpriteWorld

BASE = {"mask", "coarse", "presence", "pixel_noun", "token_noun", "query_noun", "ground"}


@pytest.fixture(scope="module")
def made():
    """made(**head): (model, batch, its output with gradients) of a tiny model on a fixed batch of two scenes.

    several: the first batch that holds a query with several targets.
    """
    world = SpriteWorld()

    def make(several=False, **head):
        model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0, head=head)
        batches = SceneBatches(DataSection(seed=1, queries=5), [Stage(9, 2, [[64, 96]])], processor, 9)
        several_at = (i for i in range(9) if batches[i].targets.sum(-1).max() > 1)
        batch = batches[next(several_at) if several else 4]
        return model, batch, model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())

    return make


@pytest.mark.parametrize("fusion", ["none", "rca"])
@pytest.mark.parametrize(
    ("form", "more", "expected"),
    [
        ("none", {}, set()),
        ("ours", {}, {"target"}),
        ("ours", {"stray": 0.3}, {"target", "stray"}),
        ("ours", {"edge": 1.0}, {"target", "edge"}),
        ("talent", {}, {"affinity", "sentence"}),
    ],
)
def test_forms(made, fusion, form, more, expected):
    model, batch, output = made(fusion=fusion)
    if form == "talent":  # else no row of its softmax passes 0.7, and the affinity has nothing to teach
        output.query_state = 1e3 * output.query_state
        if output.fused is not None:
            output.fused.text = [1e3 * text for text in output.fused.text]
    losses = loss_sums(output, batch, model.config, LossSection(target_form=form, **more))
    assert set(losses) == BASE | expected
    assert all(value.isfinite() and value > 0 for value in losses.values()), losses
    parameters = [p for p in model.parameters() if p.requires_grad]
    for name in expected:
        gradients = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.any() for g in gradients), name


def test_groups_learn_from_regions_and_from_nothing_that_is_open(made):
    """The loss is there with `head.group` alone; what is ignored anywhere is neither a thing nor background."""
    model, batch, output = made(group=8)
    losses = loss_sums(output, batch, model.config, LossSection())
    assert set(losses) == BASE | {"target", "group"}
    parameters = list(model.pixel_decoder.grouping.parameters())
    assert all(g.any() for g in torch.autograd.grad(losses["group"], parameters, retain_graph=True))
    batch.ignored = torch.zeros(*batch.targets.shape[:2], *batch.regions.shape[-2:], dtype=torch.bool)
    batch.ignored[:, 0] = ~batch.regions.any(1)  # all that is in no region
    without = loss_sums(output, batch, model.config, LossSection())["group"]
    batch.ignored, kept = None, batch.regions
    batch.regions = torch.cat([kept, torch.where(kept.any(1, keepdim=True) > 0, 0, IGNORE).to(kept.dtype)], 1)
    more = torch.nn.functional.pad(batch.targets, (0, 1))
    batch.targets, batch.distractors = more, torch.nn.functional.pad(batch.distractors, (0, 1))
    batch.nouns = torch.nn.functional.pad(batch.nouns, (0, 1), value=-1)
    assert loss_sums(output, batch, model.config, LossSection())["group"].item() == pytest.approx(without.item())
    assert abs(without.item() - losses["group"].item()) > 1e-3


def test_scenes_are_seen_at_the_models_own_size_as_when_it_answers():
    """`resize`: the picture is the one that the model answers, and the truth of the scene's own size is met."""
    world = SpriteWorld()
    model, processor = build_preset("tiny", world.vocabulary(), len(world.nouns), 0)
    processor.image["area"] = 128 * 128
    drawn, seen = (
        SceneBatches(DataSection(seed=1, queries=5), [Stage(9, 2, [[64, 64]], resize)], processor, 9)[4]
        for resize in (False, True)
    )
    assert seen.pixels.shape == (2, 128, 128, 3)
    asked = torch.cat([processor.pixel_values(Image.fromarray(picture.numpy())) for picture in drawn.pixels])
    torch.testing.assert_close(processor.normalise(seen.pixels), asked)
    assert torch.equal(drawn.regions, seen.regions)
    output = model(pixel_values=asked, **seen.packed.tensors())
    truth = wanted(seen, None, output.mask_logits.shape[-2:])
    assert truth.masks.shape == output.mask_logits.shape
    torch.testing.assert_close(truth.masks, wanted(drawn, None, (64, 64)).masks)
    losses = loss_sums(output, seen, model.config, LossSection(edge=1.0))
    sum(losses.values()).backward()
    assert model.pixel_encoder.trunk.stem[0].weight.grad.abs().sum() > 0
    output.mask_logits = 40 * truth.masks - 20
    assert loss_sums(output, seen, model.config, LossSection())["mask"] < 0.05 * losses["mask"]


def test_weights_scale_their_own_loss(made):
    model, batch, output = made(fusion="rca", slots=2)
    for form, names in (("ours", ("target", "stray", "slots")), ("talent", ("affinity", "sentence"))):
        plain = LossSection(target_form=form, stray=0.5)
        before = loss_sums(output, batch, model.config, plain)
        for name in names:
            after = loss_sums(output, batch, model.config, replace(plain, **{name: 2 * getattr(plain, name)}))
            for other, value in after.items():
                assert value.item() == pytest.approx(before[other].item() * (2 if other == name else 1), rel=1e-5)


def test_queries_that_are_none_count_for_nothing(made):
    """Padding queries change no loss."""
    model, batch, output = made(slots=2)
    weights = LossSection(stray=0.3)
    with_all = loss_sums(output, batch, model.config, weights)
    batch.packed.valid[0, -1] = False
    without = loss_sums(output, batch, model.config, weights)
    batch.targets[0, -1] = ~batch.targets[0, -1]  # whatever stands there
    again = loss_sums(output, batch, model.config, weights)
    assert all(torch.equal(without[name], again[name]) for name in without)
    assert with_all["mask"] > without["mask"]


def test_nothing_ignored_is_the_plain_objective(made):
    """The code that weighs pixels agrees with the one that does not where all of them count."""
    model, batch, output = made(slots=2)
    plain = loss_sums(output, batch, model.config, LossSection(stray=0.3))
    batch.ignored = torch.zeros(*batch.targets.shape[:2], *batch.regions.shape[-2:], dtype=torch.bool)
    weighed = loss_sums(output, batch, model.config, LossSection(stray=0.3))
    for name, value in plain.items():
        assert weighed[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("how", ["query", "label"])
def test_ignored_pixels_get_no_gradient_from_any_mask_loss(made, how):
    model, batch, output = made(slots=2)
    height, width = batch.regions.shape[-2:]
    corner = (slice(height // 2, None), slice(width // 2, None))
    if how == "query":
        batch.ignored = torch.zeros(*batch.targets.shape[:2], height, width, dtype=torch.bool)
        batch.ignored[(slice(None), slice(None), *corner)] = True
    else:
        batch.regions[(slice(None), slice(None), *corner)] = IGNORE
        batch.targets |= torch.nn.functional.one_hot(torch.tensor(0), batch.targets.shape[-1]).bool()
    assert not counted(batch)[(slice(None), slice(None), *corner)].any()
    assert counted(batch)[:, :, : height // 2].all()
    for logits in (output.mask_logits, *output.coarse_logits, output.slots.logits):
        logits.retain_grad()
    losses = loss_sums(output, batch, model.config, LossSection(stray=0.3))
    sum(losses[name] for name in ("mask", "coarse", "slots", "stray")).backward()
    for logits in (output.slots.logits, output.mask_logits, *output.coarse_logits):
        h, w = logits.shape[-2:]
        inside = logits.grad[..., h // 2 :, w // 2 :]
        assert not inside.any(), logits.shape
        assert logits.grad.any()


def test_labels_of_255_are_no_foreground(made):
    model, batch, _ = made()
    plain = wanted(batch, None, (16, 24)).regions
    batch.regions[:, :, :8] = IGNORE
    labelled = wanted(batch, counted(batch), (16, 24)).regions
    assert (labelled <= plain).all()
    assert not labelled[:, :, :2].any()
    assert model.config.head["slots"] == 1


def test_slots_see_instances(made):
    """A query for several objects is matched slot by slot: the loss falls when each slot holds one of them."""
    model, batch, output = made(slots=3, several=True)
    several = (batch.targets.sum(-1) > 1).nonzero()
    assert len(several), "the batch must hold a query with several targets"
    weights = LossSection()
    before = loss_sums(output, batch, model.config, weights)["slots"]
    size = tuple(output.slots.logits.shape[-2:])
    regions = wanted(batch, None, size).regions
    b, k = several[0].tolist()
    which = batch.targets[b, k].nonzero()[:3, 0]
    logits = output.slots.logits.detach().clone()
    logits[b, k, : len(which)] = 12 * regions[b, which.flip(0)] - 6
    output.slots.logits = logits
    output.slots.scores = output.slots.scores.detach().clone()
    output.slots.scores[b, k, : len(which)], output.slots.scores[b, k, len(which) :] = 6.0, -6.0
    assert loss_sums(output, batch, model.config, weights)["slots"] < before
