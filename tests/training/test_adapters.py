"""Adapters: where they go, that they learn and are saved whole, AdaLoRA's ranks, and what is refused in one line."""

import copy
import json
import warnings

import many_runs
import pytest
import torch
from many_runs import SMALL, recipe
from torch import nn

from vlseg.config import from_dict
from vlseg.models.build import from_vlm
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.training import merge
from vlseg.training.adalora import RankSchedule, heat_map
from vlseg.training.adapters import (
    GradientWatch,
    adalora_settings,
    attach,
    base_fingerprint,
    count_parameters,
    linear_layers,
    load_trained_state,
    place_of,
    token_rows,
    trained_state,
)
from vlseg.training.config import TrainConfig
from vlseg.training.refusals import refuse
from vlseg.types import VLSegError


@pytest.fixture(scope="module")
def sources(tiny_folder, vlm_folder, tmp_path_factory):
    """Checkpoint folders by name: "tied" has one matrix for embedding and head, "untied" two."""
    folder = tmp_path_factory.mktemp("untied")
    torch.manual_seed(0)
    model, processor = from_vlm(vlm_folder, image={"area": 4096}, **copy.deepcopy(SMALL))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {"tied": tiny_folder, "untied": folder}


def config(kind, **adapter):
    return from_dict(TrainConfig, {"steps": 10, "adapter": {"kind": kind, "rank": 2, "alpha": 4, "start_rank": 4,
                                   "every": 2, **adapter}})  # fmt: skip


def asked(folder, picture, queries):
    processor = VLSegProcessor.from_pretrained(folder)
    processor.image["area"] = 4096
    return processor([picture(1, 64, 64)], [queries])


def train(model, batch, steps=10, ranks=None):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    watch = GradientWatch(model, 4)
    rej = model.config.rej_token_id
    for step in range(1, steps + 1):
        output = model(**batch)
        loss = output.mask_logits.square().mean() - output.token_logits[..., rej].mean()
        if ranks:
            loss = loss + ranks.orthogonality()
        loss.backward()
        watch.look()
        optimizer.step()
        if ranks:
            ranks.step(step)
        optimizer.zero_grad()
    assert not watch.waiting
    model.eval()
    with torch.no_grad():
        return model(**batch)


def close(a, b, tolerance=2e-5):
    """Equal outputs, and masks of 5 to 95 % whose pixels agree: cut at the median, so that they are of that size."""
    level = a.mask_logits.median()
    assert 0.05 < (a.mask_logits > level).float().mean() < 0.95
    torch.testing.assert_close(a.mask_logits, b.mask_logits, atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(a.evidence, b.evidence, atol=10 * tolerance, rtol=1e-4)


BOTH = [("lora", "tied"), ("adalora", "untied")]
CROSSED = [("lora", "untied"), ("adalora", "tied")]


@pytest.mark.parametrize(("kind", "which"), [*BOTH, *(pytest.param(*c, marks=pytest.mark.slow) for c in CROSSED)])
def test_an_adapter_is_nothing_at_first_learns_and_reloads_merged_and_through_peft(
    sources, which, kind, picture, queries, tmp_path
):
    from peft import PeftModel

    folder = sources[which]
    batch = asked(folder, picture, queries)
    model = VLSegModel.from_pretrained(folder).eval()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(**batch)
    adapted = attach(model, config(kind)).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(**batch).mask_logits, before.mask_logits)
    adapted.train()
    ranks = RankSchedule(adapted) if kind == "adalora" else None
    after = train(adapted, batch, ranks=ranks)
    assert (after.mask_logits - before.mask_logits).abs().max() > 0.1
    state = merge.merged_state(adapted)
    merge.save_merged(adapted, state, VLSegProcessor.from_pretrained(folder), tmp_path / "final", torch.float32)
    merge.save_adapter(adapted, merge.adapter_state(adapted), tmp_path / "adapter")
    with torch.no_grad():
        close(after, merge.plain_model(adapted, state, torch.float32).eval()(**batch))
        close(after, VLSegModel.from_pretrained(tmp_path / "final").eval()(**batch))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            again = PeftModel.from_pretrained(VLSegModel.from_pretrained(folder), tmp_path / "adapter").eval()
        close(after, again(**batch))
    rows = state["vlm.lm_head.weight"] != start["vlm.lm_head.weight"]
    ids = sorted([model.config.seg_token_id, model.config.rej_token_id])
    assert rows.any(1).nonzero().flatten().tolist() == ids
    if which == "tied":
        assert state["vlm.lm_head.weight"] is state["vlm.model.language_model.embed_tokens.weight"]


def test_ranks_move_and_the_repacked_adapter_is_smaller_and_the_same(sources, picture, queries, tmp_path):
    folder = sources["untied"]
    batch = asked(folder, picture, queries)
    adapted = attach(VLSegModel.from_pretrained(folder), config("adalora"))
    ranks = RankSchedule(adapted)
    assert set(ranks.ranks()) == {4}
    train(adapted, batch, ranks=ranks)
    left = ranks.ranks()
    assert len(set(left)) > 1
    assert sum(left) <= 2 * len(left)
    budgets = [sum(r) for _, r in ranks.history]
    assert budgets == sorted(budgets, reverse=True)
    assert ranks.summary()["rank"] == pytest.approx(sum(left) / len(left), abs=1e-3)
    settings, tensors = merge.adapter_state(adapted)
    packed = {name: len(t) for name, t in tensors.items() if name.endswith("lora_A.weight")}
    assert sorted(packed.values()) == sorted(r for r in left if r)
    assert settings["rank_pattern"] == {n.split("base_model.model.")[1][: -len(".lora_A.weight")]: r
                                        for n, r in packed.items()}  # fmt: skip
    full = sum(p.numel() for n, p in adapted.named_parameters() if "lora_" in n)
    assert sum(t.numel() for n, t in tensors.items() if "lora_" in n) < 0.7 * full
    assert 0.05 < float(ranks.orthogonality().detach()) < 10
    picture_of_ranks = heat_map(ranks.names, ranks.history)
    assert picture_of_ranks[:4] == b"\x89PNG"


def test_rank_schedule_goes_on_where_it_was(sources, picture, queries):
    folder = sources["untied"]
    batch = asked(folder, picture, queries)

    def run(model, ranks, optimizer, steps):
        for step in steps:
            loss = model(**batch).mask_logits.square().mean() + ranks.orthogonality()
            loss.backward()
            optimizer.step()
            ranks.step(step)
            optimizer.zero_grad()

    def fresh():
        torch.manual_seed(0)
        model = attach(VLSegModel.from_pretrained(folder), config("adalora"))
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, RankSchedule(model), torch.optim.AdamW(trained, lr=1e-2)

    whole, first, second = fresh(), fresh(), fresh()
    run(*whole, range(1, 11))
    run(*first, range(1, 6))
    load_trained_state(second[0], {n: t.clone() for n, t in trained_state(first[0]).items()})
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    run(*second, range(6, 11))
    assert whole[1].history == second[1].history
    assert all(torch.equal(a, b) for a, b in zip(trained_state(whole[0]).values(), trained_state(second[0]).values(),
                                                 strict=True))  # fmt: skip


def test_places_and_layers(sources):
    model = VLSegModel.from_pretrained(sources["tied"])
    names = linear_layers(model, ["decoder", "vision", "pixel"])
    assert {place_of(name) for name in names} == {"decoder", "vision", "pixel"}
    assert "vlm.lm_head" not in names
    assert not any(name.startswith(("mask_head", "pixel_decoder")) for name in names)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and place_of(n) == "decoder"}
    assert set(linear_layers(model, ["decoder"])) == linear
    assert linear_layers(model, ["pixel"], without=["pixel_encoder"]) == []


def test_one_by_one_convolutions_count_as_linear(sources):
    model = VLSegModel.from_pretrained(sources["tied"])
    tower = model.pixel_encoder.trunk
    tower.extra = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3), nn.Conv2d(8, 8, 1, groups=8)])
    assert [n for n in linear_layers(model, ["pixel"]) if "extra" in n] == ["pixel_encoder.trunk.extra.0"]


def test_what_is_trained(sources):
    adapted = attach(
        VLSegModel.from_pretrained(sources["tied"]), config("lora", where=["decoder"]), new=["pixel_encoder"]
    )
    counts = count_parameters(adapted)
    assert counts["pixel_encoder"][0] == counts["pixel_encoder"][1] > 0  # random weights are trained whole
    assert counts["mask_head"][0] == counts["mask_head"][1] > 0
    assert 0 < counts["decoder"][0] < counts["decoder"][1]
    assert counts["vision tower"][0] == 0
    assert counts["token rows"][0] == 2 * 32
    assert all(p.dtype == torch.float32 for p in adapted.parameters() if p.requires_grad)


def test_token_rows_stand_for_head_and_embedding(sources):
    tied, untied = (VLSegModel.from_pretrained(sources[name]) for name in ("tied", "untied"))
    assert list(token_rows(tied)) == ["vlm.lm_head"]
    assert set(token_rows(untied)) == {"vlm.lm_head", "vlm.model.language_model.embed_tokens"}


def test_a_lost_token_row_is_loud(sources, tmp_path):
    adapted = attach(VLSegModel.from_pretrained(sources["tied"]), config("lora"))
    settings, tensors = merge.adapter_state(adapted)
    lost = {name: t for name, t in tensors.items() if "token_adapter" not in name}
    with pytest.raises(VLSegError, match=r"trained rows of vlm\.lm_head are not in the adapter"):
        merge.save_adapter(adapted, (settings, lost), tmp_path)


def test_adapters_that_never_train_stop_the_run(sources, picture, queries):
    adapted = attach(VLSegModel.from_pretrained(sources["untied"]), config("lora"))
    batch = asked(sources["untied"], picture, queries)
    watch = GradientWatch(adapted, 2)
    adapted(**batch).pixel_embedding.sum().backward()  # reaches no decoder
    watch.look()
    with pytest.raises(VLSegError, match=r"adapter weights have had no gradient in 2 steps .*visual.*leave_out"):
        watch.look()
    short = GradientWatch(adapted, 20)  # of a run that ends before patience does
    short.look()
    short.conclude()
    short.look()
    with pytest.raises(VLSegError, match="adapter weights have had no gradient in 2 steps"):
        short.conclude()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"whole": ["mask_haed"]}, "no part 'mask_haed'; it has .*mask_head"),
        ({"leave_out": ["vlm", "pixel"]}, "no linear layer of decoder, vision, pixel is left"),
        ({"kind": "adalora", "every": 99}, "leave no time to prune"),
        ({"kind": "adalora", "every": 1, "grow": 0.0, "settle": 0.9}, "10 steps leave no time to prune"),
    ],
)
def test_what_cannot_be_adapted_is_said(sources, adapter, message):
    with pytest.raises(VLSegError, match=message):
        attach(VLSegModel.from_pretrained(sources["tied"]), config(**{"kind": "lora", **adapter}))


def test_the_schedule_of_adalora_is_one_of_shares():
    section = config("adalora", grow=0.1, settle=0.3).adapter
    made = adalora_settings(section, 1000)
    assert (made["tinit"], made["tfinal"], made["total_step"]) == (100, 300, 1000)


@pytest.mark.parametrize("tree", [{"kind": "adalora", "rank": 8, "start_rank": 8}, {"rank": 0}, {"settle": 0.95}])
def test_settings_that_cannot_work(tree):
    with pytest.raises(VLSegError, match="adapter"):
        from_dict(TrainConfig, {"adapter": tree})


REFUSED = [
    ({"model": {"base": "nf4"}, "adapter": "lora"}, "zero3", "quantised weights cannot be sharded"),
    ({"model": {"base": "nf4"}, "adapter": "lora"}, "fsdp2", "quantised weights cannot be sharded"),
    ({"model": {"base": "nf4"}}, "none", "is for frozen weights"),
    ({"model": {"base": "bfloat16"}, "adapter": "lora", "mixed_precision": "no"}, "none", "needs mixed_precision=bf16"),
    ({"adapter": "adalora"}, "fsdp2", "pruning needs every gradient whole"),
    ({"adapter": "adalora"}, "zero2", "pruning needs every gradient whole"),
    ({"optim": {"matrix_lr": 0.01}}, "fsdp2", "Muon needs whole matrices"),
    ({"optim": {"matrix_lr": 0.01}}, "zero3", "Muon needs whole matrices"),
    ({"optim": {"ema": 0.9}}, "zero2", "set optim.ema=0"),
    ({"warmup": {"steps": 5}}, "fsdp2", "warm the towers up"),
    ({"qat": "int4", "adapter": "adalora"}, "none", "prune first, then round"),
    ({"qat": "int4", "adapter": "lora", "model": {"base": "nf4"}}, "none", "rounded already"),
    ({"qat": "int4", "adapter": "lora", "optim": {"ema": 0}}, "fsdp2", "must be whole"),
]


@pytest.mark.parametrize(("tree", "sharding", "message"), REFUSED, ids=[r[2] + " " + r[1] for r in REFUSED])
def test_what_fails_silently_elsewhere_is_refused_in_one_line(tree, sharding, message):
    with pytest.raises(VLSegError, match=message) as told:
        refuse(from_dict(TrainConfig, tree), sharding)
    assert "\n" not in str(told.value)


def test_what_works_is_not_refused():
    for sharding in ("none", "fsdp2", "zero2", "zero3"):
        refuse(from_dict(TrainConfig, {"adapter": "lora", "optim": {"ema": 0}}), sharding)
        refuse(from_dict(TrainConfig, {"optim": {"ema": 0}}), sharding)
    refuse(from_dict(TrainConfig, {"model": {"base": "nf4"}, "adapter": "lora", "optim": {"ema": 0}}), "zero2")


def test_the_adapter_folder_is_plain_lora(sources, tmp_path):
    adapted = attach(VLSegModel.from_pretrained(sources["tied"]), config("adalora"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_E" in name:
                parameter.fill_(0.5)
    merge.save_adapter(adapted, merge.adapter_state(adapted), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA"
    assert written["inference_mode"]


def test_a_watch_that_is_resumed_has_seen_what_it_has_seen():
    """AdaLoRA may prune all of a layer, whose factors then have no gradient; a resumed run must not mind."""
    model = nn.ModuleDict({"lora_A": nn.Linear(2, 2, bias=False), "lora_B": nn.Linear(2, 2, bias=False)})
    watch = GradientWatch(model, 3)
    for weight in model.parameters():
        weight.grad = torch.ones(2, 2)
    watch.look()
    kept = json.loads(json.dumps(watch.state_dict()))
    assert kept == {"steps": 1, "waiting": []}
    model.zero_grad()
    resumed, anew = GradientWatch(model, 3), GradientWatch(model, 3)
    resumed.load_state_dict(kept)
    for _ in range(4):
        resumed.look()
    with pytest.raises(VLSegError, match="2 adapter weights have had no gradient in 3 steps"):
        [anew.look() for _ in range(3)]


def test_a_rank_that_holds_nothing_takes_part(sources):
    adapted = attach(VLSegModel.from_pretrained(sources["tied"]), config("lora"))
    assert merge.merged_state(adapted, held=False) == {}
    state = merge.merged_state(adapted)
    assert len(state) > 100
    halves = {p.dtype for p in merge.plain_model(adapted, state, torch.bfloat16).parameters()}
    assert halves == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"missing_keys.*mask_head"):
        merge.plain_model(adapted, {k: v for k, v in state.items() if "mask_head" not in k}, torch.float32)


def test_a_run_on_an_int8_base(sources, blocks_jsonl, tmp_path):
    """Trains, is resumed, and is not taken up on a base of other weights."""
    settings = recipe("lora", tmp_path, sources["tied"], blocks_jsonl, "model.base=int8", "steps=2")
    many_runs.fresh_state()
    told = many_runs.train_in_two_goes(settings, stop=1)
    assert told["begins"] == [0, 1]
    model = VLSegModel.from_pretrained(sources["tied"], dtype="int8", compute_dtype=torch.float32)
    assert "torchao" in type(model.vlm.model.language_model.layers[0].mlp.up_proj.weight).__module__
    before = base_fingerprint(model.requires_grad_(False))
    weight = model.vlm.model.language_model.layers[0].mlp.up_proj.weight
    names = weight.__tensor_flatten__()[0]
    getattr(weight, names[0]).add_(1)
    assert base_fingerprint(model) != before
