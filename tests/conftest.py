"""A tiny random checkpoint, made offline, that answers by chance but in earnest: masks of 5-95 %, found and absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if TYPE_CHECKING:
    from vlseg.segmenter import Segmenter

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is there: processes share the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# How long one example takes depends on what else the machine does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

WORDS = ["the", "red", "blue", "green", "big", "small", "dog", "cat", "mug", "left", "right", "of", "a"]
QUERIES = ["the red dog", "blue cat", "the mug left of the dog", "green", "the big cat"]


def blocks(seed: int = 0, height: int = 120, width: int = 160) -> Image.Image:
    """A picture of 6 x 8 blocks of random colours, RGB."""
    colours = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def queries() -> list[str]:
    """Five queries that differ in mask and presence."""
    return list(QUERIES)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the tiny preset with random weights. Treat it as read-only."""
    import torch

    from vlseg.models.presets import build_preset
    from vlseg.systems.quiet import quiet_loading

    folder = tmp_path_factory.mktemp("tiny")
    model, processor = build_preset("tiny", WORDS, nouns=10, seed=0)
    with torch.no_grad():  # else every query gives nearly the same empty mask, and any mix-up goes unseen
        model.vlm.model.language_model.embed_tokens.weight.mul_(50)
        for name, weight in model.vlm.model.language_model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.mul_(10)
        model.mask_head.to_mask[2].weight.mul_(8)
        # centred, so that half of the pixels are inside and three of the five queries are found
        model.eval()
        outputs = [model(**processor([blocks(seed)], [QUERIES])) for seed in range(4)]
        model.mask_head.bias.bias.sub_(torch.cat([o.mask_logits.flatten() for o in outputs]).median())
        evidence = torch.cat([o.evidence for o in outputs]).mean(0).sort().values
        model.config.presence = {"threshold": 0.5, "scale": 1.0, "bias": -float(evidence[1:3].mean())}
    with quiet_loading():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def segmenter(tiny_folder: Path) -> Segmenter:
    """A Segmenter of the tiny checkpoint on the CPU."""
    from vlseg.segmenter import Segmenter

    return Segmenter(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def picture():
    """picture(seed, height, width): blocks of colour, RGB."""

    return blocks


@pytest.fixture(scope="session")
def assert_foreground():
    """Asserts that every found mask has 5-95 % foreground and that one is found: else empty equals empty."""

    def check(answers) -> None:
        shares = [answer.mask.mean() for answer in answers if answer.status == "found"]
        assert shares
        assert all(0.05 <= share <= 0.95 for share in shares), shares

    return check
