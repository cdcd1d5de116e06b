"""A native model from a checkpoint: its weights, its words, its pictures, and a folder that needs nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from vlseg import Segmenter
from vlseg.models.build import add_control_tokens, from_vlm, prompt
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.models.specimens import SPECIMENS, tokenizer_of
from vlseg.systems.quiet import quiet_loading
from vlseg.types import VLSegError

NAMES = sorted(SPECIMENS)
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def stock(folder):
    return AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_keeps_its_weights(specimen, build, name):
    before, (model, _) = stock(specimen(name)).state_dict(), build(name)
    after = model.vlm.state_dict()
    assert before.keys() == after.keys()
    grown = 0
    for key, value in before.items():
        assert torch.equal(after[key][: len(value)] if value.ndim else after[key], value), key
        grown += value.ndim > 0 and len(after[key]) > len(value)
    assert grown == 2  # rows of embedding and head, and nothing else


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens(specimen, build, folder_of, name):
    """One id each, stable, neutral at the start; typed text is never one."""
    model, processor = build(name)
    saved = VLSegProcessor.from_pretrained(folder_of(name))
    known = len(AutoTokenizer.from_pretrained(specimen(name)))
    ids = model.config.seg_token_id, model.config.rej_token_id
    assert ids == (known, known + 1)
    for p in (processor, saved):
        assert tuple(p.tokenizer.convert_tokens_to_ids(["[SEG]", "[REJ]"])) == ids
        assert len(p.tokenizer) == known + 2
        assert p.tokenizer.decode(list(ids)).replace(" ", "") == "[SEG][REJ]"
    for part in (model.vlm.get_input_embeddings(), model.vlm.get_output_embeddings()):
        assert part.weight.shape[0] == known + 2
        for row in ids:
            torch.testing.assert_close(part.weight[row], part.weight[:known].mean(0))
    control = set(processor.tokenizer.added_tokens_decoder)
    for token in ("[SEG]", "[REJ]", *SPECIMENS[name][2]):
        typed = f"the {token} mug"
        assert not control & set(processor.query_ids(typed)[: -len(processor.suffix_ids)]), token
        assert processor.query_ids(typed) == saved.query_ids(typed)


def test_a_tokenizer_that_splits_oddly():
    """SentencePiece puts a space in front: the token on its own is two ids, and none of them may be taken for it."""
    tokenizer = tokenizer_of(["<pad>", "<bos>", "<eos>", "<image>"], None, spaced=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[SEG]"]})
    split = tokenizer("a [SEG]", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("[SEG]") in split
    assert split[0] != tokenizer.convert_tokens_to_ids("[SEG]")


def test_control_tokens_that_are_there_already(specimen):
    """A checkpoint that was built on once keeps its two ids, and what their rows have learned."""
    vlm, tokenizer = stock(specimen("qwen3-vl")), AutoTokenizer.from_pretrained(specimen("qwen3-vl"))
    first = add_control_tokens(vlm, tokenizer)
    size = len(tokenizer)
    with torch.no_grad():
        vlm.get_output_embeddings().weight[first[0]] = 7.0
    assert add_control_tokens(vlm, tokenizer) == first
    assert len(tokenizer) == size == vlm.get_input_embeddings().weight.shape[0]
    assert (vlm.get_output_embeddings().weight[first[0]] == 7).all()


def test_rows_to_spare_are_used(specimen):
    """Qwen's checkpoints have more rows than tokens: nothing is resized, and untrained rows are not averaged in."""
    vlm, tokenizer = stock(specimen("qwen3-vl")), AutoTokenizer.from_pretrained(specimen("qwen3-vl"))
    known = len(tokenizer)
    vlm.resize_token_embeddings(known + 50)
    with torch.no_grad():
        vlm.get_input_embeddings().weight[known:] = 1e4
    seg, rej = add_control_tokens(vlm, tokenizer)
    rows = vlm.get_input_embeddings().weight
    assert len(rows) == known + 50
    torch.testing.assert_close(rows[seg], rows[:known].mean(0))
    assert torch.equal(rows[seg], rows[rej])


def test_instructions_stand_once_in_the_prefix(build):
    model, processor = build("qwen3-vl")
    text = processor.tokenizer.decode(model.config.prefix["after"])
    assert "reject them" in text
    ids = processor.query_ids("the red mug")
    assert processor.tokenizer.decode(ids) == "the red mug<|im_end|>\n<|im_start|>assistant\n"
    before = processor.tokenizer.decode(model.config.prefix["before"])
    assert before == "<|im_start|>user\n<|vision_start|>"


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("smolvlm", "<|im_start|>User:<fake_token_around_image><global-img>{image}<fake_token_around_image>{words}"),
        ("internvl", "<|im_start|>user\n<img>{image}</img>\n{words}"),
        ("llava-onevision", "<|im_start|>user\n{image}\n{words}"),
        ("paligemma", "{image}<bos>segment "),
        ("fastvlm", "<|im_start|>user\n{image}\n{words}"),
    ],
)
def test_prefix_reads_as_the_checkpoint_wants(build, name, want):
    """Token by token what the stock processor writes for one picture without splitting."""
    model, processor = build(name)
    tokens = model.encode_image(torch.randn(1, 3, 64, 128)).tokens
    ids = model.family.prefix(tokens).ids.tolist()
    image = processor.tokenizer.convert_ids_to_tokens(model.config.vlm.image_token_id) * tokens.pooler_output.shape[1]
    words = "Segment what these words refer to, or reject them if nothing in the picture fits:\n"
    assert processor.tokenizer.decode(ids).replace(" ", "") == want.format(image=image, words=words).replace(" ", "")


def test_tiles_read_as_the_stock_processor_writes_them(build):
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    model, processor = build("smolvlm", split=True, area=128 * 192, multiple=64)
    tokens = model.encode_image(torch.randn(1, 3, 128, 192)).tokens
    count = tokens.pooler_output.shape[1] // 7
    want = get_image_prompt_string(2, 3, count, "<fake_token_around_image>", "<image>", "<global-img>")
    assert model.family.image_ids(tokens) == processor.tokenizer(want, add_special_tokens=False)["input_ids"]


def test_a_template_without_pictures_falls_back(build):
    model, processor = build("qwen3-vl")
    tokenizer = processor.tokenizer
    template, tokenizer.chat_template = tokenizer.chat_template, "{% for m in messages %}{{ m.role }}{% endfor %}"
    try:
        assert prompt(model.family, tokenizer, "look") == ("<|vision_start|>", "<|vision_end|>look", ":")
    finally:
        tokenizer.chat_template = template


def test_the_template_of_the_processor_comes_first(specimen, tmp_path):
    """LLaVA-OneVision's tokenizer has the template of its language model, which knows no pictures."""
    for file in specimen("llava-onevision").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    right = (tmp_path / "chat_template.jinja").read_text()
    text_only = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(text_only)
    plain, _ = from_vlm(tmp_path)
    assert plain.config.query["suffix"] == ":"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": right}))
    model, _ = from_vlm(tmp_path)
    assert model.config.query["suffix"] == "<|im_end|>\n<|im_start|>assistant\n"


def test_settings_come_from_the_checkpoint(build):
    model, processor = build("qwen2.5-vl")
    assert processor.image["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert model.config.image == processor.image
    assert model.config.card["base_model"].endswith("qwen2.5-vl")
    assert build("qwen3-vl")[0].config.image["multiple"] == 32


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fastvlm"])
def test_pictures_are_those_of_the_stock_image_processor(specimen, build, name):
    """On a photograph: bit for bit up to rounding where no resizing is done twice, else close to its own resampling."""
    from transformers import AutoImageProcessor

    photo = pytest.importorskip("skimage.data").astronaut()[:384]
    image = Image.fromarray(photo)
    model, processor = build(name, area=384 * 512)
    whole = {"do_image_splitting": False} if SPECIMENS[name][0] in ("smolvlm", "idefics3") else {}
    want = AutoImageProcessor.from_pretrained(specimen(name))(image, return_tensors="pt", **whole)["pixel_values"]
    family, pixels = model.family, processor.pixel_values(image)
    if hasattr(family, "patches"):
        got = family.patches(family.view(pixels))
    else:
        got = family.views(pixels)
        want = want[:, :1] if name == "llava-onevision" else want.view(got.shape)
    assert got.shape == want.shape
    if name in ("qwen3-vl", "qwen3-vl-moe"):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    else:  # they resample to 8 bits, some with another kernel
        assert (got - want).abs().mean() < 0.025 * want.std()


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_needs_nothing_else(folder_of, picture, texts, no_network, name, assert_foreground):
    folder = folder_of(name)
    assert not list(folder.glob("*.bin"))
    answers = list(Segmenter(folder, device="cpu")(picture(), texts, presence_threshold=0))
    assert_foreground(answers)


def test_building_needs_no_network(specimen, no_network):
    model, _ = from_vlm(specimen("smolvlm"))
    assert model.vlm.config.model_type == "smolvlm"


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_give_the_same_bits(build, texts, picture, tmp_path, name):
    model, processor = build(name)
    with quiet_loading():
        model.save_pretrained(tmp_path)
        again = VLSegModel.from_pretrained(tmp_path).eval()
    for want, got in (
        (model.state_dict(), again.state_dict()),
        (dict(model.named_buffers()), dict(again.named_buffers())),
    ):
        assert want.keys() == got.keys()
        assert all(torch.equal(value, got[key]) for key, value in want.items())
    with torch.no_grad():
        before, after = (m(**processor([picture()], [texts])) for m in (model, again))
    torch.testing.assert_close(after.mask_logits, before.mask_logits, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(after.token_logits, before.token_logits, atol=1e-6, rtol=1e-6)


def test_weights_that_are_cut_off(specimen, tmp_path):
    for file in specimen("smolvlm").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(VLSegError, match="no whole checkpoint"):
        from_vlm(tmp_path)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_checkpoint_that_is_not_whole(specimen, tmp_path, damage):
    for file in specimen("smolvlm").iterdir():
        if file.name != damage and not (damage == "tokenizer.json" and file.name == "tokenizer_config.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(VLSegError, match="no whole checkpoint") as told:
        from_vlm(tmp_path)
    assert "\n" not in str(told.value)


def test_an_image_processor_without_mean(specimen, tmp_path):
    for file in specimen("smolvlm").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    del settings["image_mean"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(VLSegError, match="states no mean"):
        from_vlm(tmp_path)


@pytest.mark.slow
def test_the_real_qwen_vocabulary():
    """151,643 byte pairs: [SEG] in typed text is three of them, never the control token."""
    ranks_file = SHARED / "data" / "tokenizers" / "qwen.tiktoken"
    if not ranks_file.exists():
        pytest.skip("../shared/data/tokenizers/qwen.tiktoken is not here")
    tokenizer = qwen_tokenizer(ranks_file)
    assert tokenizer("segment the red car on the left")["input_ids"] == [23169, 279, 2518, 1803, 389, 279, 2115]
    tokenizer.add_special_tokens({"extra_special_tokens": ["[SEG]", "[REJ]"]})
    seg = tokenizer.convert_tokens_to_ids("[SEG]")
    assert seg == 151643
    processor = VLSegProcessor(tokenizer, {}, {"suffix": ":", "max_tokens": 64})
    typed = processor.query_ids("the [SEG] mug")
    assert seg not in typed
    assert tokenizer.decode(typed) == "the [SEG] mug:"
    assert tokenizer("a[SEG]", add_special_tokens=False)["input_ids"] == [64, seg]


def qwen_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer from tiktoken's ranks; every way to halve a token is a merge of its rank."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in path.read_text().splitlines()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = sorted((ranks[a], ranks[b], a, b) for a, b in halves if a in ranks and b in ranks)
        merges += [(rank, spelled[a], spelled[b]) for _, _, a, b in known]
    merges.sort(key=lambda merge: merge[0])
    tokenizer = Tokenizer(BPE({spelled[t]: r for t, r in ranks.items()}, [(a, b) for _, a, b in merges]))
    letters_first = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    then_the_rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(letters_first + then_the_rest), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_masks_are_put_back_together(build, picture, texts):
    model, processor = build("qwen3-vl")
    with torch.no_grad():
        output = model(**processor([picture(), picture(1)], [texts, texts[:2]]))
    masks = processor.post_process_masks(output, [(120, 160), (60, 80)], [5, 2])
    assert [m.shape for m in masks] == [(5, 120, 160), (2, 60, 80)]
    assert np.array_equal(masks[1], processor.masks(output, 1, (60, 80), 2))


@pytest.mark.parametrize(
    ("name", "image", "want"),
    [
        ("qwen3-vl", {}, {"area": 512 * 512, "multiple": 32, "max_side": 2048}),
        ("qwen3-vl", {"area": 128 * 128}, {"area": 128 * 128, "max_side": 512}),
        ("smolvlm", {"split": True}, {"area": 512 * 512, "split": True}),
        ("fastvlm", {"max_side": 640}, {"multiple": 64, "max_side": 640}),
    ],
)
def test_sizes_of_inputs(specimen, name, image, want):
    model, _ = from_vlm(specimen(name), image=image)
    assert {key: model.config.image[key] for key in want} == want
    assert model.pixel_encoder.levels  # by default the vision tower's own features
    family = model.family
    assert family.area(1000, {}) == (1000 if name in ("qwen3-vl", "fastvlm") else 4 * 64 * 64)


def test_areas_that_checkpoints_ask_for(build):
    qwen, fast = build("qwen3-vl")[0].family, build("fastvlm")[0].family
    assert qwen.area(1000, {"size": {"shortest_edge": 3136, "longest_edge": 10**6}}) == 3136
    assert qwen.area(10**7, {"size": {"shortest_edge": 3136, "longest_edge": 10**6}}) == 10**6
    assert fast.area(1000, {"crop_size": {"height": 1024, "width": 1024}}) == 1024 * 1024


def test_an_instruction_of_ones_own(specimen):
    for name in ("internvl", "paligemma"):
        model, processor = from_vlm(specimen(name), instruction="find the dog which is ")
        assert "find the dog which is" in processor.tokenizer.decode(model.config.prefix["after"])


def test_numbers_of_half_precision(specimen):
    """All weights in bfloat16; frequencies of positions stay float32, as in the stock class."""
    model, _ = from_vlm(specimen("qwen3-vl"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    want = {n: b.dtype for n, b in stock(specimen("qwen3-vl")).to("cpu").named_buffers()}
    assert {n: b.dtype for n, b in model.vlm.named_buffers()} == want
