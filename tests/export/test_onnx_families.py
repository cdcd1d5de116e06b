"""ONNX by family of language model: the graphs give the model's masks, or one line says which family cannot."""

import json
import re

import pytest
import torch

from vlseg.export.models import FACTS, export_model
from vlseg.models.build import from_vlm
from vlseg.models.specimens import SPECIMENS, write_specimen
from vlseg.segmenter import Segmenter
from vlseg.systems.quiet import quiet_loading
from vlseg.types import VLSegError

HEAD = {"dim": 32, "embed_dim": 16, "detail_dim": 8, "layers": 2, "group": 8}
EXPORTED = {"internvl"}  # of those below; as docs/fine-tuning.md, "Out again", tells
QUICK, SLOW = ["qwen3-vl"], ["internvl", "qwen2.5-vl", "llava-onevision"]


@pytest.fixture(autouse=True)
def _packages():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


def write_checkpoint(name, folder, picture, queries):
    """A random checkpoint with the family's own vision features; every query is found, its mask half full."""
    with quiet_loading():
        torch.manual_seed(1)
        model, processor = from_vlm(write_specimen(name, folder / "vlm"), head=HEAD, image={"area": 64 * 64})
        with torch.no_grad():
            model.mask_head.to_mask[-1].weight.mul_(40)
            output = model(**processor([picture(0, 96, 128)], [queries]))
            model.mask_head.bias.bias.sub_(output.mask_logits.median())
            model.config.presence = {"threshold": 0.5, "scale": 1.0, "bias": 1.0 - float(output.evidence.min())}
        model.save_pretrained(folder / "vlseg")
        processor.save_pretrained(folder / "vlseg")
    return folder / "vlseg"


def tried(folder, out, **options):
    """(the exported folder, "") or (None, the refusal)."""
    try:
        return export_model("onnx", folder, out, **options), ""
    except VLSegError as error:
        return None, str(error)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_graphs_give_the_same_masks_or_are_refused(
    name, picture, queries, asked, assert_foreground, tmp_path, capsys
):
    folder, data = write_checkpoint(name, tmp_path, picture, queries), asked(queries, 1)
    assert_foreground(Segmenter(folder, device="cpu")(data.with_name("0.png"), queries))
    capsys.readouterr()
    out, refusal = tried(folder, tmp_path / "out", data=str(data))
    if out is None:
        assert name not in EXPORTED, refusal
        assert re.fullmatch(rf"onnx: (image|queries)\.onnx of {SPECIMENS[name][0]} cannot be exported \(.+\)", refusal)
        assert not (tmp_path / "out").exists()
        assert capsys.readouterr() == ("", "")  # torch prints the graph that it has so far
        return
    told = json.loads((out / FACTS).read_text())["agreement"]
    assert (told["queries"], told["masks"], told["same_status"]) == (5, 5, 1.0)
    assert told["mean_iou"] >= 0.99


def test_a_refusal_is_one_line_that_names_the_family(tiny_folder, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("Could not guard on\n\n  data-dependent expression u0 < 4")

    monkeypatch.setattr(torch.export, "export", fails)
    out, refusal = tried(tiny_folder, tmp_path / "out")
    expected = "onnx: image.onnx of fast_vlm cannot be exported (Could not guard on data-dependent expression u0 < 4)"
    assert (out, refusal) == (None, expected)
    assert list(tmp_path.iterdir()) == []
