"""Random checkpoints of every family on disk, and native models built on them."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlseg.models.build import from_vlm
from vlseg.models.modeling import VLSegModel
from vlseg.models.processing import VLSegProcessor
from vlseg.models.specimens import write_specimen
from vlseg.systems.quiet import quiet_loading

ENCODER = {
    "kind": "open_clip",
    "embed_dim": 64,
    "vision_cfg": {
        "timm_model_name": "test_convnext",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "",
        "image_size": 64,
    },
}
HEAD = {"dim": 32, "embed_dim": 16, "detail_dim": 8, "layers": 2, "noun_dim": 16}
QUERIES = ["the red mug", "dog left of the tree", "zebra", "the second chair from the right which is white", "a cat"]

Pair = tuple[VLSegModel, VLSegProcessor]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Five queries of different lengths."""
    return list(QUERIES)


@pytest.fixture(scope="session")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """specimen(name): the folder of a random checkpoint of that family; read-only."""
    root = tmp_path_factory.mktemp("specimens")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            with quiet_loading():
                write_specimen(name, root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def build(specimen: Callable[[str], Path], picture: Any, texts: list[str]) -> Callable[..., Pair]:
    """build(name, **image settings): a native model on it whose masks have 5-95 % foreground, and its processor."""

    def pair(name: str, **image: Any) -> Pair:
        torch.manual_seed(1)
        with quiet_loading():
            model, processor = from_vlm(
                specimen(name), pixel_encoder=ENCODER, head=HEAD, image={"area": 96 * 128, **image}
            )
        with torch.no_grad():
            model.mask_head.to_mask[-1].weight.mul_(40)
            logits = model(**processor([picture()], [texts])).mask_logits
            model.mask_head.bias.bias.sub_(logits.median())
        return model, processor

    return pair


@pytest.fixture(scope="session")
def folder_of(build: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """folder_of(name): `build(name)`, saved; read-only."""
    root = tmp_path_factory.mktemp("built")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            model, processor = build(name)
            with quiet_loading():
                model.save_pretrained(root / name)
                processor.save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def load(folder_of: Callable[[str], Path]) -> Callable[..., Pair]:
    """load(name, attention="sdpa"): that folder, loaded; shared, so leave model and processor as they are."""

    @functools.cache
    def pair(name: str, attention: str = "sdpa") -> Pair:
        with quiet_loading():
            model = VLSegModel.from_pretrained(folder_of(name), attn_implementation=attention).eval()
        return model, VLSegProcessor.from_pretrained(folder_of(name))

    return pair


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach a network fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
