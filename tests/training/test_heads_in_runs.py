"""Heads and pixel encoders by configuration, in a run of training."""

import pytest
from test_training import tiny

from vlseg.models.heads.eomt import EomtHead
from vlseg.models.modeling import VLSegModel
from vlseg.training.loop import Trainer, train
from vlseg.training.warmup import NounTower, copy_tower
from vlseg.types import VLSegError


def test_a_run_with_another_head_and_encoder(tmp_path, monkeypatch):
    """The head hears how far the run is, and what was asked for is in the checkpoint."""
    heard = []
    monkeypatch.setattr(EomtHead, "prepare", note(heard, EomtHead.prepare))
    vit = {"kind": "open_clip", "vision_cfg": {"timm_model_name": "test_vit"}}
    head = {"kind": "eomt", "blocks": 2, "fusion": "rca", "slots": 2}
    model = {"preset": "tiny", "head": head, "build": {"pixel_encoder": vit}}
    train(tiny(tmp_path, steps=4, model=model, loss={"target_form": "ours", "stray": 0.3}))
    assert heard[:4] == [0.0, 0.25, 0.5, 0.75]
    final = VLSegModel.from_pretrained(tmp_path / "final")
    assert isinstance(final.mask_head, EomtHead)
    assert {key: final.config.head[key] for key in head} == head
    assert final.pixel_encoder.pyramid is not None


def note(heard, plain):
    def prepare(self, pixels):
        if self.training:
            heard.append(self.progress)
        return plain(self, pixels)

    return prepare


@pytest.mark.parametrize(
    ("head", "message"), [({"kindd": "eomt"}, "did you mean head.kind"), ({"kind": "unet"}, "known: dot, eomt, sam")]
)
def test_a_wrong_head_stops_the_run_in_one_line(tmp_path, head, message):
    with pytest.raises(VLSegError, match=message):
        Trainer(tiny(tmp_path, model={"preset": "tiny", "head": head}))


def test_a_model_without_a_pixel_encoder_of_its_own_is_not_warmed_up(tmp_path):
    model = {"preset": "tiny", "build": {"pixel_encoder": {"kind": "vlm"}}}
    trainer = Trainer(tiny(tmp_path, model=model))
    assert copy_tower(trainer.core) == 0
    with pytest.raises(VLSegError, match="no pixel encoder of its own"):
        NounTower(trainer.core)
