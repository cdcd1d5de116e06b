"""Models written as others: they load again, answer the same, and take the bytes they say."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlseg.config import dump_yaml, from_dict
from vlseg.export.models import FACTS, KINDS, describe, export_model, weight_bytes
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.segmenter import Segmenter
from vlseg.systems import registry
from vlseg.systems.onnx_model import load_onnx
from vlseg.training import merge, qat
from vlseg.training.adapters import attach
from vlseg.training.config import TrainConfig
from vlseg.training.start import build_model
from vlseg.types import VLSegError

EVERYWHERE = ["decoder", "vision", "pixel"]


def agree(mine, theirs, least):
    """Two results answer alike: same statuses, masks that overlap by `least`; there must be some."""
    assert [a.status for a in mine] == [a.status for a in theirs]
    shares = [float(a.mask.mean()) for a in theirs if a.status == "found"]
    assert shares
    assert all(0.05 < share < 0.95 for share in shares)
    for a, b in zip(mine, theirs, strict=True):
        if a.status == "found":
            assert np.sum(a.mask & b.mask) / np.sum(a.mask | b.mask) >= least


def bytes_by_layer(folder):
    """Bytes that a packed checkpoint holds of each rounded layer."""
    sizes = Counter()
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(("weight_packed", "weight_scale", "weight_shape")):
            sizes[name.rpartition(".")[0]] += tensor.numel() * tensor.element_size()
    return sizes


def config(**tree):
    return from_dict(TrainConfig, {"model": {"preset": None}, "steps": 8, **tree})


@pytest.mark.parametrize(("kind", "options", "least"), [
    ("merged", {}, 1.0), ("merged", {"dtype": "float16"}, 0.99), ("int8", {}, 0.98),
    ("int8", {"dtype": "float16"}, 0.98), ("int8", {"dtype": "stored"}, 0.98),
])  # fmt: skip
def test_what_is_written_answers_the_same(tiny_folder, segmenter, picture, queries, tmp_path, kind, options, least):
    out = export_model(kind, tiny_folder, tmp_path / "out", **options)
    agree(Segmenter(out, device="cpu")(picture(), queries), segmenter(picture(), queries), least)
    facts = json.loads((out / FACTS).read_text())
    assert facts["bytes"] == weight_bytes(out) == (out / "model.safetensors").stat().st_size
    assert facts["source_bytes"] == weight_bytes(tiny_folder)
    small = facts["dtype"] in ("float16", "bfloat16")
    assert small == (options == {"dtype": "float16"} or (kind == "int8" and not options))
    assert (facts["bytes"] < 0.55 * facts["source_bytes"]) == small
    assert describe(out).startswith(f"{kind}: ")
    assert "quantization_config" in json.loads((out / "config.json").read_text()) or kind == "merged"


@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int4", None), ("int4", 8)])
def test_layers_are_rounded_as_training_rounds_them(tiny_folder, tmp_path, kind, group):
    """Against torchao's own tensors; half-precision scales may cost a thousandth."""
    options = {} if group is None else {"group": group}
    out = export_model(kind, tiny_folder, tmp_path / "out", where=EVERYWHERE, dtype="stored", **options)
    section = qat.QatSection(kind=kind, group=group or 32, where=EVERYWHERE)
    loaded = VLSegModel.from_pretrained(out, dtype=torch.float32)
    exact = VLSegModel.from_pretrained(tiny_folder, dtype=torch.float32)
    names = qat.rounded_layers(exact, section)
    assert len(names) == json.loads((out / FACTS).read_text())["layers"] > 30
    untouched = dict(exact.state_dict())
    from torchao.quantization import quantize_

    quantize_(exact, qat.base_config(section), filter_fn=lambda _, name: name in set(names))
    for name in names:
        before, want = untouched.pop(f"{name}.weight"), exact.get_submodule(name).weight.dequantize()
        got = loaded.get_submodule(name).weight
        assert (got - want).abs().max() <= 1.1e-3 * want.abs().max()
        assert (want - before).abs().max() > 2e-3 * want.abs().max()  # rounding is on
    state = loaded.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in untouched.items())


def test_four_bits_take_little_more_than_half_of_eight(tiny_folder, tmp_path):
    small, large = (
        bytes_by_layer(export_model(k, tiny_folder, tmp_path / k, where=EVERYWHERE)) for k in ("int4", "int8")
    )
    assert small.keys() < large.keys()  # not all inputs divide into groups
    assert 0.5 < small.total() / sum(large[name] for name in small) <= 0.6


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_other_weights_are_stored_in_16_bits(tiny_folder, picture, queries, tmp_path, kind):
    """Against the same layers rounded, the others as they were: masks stay, bytes go."""
    small, whole = (export_model(kind, tiny_folder, tmp_path / str(d), dtype=d) for d in (None, "stored"))
    agree(Segmenter(small, device="cpu")(picture(), queries), Segmenter(whole, device="cpu")(picture(), queries), 0.98)
    assert bytes_by_layer(small) == bytes_by_layer(whole)
    rounded = bytes_by_layer(small).total()
    others = [weight_bytes(folder) - rounded for folder in (small, whole)]
    assert 0.45 < others[0] / others[1] < 0.6
    half = export_model("merged", tiny_folder, tmp_path / "half", dtype="float16")
    assert json.loads((export_model(kind, half, tmp_path / "of-half") / FACTS).read_text())["dtype"] == "float16"


def test_a_packed_checkpoint_computes_in_any_number_type(tiny_folder, picture, queries, tmp_path):
    out = export_model("int8", tiny_folder, tmp_path / "out")
    answers = Segmenter(out, device="cpu", dtype="bfloat16")(picture(), queries)
    assert any(answer.status == "found" for answer in answers)


def adapted(folder, **tree):
    """A model with an adapter that changes its answers, and the settings it belongs to."""
    settings = config(**{"adapter": {"kind": "lora", "rank": 2}, **tree})
    settings.model.source = str(folder)
    torch.manual_seed(0)
    start = build_model(settings)
    model = attach(start.model, settings, start.new).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
            elif "modules_to_save" in name or "trainable_tokens" in name:
                weight.add_(0.01 * torch.randn_like(weight))
    return model, start.processor, settings


@pytest.mark.parametrize("base", ["float32", "nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_adapter_of_a_run_is_merged_into_its_base(tiny_folder, picture, queries, tmp_path, base):
    """As of best/, of which a run keeps the adapter alone; a base in 4 bits is dequantised first."""
    tree = {"model": {"preset": None, "base": base}, "mixed_precision": "no"}
    model, processor, settings = adapted(tiny_folder, **tree)
    run = tmp_path / "run"
    merge.save_adapter(model, merge.adapter_state(model), run / "best" / "adapter")
    (run / "config.yaml").write_text(dump_yaml(settings))
    out = export_model("merged", run, tmp_path / "out")
    inputs = processor([picture()], [queries])
    with torch.no_grad():
        want, got = model(**inputs).mask_logits, VLSegModel.from_pretrained(out).eval()(**inputs).mask_logits
        plain = VLSegModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()(**inputs).mask_logits
    assert 0.05 < (want > 0).float().mean() < 0.95
    assert (plain - want).abs().max() > 0.1
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)
    # and without its run, by the base that its settings name, held as it was
    (run / "config.yaml").unlink()
    lone = VLSegModel.from_pretrained(export_model("merged", run / "best" / "adapter", tmp_path / "lone")).state_dict()
    torch.testing.assert_close(lone, VLSegModel.from_pretrained(out).state_dict())
    (run / "best" / "adapter" / merge.BASE).unlink()
    other = VLSegModel.from_pretrained(export_model("merged", run / "best" / "adapter", tmp_path / "o")).state_dict()
    far = max(float((other[name] - lone[name]).abs().max()) for name in lone)
    assert (far > 1e-3) == (base != "float32")  # into the exact base it would not be the model that was trained


def test_of_a_quantisation_aware_run_layers_and_groups_are_those_of_the_training(tiny_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "final").symlink_to(tiny_folder)
    (run / "config.yaml").write_text(dump_yaml(config(qat={"kind": "int8-int4", "group": 16, "where": ["vision"]})))
    facts = json.loads((export_model("int4", run, tmp_path / "a") / FACTS).read_text())
    assert (facts["where"], facts["group"]) == (["vision"], 16)
    facts = json.loads((export_model("int8", run, tmp_path / "b") / FACTS).read_text())
    assert facts["where"] == ["decoder"]


def test_what_is_refused_is_said(tiny_folder, tmp_path):
    def fails(match, *args, **options):
        with pytest.raises(VLSegError, match=match) as told:
            export_model(*args, **options)
        assert "\n" not in str(told.value)
        assert not (tmp_path / "out").exists()

    out = tmp_path / "out"
    fails("did you mean int4", "int44", tiny_folder, out)
    fails("no option 'groups'; did you mean group", "int4", tiny_folder, out, groups=3)
    fails("no option 'group'", "merged", tiny_folder, out, group=32)
    fails("no such folder", "merged", tmp_path / "nothing", out)
    fails("dtype int8: unknown", "merged", tiny_folder, out, dtype="int8")
    fails("head is no place", "int8", tiny_folder, out, where=["head"])
    fails("group 12: must be a multiple of 8", "int4", tiny_folder, out, group=12)
    fails("divides into groups", "int4", tiny_folder, out, group=1024)
    (tmp_path / "run").mkdir()
    fails("neither a run", "merged", tmp_path / "run", out)
    (tmp_path / "run" / "config.yaml").write_text(dump_yaml(config()))
    fails("has no final/ yet", "merged", tmp_path / "run", out)
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "config.json").write_text('{"model_type": "qwen3_vl"}')
    fails("of model type 'qwen3_vl'", "merged", tmp_path / "vlm", out)
    packed = export_model("int8", tiny_folder, tmp_path / "packed")
    fails("quantised already", "int4", packed, out)
    with pytest.raises(VLSegError, match="is there already"):
        export_model("merged", tiny_folder, packed)


def test_a_folder_is_written_whole_or_not_at_all(tiny_folder, tmp_path, monkeypatch):
    def half(folder, out, name):
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(KINDS, "merged", replace(KINDS["merged"], writer="models:_half"))
    monkeypatch.setattr("vlseg.export.models._half", half, raising=False)
    with pytest.raises(VLSegError, match=r"cannot be written .*No space left"):
        export_model("merged", tiny_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ONNX -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graphs(tiny_folder, tmp_path_factory, asked, queries):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    size = [224, 288]  # as the model itself takes 3:4
    data = str(asked(queries))
    return export_model("onnx", tiny_folder, tmp_path_factory.mktemp("onnx") / "out", size=size, data=data)


def test_onnx_graphs_give_the_models_numbers(tiny_folder, graphs, picture, queries):
    """By onnxruntime itself, with as many queries and tokens as no graph was traced with."""
    import onnxruntime

    model, processor = VLSegModel.from_pretrained(tiny_folder).eval(), VLSegProcessor.from_pretrained(tiny_folder)
    pixels = processor.pixel_values(picture(1), (224, 288))
    image, asked = (onnxruntime.InferenceSession(graphs / f"{name}.onnx") for name in ("image", "queries"))
    names = [entry.name for entry in image.get_outputs()]
    features = dict(zip(names, image.run(names, {"pixel_values": pixels.contiguous().numpy()}), strict=True))
    wanted = {entry.name for entry in asked.get_inputs()}
    for texts in ([queries[0]], queries, [*queries, *queries]):
        packed = processor.pack([texts]).tensors()
        with torch.no_grad():
            want = model(pixel_values=pixels, **packed)
        feed = {name: value for name, value in features.items() if name in wanted}
        feed |= {name: packed[name].numpy() for name in packed if name in wanted}
        logits, evidence = asked.run(["mask_logits", "evidence"], feed)
        assert 0.05 < (want.mask_logits > 0).float().mean() < 0.95
        torch.testing.assert_close(torch.from_numpy(logits), want.mask_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(evidence), want.evidence, atol=1e-4, rtol=1e-4)


def test_onnx_graphs_answer_as_a_system(tiny_folder, graphs, segmenter, picture, queries):
    system = load_onnx(graphs)
    pictures = [picture(0, 96, 128), picture(2, 192, 256)]  # of that shape
    mine, theirs = Segmenter(graphs)(pictures, queries), segmenter(pictures, queries)
    for mine_one, theirs_one in zip(mine, theirs, strict=True):
        agree(mine_one, theirs_one, 0.99)
    encoded = system.encode_batch([picture(0, 96, 128)])
    again = system.segment_batch(encoded, [queries])[0]
    assert [a.status for a in again] == [a.status for a in mine[0]]
    facts = json.loads((graphs / FACTS).read_text())
    assert facts["largest_difference"] < 1e-4
    told = facts["agreement"]
    assert (told["images"], told["queries"], told["same_status"]) == (3, 15, 1.0)
    assert told["masks"] > 3
    assert told["mean_iou"] >= 0.99


def test_what_no_graph_can_be_made_of(tiny_folder, graphs, tmp_path):
    with pytest.raises(VLSegError, match=r"size \(100, 128\): height and width must be multiples of 32"):
        export_model("onnx", tiny_folder, tmp_path / "out", size=(100, 128))
    with pytest.raises(VLSegError, match="not a whole ONNX export"):
        load_onnx(tiny_folder)
    with pytest.raises(VLSegError, match="runs on the CPU here, not on cuda"):
        Segmenter(graphs, device="cuda")
    with pytest.raises(VLSegError, match="computes in float32, not in bfloat16"):
        Segmenter(graphs, dtype="bfloat16")
    assert registry.resolve(graphs).kind == "onnx"
