"""Every kind of pixel encoder on tiny real classes: shapes at any size, weights by name, no batch statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlseg.models.build import from_vlm
from vlseg.models.configuration import VLSegConfig
from vlseg.models.modeling import VLSegModel
from vlseg.models.pixel_encoder import PixelEncoder, build_pixel_encoder
from vlseg.models.pixel_encoder_named import fill, named
from vlseg.models.pixel_pyramid import STRIDES, Pyramid, spread
from vlseg.models.presets import build_preset
from vlseg.models.specimens import SPECIMENS
from vlseg.systems.quiet import quiet_loading
from vlseg.types import VLSegError

STAGES = {"depths": [1, 1, 1, 1]}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 64}
CLIP_VIT = {"layers": 4, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64}
SAM2 = {
    "hidden_size": 16,
    "num_attention_heads": 1,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "window_positional_embedding_background_size": [7, 7],
    "window_size_per_stage": [8, 4, 14, 7],
    "global_attention_blocks": [3],
    "image_size": [64, 64],
}


def timm(name, **more):
    return {"kind": "open_clip", "embed_dim": 8, "vision_cfg": {"timm_model_name": name, "timm_pool": "", **more}}


def clip(**vision):
    return {"kind": "open_clip", "embed_dim": 8, "vision_cfg": vision}


def hf(kind, **config):
    return {"kind": "hf", "config": {"model_type": kind, **config}}


SPECS = {
    "timm convnext": timm("test_convnext", timm_proj="", image_size=256),
    "timm resnet": timm("test_resnet"),
    "timm efficientnet": timm("test_efficientnet"),
    "timm vit": timm("test_vit"),
    "clip vit": clip(**CLIP_VIT),
    "clip vit/14": clip(**{**CLIP_VIT, "patch_size": 14, "image_size": 56}),
    "clip vit/32": clip(**{**CLIP_VIT, "patch_size": 32}),
    "clip resnet": clip(layers=[1, 1, 1, 1], width=8, head_width=8, image_size=64),
    "dinov2": hf("dinov2", **PLAIN, image_size=56, patch_size=14),
    "dinov3": hf("dinov3_vit", **PLAIN, image_size=64, patch_size=16, num_register_tokens=2),
    "convnext": hf("convnextv2", **STAGES, hidden_sizes=[8, 16, 24, 32]),
    "swin": hf(
        "swin", **STAGES, embed_dim=16, num_heads=[1, 2, 2, 4], window_size=4, image_size=64, drop_path_rate=0.0
    ),
    "resnet": hf("resnet", **STAGES, embedding_size=8, hidden_sizes=[8, 16, 24, 32], layer_type="basic"),
    "sam2 hiera": hf("sam2_hiera_det_model", **SAM2),
}


def build(spec) -> PixelEncoder:
    torch.manual_seed(0)
    return build_pixel_encoder(VLSegConfig(pixel_encoder=spec)).eval()


def noise(height, width, count=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("name", SPECS)
def test_a_pyramid_at_any_size(name):
    encoder = build(SPECS[name])
    for height, width in ((96, 128), (160, 64), (32, 224)):
        with torch.no_grad():
            maps = encoder(noise(height, width))
        shapes = [(c, height // s, width // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]
        assert [tuple(m.shape[1:]) for m in maps] == shapes
        assert set(encoder.strides) >= {4, 8, 16}
        assert all(m.std() > 1e-4 for m in maps)  # an encoder that gives constants sees nothing


@pytest.mark.parametrize("name", SPECS)
def test_gradients_reach_all_and_no_statistics_move(name):
    encoder = build(SPECS[name]).train()
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = {k: v.clone() for k, v in encoder.named_buffers()}
    maps = encoder(noise(96, 128, 2))
    sum((m * noise(*m.shape[-2:])[:, :1]).sum() for m in maps).backward()
    silent = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    assert all(torch.equal(v, before[k]) for k, v in encoder.named_buffers())


@pytest.mark.parametrize("name", [n for n in SPECS if n != "dinov3"])  # its rope is augmented in training by design
def test_an_image_does_not_see_its_batch(name):
    encoder = build(SPECS[name]).train()
    images = noise(96, 64, 2)
    with torch.no_grad():
        both, alone = encoder(images), encoder(images[1:])
    for m, n in zip(both, alone, strict=True):
        torch.testing.assert_close(m[1:], n, atol=1e-5, rtol=1e-5)


def test_the_position_table_of_clip_is_used_as_it_is_and_interpolated():
    """At the size of its pretraining the tower gives what open_clip's own forward pass gives."""
    encoder = build(SPECS["clip vit"])
    tower, image = encoder.trunk, noise(64, 64)
    with torch.no_grad():
        theirs = tower.forward_intermediates(image, indices=encoder.take, intermediates_only=True)
        for m, n in zip(encoder.features(image, ()), theirs["image_intermediates"], strict=True):
            torch.testing.assert_close(m, n)
        plain = encoder.features(noise(96, 128), ())[-1]
        tower.positional_embedding[1:].zero_()
        assert (encoder.features(noise(96, 128), ())[-1] - plain).abs().max() > 1e-3


def test_patches_of_14_pixels_get_an_image_of_their_own_size():
    encoder = build(SPECS["dinov2"])
    assert (encoder.patch, encoder.stride) == (14, 16)
    assert encoder.view(noise(96, 128)).shape == (1, 3, 84, 112)
    assert build(SPECS["clip vit/32"]).stride == 32


def test_an_encoder_gets_the_normalisation_it_was_trained_with():
    mean, std = [0.48, 0.45, 0.40], [0.26, 0.25, 0.27]
    encoder = build_pixel_encoder(VLSegConfig(pixel_encoder={**SPECS["timm convnext"], "mean": mean, "std": std}))
    picture = torch.rand(1, 3, 32, 32)
    column = (3, 1, 1)
    theirs = (picture - torch.tensor(mean).view(column)) / torch.tensor(std).view(column)
    torch.testing.assert_close(encoder.view((picture - 0.5) / 0.5), theirs)


def test_spread_and_pyramid():
    assert spread(12) == [3, 6, 9, 12]
    assert spread(27) == [7, 14, 20, 27]
    assert spread(2) == [1, 2]
    pyramid = Pyramid([8, 8], 16, 4)
    assert pyramid.source == [0, 0, 1, 1]
    maps = pyramid([noise(6, 8).repeat(1, 3, 1, 1)[:, :8]] * 2)
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 96 // s, 128 // s) for s in STRIDES]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "vgg"}, "unknown 'vgg'; known: hf, open_clip, vlm"),
        (timm("no_such_tower"), "timm knows no 'no_such_tower'"),
        (clip(depth=3), "vision_cfg: .*depth"),
        (hf("bert"), "bert is no backbone"),
        (hf("no_such_model"), "no backbone of transformers"),
        (hf("pvt_v2"), "needs 4"),
    ],
)
def test_what_is_no_encoder_is_named(spec, message):
    with pytest.raises(VLSegError, match=message):
        build(spec)


def test_maps_that_do_not_fit_the_picture_are_refused():
    with pytest.raises(VLSegError, match="is not at stride 4"):
        build(hf("focalnet", **STAGES, embed_dim=16, hidden_sizes=[16, 32, 64, 128]))(noise(64, 64))


# by name -------------------------------------------------------------------------------------------------------------
def same_maps(encoder, trunk_maps, image):
    with torch.no_grad():
        ours = encoder.features(encoder.view(image), ())
    for m, n in zip(ours, trunk_maps(encoder.view(image)), strict=True):
        torch.testing.assert_close(m, n)


def test_a_folder_of_dinov2_by_name(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    source = Dinov2Model(Dinov2Config(**PLAIN, image_size=56, patch_size=14)).eval()
    source.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]}')
    spec, weights = named({"kind": "hf", "source": str(tmp_path)})
    assert (spec["mean"], spec["std"]) == ([0.4] * 3, [0.2] * 3)
    assert str(tmp_path) not in str(spec)
    encoder = build(spec)
    fill(encoder, weights)

    def stock(pixels):
        with torch.no_grad():
            states = source(pixels, output_hidden_states=True).hidden_states
        rows = [side // 14 for side in pixels.shape[-2:]]
        return [source.layernorm(states[i])[:, 1:].transpose(1, 2).unflatten(2, rows) for i in spread(5)]

    same_maps(encoder, stock, noise(64, 96))


def test_a_folder_of_sam2_by_name(tmp_path):
    from transformers import Sam2Config, Sam2Model, Sam2VisionConfig
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(**SAM2),
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    torch.manual_seed(1)
    source = Sam2Model(Sam2Config(vision_config=vision, mask_decoder_config={"hidden_size": 16, "mlp_dim": 16})).eval()
    with quiet_loading():
        source.save_pretrained(tmp_path)
        spec, weights = named({"kind": "hf", "source": str(tmp_path)})
    encoder = build(spec)
    fill(encoder, weights)
    same_maps(
        encoder,
        lambda p: [m.permute(0, 3, 1, 2) for m in source.vision_encoder.backbone(p).intermediate_hidden_states],
        noise(64, 96),
    )


def checkpoint(tmp_path, module, prefix, form):
    state = {prefix + k: v for k, v in module.state_dict().items()} | {"logit_scale": torch.ones(())}
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "clip.safetensors")
        return tmp_path / "clip.safetensors"
    torch.save({"state_dict": state} if form == "wrapped" else state, tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


@pytest.mark.parametrize(
    ("name", "prefix", "form"),
    [
        ("clip vit", "visual.", "safetensors"),
        ("clip resnet", "visual.", "wrapped"),
        ("timm vit", "visual.trunk.", "plain"),
        ("timm resnet", "", "plain"),
    ],
)
def test_a_checkpoint_of_open_clip_or_timm_by_file(tmp_path, name, prefix, form):
    from open_clip.model import _build_vision_tower

    torch.manual_seed(3)
    vision = SPECS[name]["vision_cfg"]
    tower = _build_vision_tower(8, dict(vision))
    for m in tower.modules():  # statistics as after a pretraining
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    module = getattr(tower, "trunk", tower).eval()
    spec, weights = named({**SPECS[name], "weights": str(checkpoint(tmp_path, module, prefix, form))})
    assert len(spec["mean"]) == len(spec["std"]) == 3
    assert "weights" not in spec
    encoder = build(spec)
    fill(encoder, weights)
    image = noise(160, 160) if name == "timm vit" else noise(64, 64)
    take = encoder.take

    def stock(pixels):
        with torch.no_grad():
            found = module.forward_intermediates(pixels, indices=take, intermediates_only=True)
        return found["image_intermediates"] if isinstance(found, dict) else found

    same_maps(encoder, stock, image)


def test_a_model_of_open_clip_by_name():
    spec, weights = named({"kind": "open_clip", "model": "ViT-B-16-quickgelu"})
    assert weights is None
    assert spec["quick_gelu"]
    assert spec["vision_cfg"]["patch_size"] == 16
    assert "model" not in spec
    with pytest.raises(VLSegError, match="open_clip knows no 'ViT-Z'"):
        named({"kind": "open_clip", "model": "ViT-Z"})


@pytest.mark.parametrize("how", ["preset", "language model"])
def test_a_model_starts_with_the_named_weights(specimen, tmp_path, how):
    source = build(SPECS["clip vit"])
    spec = {**SPECS["clip vit"], "weights": str(checkpoint(tmp_path, source.trunk, "visual.", "plain"))}
    torch.manual_seed(5)
    with quiet_loading():
        if how == "preset":
            model, _ = build_preset("tiny", ["the", "dog"], nouns=0, seed=7, pixel_encoder=spec)
        else:
            model, _ = from_vlm(specimen("smolvlm"), pixel_encoder=spec, head={"dim": 32})
    ours, theirs = model.pixel_encoder.trunk.state_dict(), source.trunk.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())
    assert str(tmp_path) not in str(model.config.to_dict())
    assert model.config.pixel_encoder["mean"]  # CLIP's, not the language model's


def test_weights_that_do_not_fit_are_refused(tmp_path):
    encoder = build(SPECS["clip vit"])
    state = encoder.trunk.state_dict()
    with pytest.raises(VLSegError, match="lacks 1 of its tensors"):
        fill(encoder, {k: v for k, v in state.items() if k != "conv1.weight"})
    with pytest.raises(VLSegError, match="positional_embedding is"):
        fill(encoder, {**state, "positional_embedding": torch.zeros(5, 32)})
    for name, content in (("none.pt", None), ("broken.pt", b"x" * 99), ("broken.safetensors", b"x" * 99)):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(VLSegError, match=name):
            named({**SPECS["clip vit"], "weights": str(tmp_path / name)})
    with pytest.raises(VLSegError, match="no backbone that can be read"):
        named({"kind": "hf", "source": str(tmp_path)})


# inside the model ----------------------------------------------------------------------------------------------------
def model_with(spec, head=None):
    model, processor = build_preset("tiny", ["the", "red", "dog", "left"], nouns=7, seed=3)
    config = model.config
    config.pixel_encoder, config.head = dict(spec), {**config.head, **(head or {})}
    torch.manual_seed(3)
    return VLSegModel(config).eval(), processor


@pytest.mark.parametrize("name", ["timm vit", "clip vit/14", "dinov2", "dinov3", "swin", "sam2 hiera", "resnet"])
def test_save_and_load_give_the_same_result(name, tmp_path):
    """Also what lives outside the state dict (rotary frequencies, window indices) is as it was."""
    model, processor = model_with(SPECS[name])
    inputs = {"pixel_values": noise(96, 128), **processor.pack([["the red dog", "left"]]).tensors()}
    with quiet_loading():
        model.save_pretrained(tmp_path)
        again = VLSegModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        before, after = model(**inputs), again(**inputs)
    assert before.mask_logits.std() > 1e-4
    torch.testing.assert_close(before.mask_logits, after.mask_logits, atol=1e-4, rtol=1e-4)


FAMILIES = [n if n in ("qwen3-vl", "smolvlm") else pytest.param(n, marks=pytest.mark.slow) for n in SPECIMENS]


def with_vlm_features(specimen, name, **encoder):
    torch.manual_seed(1)
    with quiet_loading():
        return from_vlm(
            specimen(name),
            pixel_encoder={"kind": "vlm", **encoder},
            head={"dim": 32, "embed_dim": 16, "detail_dim": 8, "layers": 1},
            image={"area": 96 * 128},
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_language_models_own_features(specimen, name, tmp_path):
    """No second encoder: the pyramid is made of the vision tower's maps, and its gradient reaches the tower."""
    model, processor = with_vlm_features(specimen, name)
    model.train()
    assert model.pixel_encoder.levels[-1] == -1
    assert len(model.pixel_encoder.levels) > 1 or name == "fastvlm"
    assert model.pixel_encoder.trunk is None
    image = noise(96, 128)
    features = model.encode_image(image)
    assert features.pixels.embedding.shape == (1, 16, 24, 32)
    assert features.tokens.maps == ()  # read, and kept by nobody
    features.pixels.embedding.square().mean().backward()
    reached = [n for n, p in model.vlm.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(reached) > 5
    assert not [n for n in reached if "language_model" in n]
    packed = processor.pack([["the red mug", "a dog"]]).tensors()
    with quiet_loading():
        model.eval().save_pretrained(tmp_path)
        again = VLSegModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        before, after = (m(pixel_values=image, **packed).mask_logits for m in (model, again))
        moved = model(pixel_values=torch.roll(image, 64, -1), **packed).mask_logits
    assert (before - moved).abs().max() > 1e-3
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_the_language_models_maps_lie_where_they_belong(specimen):
    """Row and column survive: a bright corner of the image is bright in the same corner of the maps."""
    model, _ = with_vlm_features(specimen, "qwen3-vl", levels=[0])
    plain, bright = torch.zeros(1, 3, 96, 128), torch.zeros(1, 3, 96, 128)
    bright[..., :32, 96:] = 3.0
    with torch.no_grad():
        maps = [model.family.encode(model.vlm, x, (0,)).maps for x in (plain, bright)]
        grids = [model.pixel_encoder.features(plain, m)[0] for m in maps]
    change = (grids[1] - grids[0]).abs().sum(1)[0]
    expected = F.interpolate(bright, size=change.shape, mode="area")[0, 0] > 0
    assert torch.equal(change > 1e-3, expected)


def test_the_tower_of_fast_vlm_gives_its_last_map():
    model, processor = model_with({"kind": "vlm"})
    assert model.pixel_encoder.levels == (-1,)
    out = model(pixel_values=noise(96, 128), **processor.pack([["the red dog"]]).tensors())
    assert out.mask_logits.shape == (1, 1, 48, 64)
