"""The warm-up of the towers: it learns, resumes to the same bits, and hands its tower on."""

import json

import pytest
import torch

from vlseg.config import from_dict
from vlseg.training import warmup
from vlseg.training.config import TrainConfig
from vlseg.training.loop import Trainer
from vlseg.worlds.mosaic import mosaic


def config(out, steps=4):
    tree = {
        "out": str(out),
        "steps": 1,
        "log_every": 2,
        "save_every": 2,
        "threads": 1,
        "model": {"preset": "tiny"},
        "data": {"workers": 0},
        "warmup": {"steps": steps, "images": 2, "size": [64, 64]},
    }
    return from_dict(TrainConfig, tree)


def test_mosaic_is_crowded_exact_and_repeatable():
    image, ids, glyphs = mosaic(1, 2, (128, 160))
    again = mosaic(1, 2, (128, 160))
    assert (image == again[0]).all()
    assert (ids == again[1]).all()
    assert image.shape == (128, 160, 3)
    assert len(glyphs) >= 4
    assert ids.max() <= len(glyphs)
    assert 0.2 < (ids > 0).mean() < 0.95
    assert (mosaic(1, 3, (128, 160))[0] != image).any()


def test_warmup_moves_the_tower_and_copies_it(tmp_path):
    cold = Trainer(config(tmp_path / "cold", steps=0)).plain
    warm = Trainer(config(tmp_path / "warm")).plain
    lines = [json.loads(line) for line in (tmp_path / "warm" / "warmup.jsonl").read_text().splitlines()]
    assert [line["warmup_step"] for line in lines] == [2, 4]
    trunk, before = warm.pixel_encoder.trunk.state_dict(), cold.pixel_encoder.trunk.state_dict()
    assert any(not torch.equal(trunk[k], before[k]) for k in trunk)
    other = warm.family.tower(warm.vlm).state_dict()
    assert all(torch.equal(other[k], v) for k, v in trunk.items())
    assert all(p.requires_grad for p in warm.pixel_decoder.parameters())


def test_an_interrupted_warmup_reaches_the_same_bits(tmp_path, monkeypatch):
    whole = Trainer(config(tmp_path / "whole")).plain.state_dict()
    plain = warmup.save

    def save_then_stop(*args):
        plain(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(warmup, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(tmp_path / "cut"))
    monkeypatch.setattr(warmup, "save", plain)
    resumed = Trainer(config(tmp_path / "cut")).plain.state_dict()
    assert [k for k in whole if not torch.equal(whole[k], resumed[k])] == []


def test_cell_nouns():
    ids = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 2]]], dtype=torch.uint8)
    labels = warmup.cell_nouns(ids, torch.tensor([[7, 3]]), (1, 2), background=9)
    assert labels.tolist() == [[[7, -1]]]
