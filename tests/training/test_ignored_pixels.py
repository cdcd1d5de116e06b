"""Ignored pixels of a query, from the JSONL file to the gradients: whatever the label says there changes nothing."""

import json

import numpy as np
import pytest
import torch

from vlseg.data.registry import open_dataset
from vlseg.masks.rle import encode
from vlseg.models.presets import build_preset
from vlseg.training.config import LossSection
from vlseg.training.objective import loss_sums
from vlseg.training.samples import SampleBatches, Source

SIZE = (96, 144)  # made smaller on the way to the model: cells at the border of the ignored pixels are cut
WORDS = ["the", "red", "blue", "mug", "cat"]
FORMS = [
    {"target_form": "none"},
    {"target_form": "ours", "target": 1.0, "stray": 0.5},
    {"target_form": "talent"},
]


def write(folder, inside: bool, ignore: bool):
    """One picture, three queries. inside: whether the labels claim the ignored pixels too."""
    from PIL import Image

    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(folder / "a.png")
    red, blue, doubtful = np.zeros((3, *SIZE), bool)
    red[10:70, 10:60] = blue[20:90, 80:130] = doubtful[31:67, 41:103] = True
    if inside:
        red, blue = red | doubtful, blue & ~doubtful
    assert all(0.05 < mask.mean() < 0.95 for mask in (red, blue, doubtful))
    queries = [
        {"text": "the red mug", "masks": [encode(red)], "distractors": [encode(blue)]},
        {"text": "the blue mug", "masks": [encode(blue)], "distractors": [encode(red)]},
        {"text": "the cat", "masks": []},
    ]
    if ignore:
        queries = [{**query, "ignore": encode(doubtful)} for query in queries]
    line = {"image": "a.png", "size": list(SIZE), "queries": queries}
    (folder / "data.jsonl").write_text(json.dumps(line))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build_preset("tiny", WORDS, nouns=4, seed=0, head={"slots": 2})


def batch_of(file, processor):
    processor.image["area"] = 4096
    return SampleBatches([Source(open_dataset(str(file)))], processor, images=1, queries=9, steps=1)[0]


def gradients(file, tiny, weights: LossSection) -> tuple[dict[str, float], list[torch.Tensor]]:
    model, processor = tiny
    batch = batch_of(file, processor)
    output = model(pixel_values=processor.normalise(batch.pixels), **batch.packed.tensors())
    losses = loss_sums(output, batch, model.config, weights)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(sum(losses.values()), parameters, allow_unused=True)
    return {name: float(v.detach()) for name, v in losses.items()}, [g for g in found if g is not None]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form["target_form"])
def test_labels_of_ignored_pixels_change_no_gradient(tiny, tmp_path, form):
    weights = LossSection(**form)
    plain, tampered = write(tmp_path / "a", False, True), write(tmp_path / "b", True, True)
    losses, before = gradients(plain, tiny, weights)
    others, after = gradients(tampered, tiny, weights)
    assert losses == others
    assert len(before) == len(after) > 20
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sum(float(g.abs().sum()) for g in before) > 0
    # and without the ignore map the same change of labels is seen, by the mask losses and by those of regions
    open_losses, _ = gradients(write(tmp_path / "c", False, False), tiny, weights)
    open_others, _ = gradients(write(tmp_path / "d", True, False), tiny, weights)
    changed = {name for name in losses if open_losses[name] != open_others[name]}
    assert {"mask", "coarse", "slots"} <= changed
    assert form["target_form"] != "ours" or {"target", "stray"} <= changed


def test_a_region_whose_query_ignores_other_pixels_is_kept_apart(tiny, tmp_path):
    file = write(tmp_path / "a", True, False)
    line = json.loads(file.read_text())
    part = np.zeros(SIZE, bool)
    part[:, :40] = True
    line["queries"][0]["ignore"] = encode(part)
    file.write_text(json.dumps(line))
    batch = batch_of(file, tiny[1])
    own = batch.regions[0, batch.targets[0, 0]].sum(0)
    seen = batch.regions[0, batch.distractors[0, 1]].sum(0)  # the same object, for a query that ignores nothing
    assert not own[batch.ignored[0, 0]].any()
    assert torch.equal(own.bool(), seen.bool() & ~batch.ignored[0, 0])
    assert int(seen.sum()) > int(own.sum()) > 0
