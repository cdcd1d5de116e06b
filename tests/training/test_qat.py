"""Rounding while training: what training saw is what quantising gives; adapters on frozen weights in 4 and 8 bits."""

import json

import pytest
import torch
from many_runs import SMALL, recipe

from vlseg.config import from_dict
from vlseg.data.registry import open_dataset
from vlseg.models.build import from_vlm
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.segmenter import Segmenter
from vlseg.training import merge, qat
from vlseg.training.adapters import GradientWatch, attach, count_parameters
from vlseg.training.config import TrainConfig
from vlseg.training.loop import train as train_config
from vlseg.types import VLSegError


@pytest.fixture(scope="module")
def source(vlm_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    model, processor = from_vlm(vlm_folder, image={"area": 4096}, **SMALL)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def batch(source, picture, queries):
    return VLSegProcessor.from_pretrained(source)([picture(1, 64, 64)], [queries])


def config(**tree):
    return from_dict(TrainConfig, {"steps": 8, **tree})


def train(model, batch, steps=4):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    watch = GradientWatch(model, 3)
    model.train()
    for _ in range(steps):
        output = model(**batch)
        (output.mask_logits.square().mean() - output.token_logits[..., model.config.rej_token_id].mean()).backward()
        watch.look()
        optimizer.step()
        optimizer.zero_grad()
    assert not watch.waiting
    model.eval()
    with torch.no_grad():
        return model(**batch)


def same_masks(a, b, tolerance=1e-4):
    level = a.mask_logits.median()
    assert 0.05 < (a.mask_logits > level).float().mean() < 0.95
    torch.testing.assert_close(a.mask_logits, b.mask_logits, atol=tolerance, rtol=1e-3)


CASES = [("int4", "lora"), ("int8-int4", "none")]
LONG = [("int4", "none"), ("int8", "none"), ("int8", "lora"), ("int8-int4", "lora")]


@pytest.mark.parametrize(("kind", "adapter"), [*CASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in LONG)])
def test_what_training_sees_is_what_quantising_gives(source, batch, tmp_path, kind, adapter):
    settings = config(qat={"kind": kind, "group": 16}, adapter={"kind": adapter, "rank": 2})
    model = VLSegModel.from_pretrained(source).eval()
    with torch.no_grad():
        exact = model(**batch)
        names = qat.prepare(model, settings.qat)
        rounded = model(**batch)
    assert (rounded.mask_logits - exact.mask_logits).abs().max() > 1e-3  # rounding is on
    assert all("language_model" in name for name in names)
    trained = attach(model, settings, rounded=names) if adapter == "lora" else model
    after = train(trained, batch)
    assert (after.mask_logits - rounded.mask_logits).abs().max() > 0.05
    processor = VLSegProcessor.from_pretrained(source)
    merge.save_merged(trained, merge.merged_state(trained), processor, tmp_path / "final", torch.float32)
    qat.quantise(tmp_path / "final", names, settings.qat, tmp_path / "quantised")
    with torch.no_grad():
        same_masks(after, VLSegModel.from_pretrained(tmp_path / "quantised").eval()(**batch))


def test_quantised_weights_take_fewer_bytes(source, tmp_path):
    settings = config(qat={"kind": "int4", "group": 16, "where": ["decoder", "vision"]})
    model = VLSegModel.from_pretrained(source)
    names = qat.prepare(model, settings.qat)
    assert {name.split(".")[2] for name in names} == {"language_model", "visual"}
    qat.quantise(source, names, settings.qat, tmp_path)
    weights = sum(model.get_submodule(name).weight.numel() for name in names)
    saved = qat.bytes_on_disk(source) - qat.bytes_on_disk(tmp_path)
    assert saved > 2 * weights  # of 4 bytes a weight, scales and zero points come on top of the one that is left
    loaded = VLSegModel.from_pretrained(tmp_path)
    assert qat.packed_bytes(tmp_path, loaded, names, settings.qat) == qat.bytes_on_disk(tmp_path) - weights // 2


def test_a_model_with_parameters_of_its_own_loads_again(tiny_folder, tmp_path):
    """Noun prototypes are in no module, so their name has no dot."""
    section = config(qat={"kind": "int4"}).qat
    model = VLSegModel.from_pretrained(tiny_folder)
    assert model.noun_prototypes is not None
    names = qat.rounded_layers(model, section)
    qat.quantise(tiny_folder, names, section, tmp_path)
    loaded = VLSegModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.noun_prototypes, model.noun_prototypes)
    assert all("Intx" in type(loaded.get_submodule(name).weight).__name__ for name in names)


def test_what_cannot_be_rounded_is_said(source):
    model = VLSegModel.from_pretrained(source)
    with pytest.raises(VLSegError, match=r"divides into groups of qat\.group=48"):
        qat.prepare(model, config(qat={"kind": "int4", "group": 48}).qat)
    names = qat.prepare(model, config(qat={"kind": "int4", "group": 16}).qat)
    with pytest.raises(VLSegError, match="dropout: must be 0"):
        attach(model, config(adapter={"kind": "lora", "dropout": 0.1}), rounded=names)


def test_a_run_tells_what_rounding_costs(tiny_folder, blocks_jsonl, tmp_path, monkeypatch):
    """`qat.measure` as shipped: the rounded checkpoint, and a report in which both were run."""
    train_config(recipe("qat", tmp_path, tiny_folder, blocks_jsonl, "steps=1", "qat.measure=true", "data.val_limit=2"))
    told = json.loads((tmp_path / "qat.json").read_text())
    exact, rounded = told["float"], told["quantised"]
    assert told["settings"]["layers"] > 0
    for entry in (exact, rounded):
        assert entry["seconds"] > 0
        assert entry["peak_mib"] > 50
        assert 0 <= entry["mIoU"] <= 1
    assert rounded["IoU_lost"] == pytest.approx(exact["mIoU"] - rounded["mIoU"], abs=1e-5)
    assert exact["bytes"] == qat.bytes_on_disk(tmp_path / "final")
    assert rounded["bytes_packed"] < rounded["bytes"] < exact["bytes"]
    assert Segmenter(tmp_path / "quantised", device="cpu")(blocks_jsonl.parent / "0.png", ["the red mug"])[0].text

    def half(folder, names, section, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(qat, "quantise", half)
    before = qat.bytes_on_disk(tmp_path / "quantised")
    with pytest.raises(OSError, match="space"):
        qat.measure_run(tmp_path, [], qat.QatSection(kind="int4"), None, None)
    assert qat.bytes_on_disk(tmp_path / "quantised") == before
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_timed_is_said_and_the_rest_told(tiny_folder, blocks_jsonl, tmp_path, monkeypatch):
    """As on a GPU that is full of the run itself."""
    monkeypatch.setattr(qat.sys, "executable", "false")
    settings = ("steps=1", "qat.measure=true", "data.val_limit=2")
    out = tmp_path / "run"
    train_config(recipe("qat", out, tiny_folder, blocks_jsonl, *settings))
    told = json.loads((out / "qat.json").read_text())
    assert {"bytes", "mIoU"} <= told["float"].keys()
    assert "seconds" not in told["float"]
    assert "IoU_lost" in told["quantised"]
    table = qat.measure_run(out, [], qat.QatSection(kind="int4"), open_dataset(str(blocks_jsonl)), 1)
    assert table.count("cannot be measured (") == 2


def test_the_table(tmp_path):
    entries = {
        "settings": {"kind": "int4"},
        "float": {"bytes": 4000, "mIoU": 0.5},
        "quantised": {"bytes": 1200, "mIoU": 0.48},
    }
    table = qat.report(entries, tmp_path / "qat.json")
    assert json.loads((tmp_path / "qat.json").read_text()) == entries
    assert [line.split() for line in table.splitlines()] == [
        ["bytes", "mIoU"], ["float", "4,000", "0.5"], ["quantised", "1,200", "0.48"]]  # fmt: skip


BASES = [("nf4", "adalora"), ("int8", "lora")]
CROSSED = [("nf4", "lora"), ("int8", "adalora")]


@pytest.mark.parametrize(("base", "kind"), [*BASES, *(pytest.param(*c, marks=pytest.mark.slow) for c in CROSSED)])
def test_adapters_on_quantised_weights_learn_and_merge_into_exact_ones(source, batch, tmp_path, base, kind):
    settings = config(model={"base": base, "source": str(source)}, steps=10,
                      adapter={"kind": kind, "rank": 2, "start_rank": 3, "every": 2})  # fmt: skip
    model = VLSegModel.from_pretrained(source, dtype=base, compute_dtype=torch.float32, device_map={"": "cpu"})
    total = count_parameters(model)["decoder"][1]
    adapted = attach(model, settings)
    added = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n and "language_model" in n)
    added += 14 * (kind == "adalora")  # peft's numbers of ranks, one a layer
    assert count_parameters(adapted)["decoder"][1] == total + added + 2 * 32  # and the rows of two tokens
    after = train(adapted, batch)
    processor = VLSegProcessor.from_pretrained(source)
    merge.save_merged(adapted, merge.merged_state(adapted), processor, tmp_path, torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    with torch.no_grad():
        same_masks(after, VLSegModel.from_pretrained(tmp_path).eval()(**batch), 1e-5)
