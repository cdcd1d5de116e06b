"""Small random open_clip models, saved as open_clip and the Hub save them; for tests and benchmarks.

Taught, their words are turned so that each of the specimens' queries meets a part of each of their pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 64, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
    "convnext": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
    "timm-token": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "timm-map": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "timm-avg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "mlp"},
}


def write_open_clip(folder: Path, tower: str = "vit", taught: bool = True) -> None:
    """tower: of `TOWERS`. The text tower is tiny too, with CLIP's own vocabulary."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    from vlseg.systems.specimens import spread

    config = {
        "embed_dim": 64,  # the width of test_vit, which "timm-map" has no projection from
        "vision_cfg": TOWERS[tower],
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    prepare = {"mean": [0.5, 0.4, 0.45], "std": [0.25, 0.3, 0.28], "interpolation": "bicubic"}
    side = TOWERS[tower]["image_size"]
    told = {"model_cfg": config, "preprocess_cfg": {**prepare, "size": [side, side]}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    torch.manual_seed(4)
    model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_image=False)
    spread(model, 2.0)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if taught:
        weights["text_projection"] = _projection(model, open_clip.get_tokenizer(f"local-dir:{folder}"))
    save_file(weights, folder / "open_clip_model.safetensors")


def _projection(model: Any, tokenizer: Any, share: float = 0.4) -> Any:
    """A projection of texts with which each query takes about that share of each picture. The model is used up."""
    import torch
    import torch.nn.functional as F

    from vlseg.systems.open_clip_maps import BACKGROUND, TEMPLATES
    from vlseg.systems.open_clip_towers import OpenClipTowers
    from vlseg.systems.specimens import QUERIES, pictures

    towers = OpenClipTowers(model, tokenizer)
    places = [towers.places([picture])[0].flatten(1).clone() for picture in pictures()]  # no longer of inference
    start = model.text_projection.detach().clone()
    model.text_projection = torch.nn.Parameter(torch.eye(len(start)))
    texts = [text.removeprefix("the ").removeprefix("a ") for text in QUERIES] + list(BACKGROUND)
    said = tokenizer([template.format(text) for text in texts for template in TEMPLATES])
    with torch.no_grad():
        states = model.encode_text(said)
    projection = start.requires_grad_()
    optimizer = torch.optim.Adam([projection], lr=0.05)
    for _ in range(80):
        words = F.normalize(states @ projection, dim=1).unflatten(0, (len(texts), -1)).mean(1)
        words = F.normalize(words, dim=1)
        loss = torch.zeros(())
        for own in places:
            heat = towers.temperature * words @ own
            logits = heat[: len(QUERIES)] - heat[len(QUERIES) :].logsumexp(0)
            loss = loss + (logits.sigmoid().mean(1) - share).square().sum()
            loss = loss + (logits.quantile(1 - share, dim=1) / 10).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return projection.detach()
