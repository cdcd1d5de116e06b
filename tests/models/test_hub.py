"""Auto classes, model card and push; nothing here reaches a network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel

from vlseg import Segmenter
from vlseg.models.configuration import VLSegConfig
from vlseg.models.hub import MARK, PROTOCOL, model_card, register_auto_classes, write_card
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.types import VLSegError


class FakeHub:
    """Takes the place of `HfApi`: keeps what is uploaded, refuses when told to."""

    def __init__(self, root, refusal=None):
        self.root, self.refusal, self.calls = root, refusal, []

    def __call__(self, token=None):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, private=None, exist_ok=False):
        if self.refusal:
            raise self.refusal
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, revision, commit_message):
        self.calls.append(("upload", repo_id, revision, commit_message))
        shutil.copytree(folder_path, self.root / repo_id)
        return f"commit of {repo_id}"


@pytest.mark.parametrize("whole", [True, False])
def test_push(build, picture, texts, tmp_path, monkeypatch, no_network, whole):
    """One commit that holds everything: what comes back from the Hub answers as what went there."""
    model, processor = build("qwen3-vl")
    hub = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    done = model.push_to_hub("someone/red-mugs", processor=processor if whole else None, private=True, token="t")
    assert done == "commit of someone/red-mugs"
    assert hub.calls == [
        ("token", "t"),
        ("create", "someone/red-mugs", True, True),
        ("upload", "someone/red-mugs", None, "Upload a vlseg model"),
    ]
    folder = tmp_path / "someone" / "red-mugs"
    assert 'Segmenter("someone/red-mugs")' in (folder / "README.md").read_text()
    assert {f.suffix for f in folder.iterdir()} <= {".json", ".safetensors", ".md", ".jinja"}
    if whole:
        want = model.eval()(**processor([picture()], [texts])).token_logits
        again, its = VLSegModel.from_pretrained(folder), VLSegProcessor.from_pretrained(folder)
        torch.testing.assert_close(again(**its([picture()], [texts])).token_logits, want, atol=1e-6, rtol=1e-6)


def test_a_refused_push_is_told_in_one_line(build, tmp_path, monkeypatch, no_network):
    model, processor = build("qwen3-vl")
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub(tmp_path, OSError("401\n Unauthorized")))
    with pytest.raises(VLSegError, match=r"a/b: not pushed to the Hub \(401 Unauthorized\)"):
        model.push_to_hub("a/b", processor=processor)


def test_the_card_says_how_answers_come_about(build, tmp_path):
    model, _ = build("smolvlm")
    model.config.card |= {"steps": 400, "data": "RefCOCO"}
    try:
        text = model_card(model, "someone/mugs")
    finally:
        for key in ("steps", "data"):
            del model.config.card[key]
    assert PROTOCOL in text
    assert "found: score >= 0.5; mask: p > 0.5 (logit > 0)" in text
    assert "| steps | 400 |" in text
    assert "SmolVLMForConditionalGeneration" in text
    assert "base_model" not in text.split("---")[1]  # a folder of this machine is nobody's base model
    assert text.startswith("---\nlibrary_name: vlseg\n")
    assert Segmenter(build_folder(model, tmp_path), device="cpu").system.protocol == PROTOCOL


def build_folder(model, folder):
    model.save_pretrained(folder)
    VLSegProcessor.from_config(_tokenizer(model), model.config).save_pretrained(folder)
    return folder


def _tokenizer(model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.config.card["base_model"])


def test_a_card_of_ones_own_is_kept(build, tmp_path):
    model, _ = build("smolvlm")
    write_card(model, tmp_path, "first")
    assert MARK in (tmp_path / "README.md").read_text()
    write_card(model, tmp_path, "second")
    assert "# second" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("my own")
    write_card(model, tmp_path, "third")
    assert (tmp_path / "README.md").read_text() == "my own"


def test_auto_classes(folder_of, picture, texts, no_network):
    from transformers import AutoProcessor

    register_auto_classes()
    register_auto_classes()  # as often as one likes
    folder = folder_of("qwen3-vl")
    assert isinstance(AutoConfig.from_pretrained(folder), VLSegConfig)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, VLSegModel)
    assert isinstance(processor, VLSegProcessor)
    output = model.eval()(**processor([picture()], [texts]))
    assert output.mask_logits.isfinite().all()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["processor_class"] == "VLSegProcessor"  # not that of the checkpoint it was built on


def test_importing_registers_nothing():
    code = (
        "import vlseg, vlseg.models.modeling\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\n"
        "import sys; sys.exit('vlseg' in CONFIG_MAPPING)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pickled_weights_are_refused(folder_of, tmp_path):
    """safetensors only: a folder of pickles is no checkpoint."""
    for file in folder_of("qwen3-vl").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        VLSegModel.from_pretrained(tmp_path)
    with pytest.raises(VLSegError):
        Segmenter(tmp_path, device="cpu")


def test_a_processor_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(VLSegError, match=r"no vlseg_processor\.json to be had; is this"):
        VLSegProcessor.from_pretrained(tmp_path)

    def missing(name, file, **options):
        assert (name, file, options) == ("someone/nothing", VLSegProcessor.FILE, {"revision": "v1"})
        raise OSError("404")

    monkeypatch.setattr("vlseg.models.processing.cached_file", missing)
    with pytest.raises(VLSegError, match="someone/nothing: no vlseg_processor"):
        VLSegProcessor.from_pretrained("someone/nothing", revision="v1", trust_remote_code=False)
