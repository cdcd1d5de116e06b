"""open_clip activation maps: features as open_clip itself makes them, masks as a plain loop does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlseg.systems.open_clip_maps import OpenClipMaps, k_means
from vlseg.systems.open_clip_specimens import TOWERS, write_open_clip
from vlseg.systems.open_clip_towers import load_open_clip
from vlseg.systems.quiet import quiet_loading
from vlseg.systems.registry import load_system, resolve
from vlseg.systems.specimens import QUERIES, pictures
from vlseg.types import VLSegError

FEW = QUERIES[:3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(tower): written once."""
    made = {}

    def get(tower: str):
        if tower not in made:
            made[tower] = tmp_path_factory.mktemp(tower)
            with quiet_loading():
                write_open_clip(made[tower], tower, taught=False)
        return made[tower]

    return get


@pytest.fixture(scope="module")
def towers(folder):
    made = {}
    return lambda tower: made.setdefault(tower, load_open_clip(str(folder(tower)), None, "cpu", None))


@pytest.fixture(scope="module")
def plain(folder):
    """plain(tower): open_clip's own model of the same folder."""
    import open_clip

    made = {}
    return lambda tower: made.setdefault(
        tower, open_clip.create_model(f"local-dir:{folder(tower)}", require_pretrained=True).eval()
    )


def pixels_of(image: Image.Image, model, size) -> torch.Tensor:
    """As open_clip's own transform makes them, but that nothing is cropped."""
    from torchvision.transforms.functional import normalize, to_tensor

    ready = to_tensor(image.resize(size[::-1], Image.Resampling.BICUBIC))
    return normalize(ready, model.visual.preprocess_cfg["mean"], model.visual.preprocess_cfg["std"])[None]


def caught(module, call) -> torch.Tensor:
    """What enters a module while open_clip runs."""
    seen = []
    hook = module.register_forward_pre_hook(lambda own, args: seen.append(args[0]))
    try:
        call()
    finally:
        hook.remove()
    return seen[0]


def reference(tower: str, model, pixels: torch.Tensor) -> torch.Tensor:
    """(D, h, w): the value path by hand, from what open_clip itself computes up to the last attention."""
    visual = model.visual
    with torch.inference_mode():
        if tower == "vit":
            block = visual.transformer.resblocks[-1]
            x = caught(block, lambda: model.encode_image(pixels))[:, 1:]
            value = F.linear(block.ln_1(x), block.attn.in_proj_weight[-64:], block.attn.in_proj_bias[-64:])
            x = x + block.attn.out_proj(value)
            x = visual.ln_post(x + block.mlp(block.ln_2(x))) @ visual.proj
        elif tower == "resnet":
            pool = visual.attnpool
            x = caught(pool, lambda: model.encode_image(pixels)).flatten(2).transpose(1, 2)
            x = pool.c_proj(pool.v_proj(x))
        elif tower == "convnext":
            x = visual.trunk.forward_features(pixels)
            mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
            norm = visual.trunk.head.norm
            x = (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
            x = visual.head(x.flatten(2).transpose(1, 2))
        else:
            trunk = visual.trunk
            block = trunk.blocks[-1]
            x = caught(block, lambda: model.encode_image(pixels))
            if tower == "timm-map":
                x = trunk.norm(block(x))[:, trunk.num_prefix_tokens :]
                pool, values = trunk.attn_pool, []
                for one in x[0]:
                    value = pool.proj(pool.kv(one).chunk(2)[1])
                    values.append(value + pool.mlp(pool.norm(value)))
                x = trunk.fc_norm(torch.stack(values))[None]
            else:
                x = x[:, trunk.num_prefix_tokens :]
                x = x + block.ls1(block.attn.proj(block.attn.qkv(block.norm1(x)).chunk(3, -1)[2]))
                x = trunk.fc_norm(trunk.norm(x + block.ls2(block.mlp(block.norm2(x)))))
            x = visual.head(x)
    rows = int(x.shape[1] ** 0.5)
    return F.normalize(x, dim=-1)[0].T.reshape(-1, rows, rows)


@pytest.mark.parametrize("tower", TOWERS)
def test_places_are_those_of_open_clip(tower, towers, plain, monkeypatch):
    own, model = towers(tower), plain(tower)
    side = TOWERS[tower]["image_size"]
    monkeypatch.setattr(own, "side", side)
    image = pictures()[0].resize((97, 97))
    assert own.input_size(image) == (side, side)
    given = own.places([image])[0]
    wanted = reference(tower, model, pixels_of(image, model, (side, side)))
    assert given.shape == wanted.shape
    assert wanted.flatten(1).std(1).mean() > 0.003  # places differ
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tower", ["convnext"])
def test_an_image_of_one_place_is_the_vector_of_open_clip(tower, towers, plain, monkeypatch):
    own, model = towers(tower), plain(tower)
    monkeypatch.setattr(own, "side", 32)
    image = pictures()[0].resize((50, 50))
    with torch.inference_mode():
        wanted = model.encode_image(pixels_of(image, model, (32, 32)), normalize=True)
    torch.testing.assert_close(own.places([image])[:, :, 0, 0], wanted, atol=1e-5, rtol=1e-4)


def test_other_sizes_have_the_positions_that_open_clip_would_load(folder, towers):
    """open_clip interpolates the position table when a checkpoint is loaded at another size."""
    import open_clip

    name = f"local-dir:{folder('vit')}"
    wide = open_clip.create_model(name, require_pretrained=True, force_image_size=(112, 144)).eval()
    image = pictures()[0]
    size = towers("vit").input_size(image)
    assert size == (112, 144)
    block = wide.visual.transformer.resblocks[-1]
    with torch.inference_mode():
        x = caught(block, lambda: wide.encode_image(pixels_of(image, wide, size)))[:, 1:]
        x = x + block.attn.out_proj(
            F.linear(block.ln_1(x), block.attn.in_proj_weight[-64:], block.attn.in_proj_bias[-64:])
        )
        x = F.normalize(wide.visual.ln_post(x + block.mlp(block.ln_2(x))) @ wide.visual.proj, dim=-1)
    given = towers("vit").places([image])[0].flatten(1).T
    torch.testing.assert_close(given, x[0], atol=1e-4, rtol=1e-3)


def test_words_are_those_of_open_clip(folder, towers, plain):
    import open_clip

    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder('vit')}")
    texts = ["a dog", "the red mug left of the laptop " * 9]
    with torch.inference_mode():
        wanted = plain("vit").encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(towers("vit").words(texts), wanted, atol=1e-5, rtol=1e-4)
    assert tokenizer(["x<end_of_text>y"])[0].tolist().count(tokenizer.eot_token_id) == 2
    hostile = towers("vit").words(["x<END_OF_text>y", "x< END_OF_text>y", "x"])
    assert torch.equal(hostile[0], hostile[1])
    assert not torch.allclose(hostile[0], hostile[2], atol=1e-3)


def level(system: OpenClipMaps, image, text: str) -> float:
    """A mask threshold at which about half of the image is foreground."""
    (soft,) = system.soft_answers(image, [text])
    values = soft.mask.args[0].unique()  # between two of them: at the edge of an image they are constant
    return float((values[len(values) // 2 - 1] + values[len(values) // 2]).div(2).sigmoid().clamp(1e-6, 1 - 1e-6))


@pytest.mark.parametrize("clusters", [0, 5])
@pytest.mark.parametrize("tower", ["vit", "convnext", "timm-token"])
def test_masks_alone_and_together(tower, clusters, towers):
    system, images = OpenClipMaps(towers(tower), clusters=clusters), pictures()
    for text in FEW:
        threshold = level(system, images[0], text)
        options = {"presence_threshold": 0.0, "mask_threshold": threshold}
        (alone,) = system.segment(images[0], [text], **options)
        assert alone.status == "found"
        assert 0.05 <= alone.mask.mean() <= 0.95
        both = system.segment_batch(images, [FEW, FEW], **options)
        together = both[0][FEW.index(text)]
        assert together.score == pytest.approx(alone.score, abs=1e-5)
        assert (together.mask == alone.mask).mean() > 0.999
        (encoded,) = system.encode_batch(images[:1])
        assert system.segment_batch([encoded], [[text]], **options)[0][0].segments == alone.segments
        (soft,) = system.soft_answers(images[0], [text])
        assert soft.at((120, 160), 0.0, threshold).segments == alone.segments


def test_clusters_have_one_verdict(towers):
    system, image = OpenClipMaps(towers("vit"), clusters=5), pictures()[0]
    features = system.encode_batch([image])[0].features
    plain = OpenClipMaps(towers("vit")).soft_answers(image, FEW)
    for soft, before in zip(system.soft_answers(image, FEW), plain, strict=True):
        logits, patches = soft.mask.args[0], before.mask.args[0]
        assert 2 <= len(logits.unique()) <= 5
        for label in features["labels"].unique():
            inside = features["labels"] == label
            torch.testing.assert_close(logits[inside], patches[inside].mean().expand(int(inside.sum())))
        assert soft.score < before.score  # a mean is below the highest


def test_k_means_finds_groups():
    rng = torch.Generator().manual_seed(0)
    centres = torch.eye(6)[:4]
    points = F.normalize(centres.repeat_interleave(20, 0) + 0.1 * torch.randn(80, 6, generator=rng), dim=1)
    labels = k_means(points, 4).view(4, 20)
    assert (labels == labels[:, :1]).all()
    assert len(labels[:, 0].unique()) == 4
    assert k_means(points[:2], 8).tolist() in ([0, 1], [1, 0])
    assert k_means(torch.ones(5, 3) / 3**0.5, 3).tolist() == [0] * 5


def test_background_words_in_the_query_are_no_rivals(towers):
    system, image = OpenClipMaps(towers("vit"), background=("sky",)), pictures()[0]
    (sky,) = system.soft_answers(image, ["the blue sky"])
    (none,) = OpenClipMaps(towers("vit"), background=("wall",)).soft_answers(image, ["a wall"])
    assert sky.score == pytest.approx(1.0, abs=0.6)
    words = system.texts(["the blue sky"])[0]
    places = system.encode_batch([image])[0].features["places"]
    wanted = system.towers.temperature * torch.einsum("d,dhw->hw", words, places)
    torch.testing.assert_close(sky.mask.args[0], wanted)
    assert np.isfinite(none.score)


def test_texts_are_computed_once_and_together(towers, monkeypatch):
    system, images = OpenClipMaps(towers("vit")), pictures()
    asked = []
    words = system.towers.words
    monkeypatch.setattr(system.towers, "words", lambda texts: asked.append(len(texts)) or words(texts))
    system.segment_batch(images, [FEW, FEW])
    system.segment_batch(images, [FEW, FEW[:1]])
    each = len(system.templates)
    assert asked == [each * len(FEW), each * len(system.background)]


def test_by_folder_and_by_name(folder, tmp_path):
    place = folder("vit")
    assert resolve(place).preset == "open_clip"
    assert isinstance(load_system(f"open_clip={place}", "cpu"), OpenClipMaps)
    assert load_system(f"open_clip-clusters={place}", "cpu").clusters > 0
    halved = load_system(place, "cpu", "bfloat16").segment(pictures()[0], FEW, presence_threshold=0.0)
    assert all(np.isfinite(answer.score) for answer in halved)
    for said, model in (
        ("no open_clip_config.json", f"open_clip={tmp_path}"),
        ("did you mean ViT-B-32", "open_clip=ViT-B-33"),
        (r"ViT-B-32 needs a checkpoint.*laion2b", "open_clip=ViT-B-32"),
        ("leave out x.pt", f"open_clip={place},x.pt"),
    ):
        with pytest.raises(VLSegError, match=said):
            load_system(model, "cpu")
    with pytest.raises(VLSegError, match="int8: not for open_clip"):
        load_system(place, "cpu", "int8")


def test_by_architecture_and_checkpoint(folder, tmp_path):
    """As `open_clip=ViT-B-16,weights.safetensors`, for an architecture that open_clip is told of here."""
    import open_clip

    told = json.loads((folder("vit") / "open_clip_config.json").read_text())
    (tmp_path / "tiny-vit-for-tests.json").write_text(json.dumps(told["model_cfg"]))
    open_clip.add_model_config(tmp_path)
    weights = folder("vit") / "open_clip_model.safetensors"
    system = load_system(f"open_clip=tiny-vit-for-tests,{weights}", "cpu")
    plain = open_clip.create_model("tiny-vit-for-tests", pretrained=str(weights))
    assert torch.equal(system.towers.model.token_embedding.weight, plain.token_embedding.weight)
    assert system.towers.mean.flatten().tolist() == pytest.approx(list(open_clip.OPENAI_DATASET_MEAN))
    for checkpoint in ("no-such-tag", str(tmp_path / "tiny-vit-for-tests.json")):
        with pytest.raises(VLSegError, match="tiny-vit-for-tests cannot be loaded"):
            load_system(f"open_clip=tiny-vit-for-tests,{checkpoint}", "cpu")


def test_towers_without_places_are_refused(tmp_path):
    config = json.loads(json.dumps({"vision_cfg": TOWERS["vit"] | {"attentional_pool": True}}))
    config |= {"embed_dim": 64, "text_cfg": {"vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(VLSegError, match="pooling of its own hands out no places"):
        load_system(tmp_path, "cpu")
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(VLSegError, match="cannot be loaded"):
        load_system(tmp_path, "cpu")
