"""What the Hugging Face Hub and its users expect: auto classes, a model card, a push."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlseg.data.files import write_whole
from vlseg.models.configuration import VLSegConfig
from vlseg.types import VLSegError

if TYPE_CHECKING:
    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor

PROTOCOL = "native model, free-running; masks at the original size; calibrated score"
MARK = "<!-- written by vlseg; delete this line to keep your changes -->"

CARD = """---
library_name: vlseg
pipeline_tag: image-segmentation
tags: [vlseg, referring-segmentation, vision-language]
{base}---

{mark}

# {name}

Words in, masks out: a model of vlseg (`pip install vlseg`) for referring segmentation.

```python
from vlseg import Segmenter

result = Segmenter("{name}")("photo.jpg", ["the red mug", "the dog on the left"])
result[0].status, result[0].mask
```

| | |
|---|---|
{facts}

Protocol of its answers: {protocol}.

{training}
"""


def register_auto_classes() -> None:
    """Teach `AutoConfig`, `AutoModel` and `AutoProcessor` what a vlseg checkpoint is. Call it as often as you like.

    Importing vlseg does not do it, for `AutoProcessor` takes seconds to import.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor

    AutoConfig.register(VLSegConfig.model_type, VLSegConfig, exist_ok=True)
    AutoModel.register(VLSegConfig, VLSegModel, exist_ok=True)
    AutoProcessor.register(VLSegConfig, VLSegProcessor, exist_ok=True)


def model_card(model: VLSegModel, name: str) -> str:
    """The README of a checkpoint: what it is, how its answers come about, what is known of its training."""
    config = model.config
    presence, card = config.presence, dict(config.card)
    base = card.pop("base_model", None)
    public = base is not None and not Path(base).exists()  # a folder of this machine is nobody's base model
    encoder = config.pixel_encoder.get("vision_cfg", {}).get("timm_model_name") or config.pixel_encoder.get("kind")
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    facts = {
        "language model": f"`{type(model.vlm).__name__}`"
        + (f" from `{base if public else Path(base).name}`" if base else ""),
        "pixel encoder": f"`{encoder}`",
        "parameters": f"{parameters:.1f} M",
        "input": f"about {config.image['area']:,} pixels, sides in multiples of {config.image['multiple']}",
        "longest query": f"{config.query['max_tokens']} tokens",
    }
    known = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in card.items())
    training = f"## Training\n\n| | |\n|---|---|\n{known}" if known else "Nothing is recorded of its training."
    rule = f"found: score >= {presence['threshold']:g}; mask: p > 0.5 (logit > 0)"
    return CARD.format(
        base=f"base_model: {base}\n" if public else "",
        mark=MARK,
        name=name,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        protocol=f"{PROTOCOL}; {rule}",
        training=training,
    )


def write_card(model: VLSegModel, folder: str | Path, name: str | None = None) -> None:
    """Write the card, unless a README of someone's own is there."""
    path = Path(folder) / "README.md"
    if not path.exists() or MARK in path.read_text(encoding="utf-8"):
        write_whole(path, model_card(model, name or Path(folder).resolve().name))


def push(
    model: VLSegModel,
    processor: VLSegProcessor | None,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a vlseg model",
) -> str:
    """Upload model, processor and card as one commit; returns its address. Raises VLSegError where the Hub refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"card_name": repo_id}
        model.save_pretrained(folder, **options)
        if processor is not None:
            processor.save_pretrained(folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise VLSegError(f"{repo_id}: not pushed to the Hub ({reason})") from error
    return str(done)
