"""`VLSegConfig`: everything that rebuilds a native model without a network."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

SEG_TOKEN, REJ_TOKEN = "[SEG]", "[REJ]"


class VLSegConfig(PretrainedConfig):
    """Configuration of `VLSegModel`.

    Args:
        vlm: the configuration of a Hugging Face image-text-to-text model (an object or its dict with `model_type`).
        pixel_encoder: `{"kind": "open_clip" | "hf" | "vlm", ...}`; see `models/pixel_encoder.py`.
        head: sizes of pixel decoder and mask head; see `MASK_HEAD` below for keys and defaults.
        seg_token_id, rej_token_id: ids of [SEG] and [REJ] in the VLM's vocabulary.
        prefix_position: "none", or "fourier": a learned projection of 2-D coordinates is added to the image tokens
            (for language models that see only 1-D positions and were not pretrained).
        image_attention: "causal", or "bidirectional": the image tokens see each other (see `models/packing.py`).
        image_positions: "sequential" as in pretraining, or "shared": all image tokens stand at position 0.
        prefix: token ids around the image, `{"before": [...], "after": [...], "tiles": {name: [...]}}`; "after" holds
            the instruction that all queries share.
        image: `{"mean": [3], "std": [3], "area": pixels, "multiple": int, "max_side": int, "split": bool}`: how a
            picture is resized, and whether families that can see tiles of it, too.
        query: `{"suffix": str, "max_tokens": int}`: text behind the user's words; longest query in tokens.
        presence: `{"threshold": p, "scale": a, "bias": b}`; score = sigmoid(a (logit[SEG] - logit[REJ]) + b).
        paths: `{"grid": int, "box_bins": int, "joint": bool, "curves": bool, "max_tokens": int, "first": id}`: the
            codec of path mode, the longest path, the id of the first path token (see `models/path_head.py`); {}: none.
        card: facts about the training that `save_pretrained` writes into the model card.
    """

    model_type = "vlseg"
    MASK_HEAD = {  # noqa: RUF012  (documented defaults, never changed in place)
        "dim": 96,  # channels of the pyramid and width of the mask queries
        "embed_dim": 64,  # pixel embedding at stride 4
        "detail_dim": 16,  # pixel embedding at stride 2; 0 switches the image-guided step off
        "layers": 3,  # decoder layers in which a query reads the pyramid (dot, sam)
        "heads": 4,
        "nouns": 0,  # prototypes of the dense noun contrast; 0: none
        "noun_dim": 64,
        "presence": False,  # the mask head has its say on whether there is a referent
        "presence_dim": 0,  # width in which that say also weighs the language model's states; 0: it does not
        "kind": "dot",  # how a query reads the pixels: dot, eomt, sam (see `models/heads`)
        "blocks": 4,  # of the ViT over the pyramid (eomt)
        "fusion": "none",  # or "rca": words and pixels meet before the head (see `models/heads/fusion.py`)
        "slots": 1,  # segments that an answer can have; 1: the mask is one segment
        "ground": 0,  # width in which queries point at the language model's image tokens; 0: they do not
        "group": 0,  # width in which pixels say with which others they go; 0: every pixel is decided by itself
    }

    def __init__(
        self,
        vlm: PretrainedConfig | dict[str, Any] | None = None,
        pixel_encoder: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        seg_token_id: int = 0,
        rej_token_id: int = 1,
        prefix_position: str = "none",
        image_attention: str = "causal",
        image_positions: str = "sequential",
        prefix: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        query: dict[str, Any] | None = None,
        presence: dict[str, float] | None = None,
        paths: dict[str, Any] | None = None,
        card: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if isinstance(vlm, dict):
            vlm = AutoConfig.for_model(**vlm)
        self.vlm: Any = vlm
        self.pixel_encoder = dict(pixel_encoder or {})
        self.head = {**self.MASK_HEAD, **(head or {})}
        self.seg_token_id, self.rej_token_id = seg_token_id, rej_token_id
        self.prefix_position = prefix_position
        self.image_attention = image_attention
        self.image_positions = image_positions
        self.prefix = {"before": [], "after": [], "tiles": {}, **(prefix or {})}
        standard = {"mean": [0.5] * 3, "std": [0.5] * 3, "area": 65536, "multiple": 32, "max_side": 1024}
        self.image = {**standard, **(image or {})}
        self.query = {"suffix": ":", "max_tokens": 64, **(query or {})}
        self.presence = {"threshold": 0.5, "scale": 1.0, "bias": 0.0, **(presence or {})}
        self.paths = dict(paths or {})
        self.card = dict(card or {})
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the VLM's configuration keeps its `model_type`, so that it is rebuilt as its own class."""
        data = super().to_dict()
        if self.vlm is not None:
            data["vlm"] = self.vlm.to_dict()
        return data
