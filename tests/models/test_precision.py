"""Weights in 8 and 4 bits: masks stay, only the language model's layers change, and training still learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlseg import Segmenter
from vlseg.models.modeling import VLSegModel
from vlseg.models.precision import QUANTISED, quantisation, settle
from vlseg.models.specimens import SPECIMENS
from vlseg.systems.registry import EMBEDDED, WEIGHTS
from vlseg.types import VLSegError
from vlseg.worlds.sprites import SpriteWorld

FLOOR = {"bfloat16": 0.98, "int8": 0.98, "nf4": 0.95}
FLOAT = (torch.float32, torch.bfloat16, torch.float16)


def quantised_names(model):
    """Modules whose weight is no plain floating tensor."""
    plain = (torch.Tensor, torch.nn.Parameter)
    return {
        name
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and (type(weight.data) not in plain or weight.dtype not in FLOAT)
    }


@pytest.fixture(scope="module")
def cases():
    """Pictures and queries whose masks by the embedded weights have 5-95 % foreground, with these masks."""
    reference = Segmenter(device="cpu")
    world = SpriteWorld(styles="train")
    found = []
    for number in range(12):
        scene = world.scene(77, number, (160, 160), 6)
        answers = reference(scene.image, [q.text for q in scene.queries], presence_threshold=0)
        large = [a for a in answers if 0.05 <= a.mask.mean() <= 0.95]
        if large:
            found.append((scene.image, [a.text for a in large], [a.mask for a in large], [a.score for a in large]))
    assert sum(len(texts) for _, texts, _, _ in found) >= 8
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", *QUANTISED])
def test_masks_agree_with_float32(cases, dtype):
    segmenter = Segmenter(device="cpu", dtype=dtype)
    ious, apart = [], []
    for image, texts, masks, scores in cases:
        for answer, want, score in zip(segmenter(image, texts, presence_threshold=0), masks, scores, strict=True):
            ious.append((answer.mask & want).sum() / (answer.mask | want).sum())
            apart.append(abs(answer.score - score))
    assert min(ious) > FLOOR[dtype] - 0.1
    assert sum(ious) / len(ious) > FLOOR[dtype]
    assert max(apart) < 0.1


@pytest.mark.parametrize("kind", QUANTISED)
def test_only_the_layers_of_the_language_model_change(kind):
    model = VLSegModel.from_pretrained(WEIGHTS / EMBEDDED, dtype=kind)
    layers = model.vlm.model.language_model.layers
    inside = {id(m) for m in layers.modules()}
    want = {n for n, m in model.named_modules() if id(m) in inside and isinstance(m, torch.nn.Linear)}
    assert len(want) == 42
    assert quantised_names(model) == want


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("name", sorted(SPECIMENS))
@torch.no_grad()
def test_every_family_loads_quantised(folder_of, load, picture, texts, name, kind):
    whole, processor = load(name)
    low = VLSegModel.from_pretrained(folder_of(name), dtype=kind).eval()
    changed = quantised_names(low)
    assert changed
    assert all(".layers." in n and n.startswith(("vlm.model.language_model", "vlm.model.text_model")) for n in changed)
    want, got = (m(**processor([picture()], [texts])).token_logits for m in (whole, low))
    difference = (got - want).norm() / (want - want.mean(-1, keepdim=True)).norm()
    assert 0 < difference < (0.05 if kind == "int8" else 0.6)  # random weights of 32 columns: 4 bits are coarse


def test_four_bits_still_learn_after_a_first_look(folder_of, load, picture, texts):
    """QLoRA's way: evaluate once without gradients, then train. bitsandbytes repacks the weights on the first look
    where the CPU has AVX512-BF16, and from then on there is no gradient, without an error."""
    from peft import LoraConfig, inject_adapter_in_model

    _, processor = load("qwen3-vl")
    model = VLSegModel.from_pretrained(folder_of("qwen3-vl"), dtype="nf4")
    model.requires_grad_(False)
    model = inject_adapter_in_model(
        LoraConfig(r=4, target_modules=r".*language_model\.layers\..*\.(q_proj|v_proj)"), model
    )
    inputs = processor([picture()], [texts])
    with torch.no_grad():
        model.eval()(**inputs)
    layers = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert settle(model) == len(layers) > 0
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
    model.train()(**inputs).token_logits.square().mean().backward()
    learned = [p.grad.abs().max() for n, p in model.named_parameters() if "lora_B" in n]
    assert len(learned) == 4
    assert all(gradient > 0 for gradient in learned)


@pytest.mark.parametrize("kind", QUANTISED)
def test_gradients_pass_through_quantised_layers(folder_of, load, picture, texts, kind):
    """What lies below the quantised layers learns, too: the vision tower's projection."""
    _, processor = load("smolvlm")
    model = VLSegModel.from_pretrained(folder_of("smolvlm"), dtype=kind)
    model(**processor([picture()], [texts])).mask_logits.square().mean().backward()
    assert model.vlm.model.connector.modality_projection.proj.weight.grad.abs().max() > 0
    assert model.mask_head.to_mask[0].weight.grad.abs().max() > 0


def test_compute_dtype(folder_of):
    model = VLSegModel.from_pretrained(folder_of("qwen3-vl"), dtype="nf4", compute_dtype=torch.bfloat16)
    assert model.mask_head.to_mask[0].weight.dtype == torch.bfloat16
    assert model.dtype == torch.bfloat16


def test_a_saved_dtype_does_not_stick(folder_of, tmp_path):
    """Weights saved in bfloat16 load as asked, the language model's, too."""
    VLSegModel.from_pretrained(folder_of("qwen3-vl"), dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = VLSegModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_libraries_say_nothing_on_stdout():
    """`--json` gives one JSON object and nothing else, whatever the quantising libraries print when they load."""
    picture = Path(__file__).resolve().parents[2] / "examples" / "peacocks.png"
    command = [sys.executable, "-m", "vlseg.cli", "segment", str(picture), "the peacock", "--dtype", "nf4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["answers"][0]["status"] in ("found", "absent")
    assert "Failed to load" not in done.stderr


def test_unknown_kinds():
    with pytest.raises(VLSegError, match="dtype int3: unknown; known: int8, nf4"):
        quantisation("int3", torch.float32)
    with pytest.raises(VLSegError, match="int8, nf4"):
        Segmenter(device="cpu", dtype="int3")


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(VLSegError, match=r"bitsandbytes is not installed; pip install 'vlseg\[quant\]'"):
        quantisation("nf4", torch.float32)


def test_frequencies_stay_float32(folder_of):
    """Positions in bfloat16 would blur behind a few hundred tokens."""
    model = VLSegModel.from_pretrained(folder_of("qwen3-vl"), dtype=torch.bfloat16)
    rotary = {n: b.dtype for n, b in model.named_buffers() if n.endswith("inv_freq")}
    assert rotary
    assert set(rotary.values()) == {torch.float32}
