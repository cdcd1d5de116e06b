"""`VLSegModel`: a vision-language model and a CLIP-style pixel encoder; K packed queries in, K masks out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText, DynamicCache, PreTrainedModel

from vlseg.models.configuration import VLSegConfig
from vlseg.models.families import ImageTokens, family_of
from vlseg.models.grammar import PathGrammar, path_grammar
from vlseg.models.grouping import Groups
from vlseg.models.heads import build_mask_head
from vlseg.models.heads.fusion import Fused
from vlseg.models.heads.slots import Slots
from vlseg.models.hub import push, write_card
from vlseg.models.mask_head import MaskHead
from vlseg.models.packing import PADDING, additive_mask, visibility
from vlseg.models.pixel_decoder import FourierPosition, PixelDecoder, PixelFeatures
from vlseg.models.pixel_encoder import build_pixel_encoder
from vlseg.models.precision import QUANTISED, quantisation, settle

if TYPE_CHECKING:
    from vlseg.models.processing import VLSegProcessor


@dataclass(slots=True)
class ImageFeatures:
    """All that depends on the image alone: encoded once, shared by every query."""

    tokens: ImageTokens
    pixels: PixelFeatures
    token_nouns: torch.Tensor | None = None


@dataclass(slots=True)
class VLSegOutput:
    """What `VLSegModel` gives for B images of K queries.

    mask_logits: (B, K, h, w) float32 at stride 2 (4 without the detail step); a pixel is foreground where > 0.
    coarse_logits: one (B, K, H/4, W/4) per stage of the head, coarsest first; for deep supervision.
    token_logits: (B, K, V) float32, logits of the state that predicts [SEG] or [REJ].
    evidence: (B, K) float32, logit[SEG] - logit[REJ], and what the mask head adds to it where `head.presence` is on.
    query_embedding: (B, K, E); pixel_embedding: (B, E, H/4, W/4); what the mask is a dot product of.
    query_nouns (B, K, N), pixel_nouns (B, N, H/8, W/8), token_nouns (B, N, rows, columns): unit vectors, or None.
    noun_prototypes: (nouns + 1, N), the last one of the background, or None.
    slots: masks and scores of an answer's segments where `head.slots` > 1, whose union `mask_logits` is; or None.
    query_state (B, K, D), levels (B, D, h, w) coarse to fine, fused: what the head began with; the target-aware loss
        looks at them.
    ground_logits: (B, K, rows, columns) float32, with `head.ground`: scores of the language model's image tokens, whose
        softmax says where a query points; or None.
    groups: with `head.group`: which pixels belong to one thing; or None.
    path_logits: (n, V) float32, one row for each of the n places of the row where `path_targets` is not -1, in its
        order: logits of the path tokens, -inf where the grammar allows none; or None.
    """

    mask_logits: torch.Tensor
    coarse_logits: list[torch.Tensor]
    token_logits: torch.Tensor
    evidence: torch.Tensor
    query_embedding: torch.Tensor
    pixel_embedding: torch.Tensor
    query_nouns: torch.Tensor | None = None
    pixel_nouns: torch.Tensor | None = None
    token_nouns: torch.Tensor | None = None
    noun_prototypes: torch.Tensor | None = None
    slots: Slots | None = None
    query_state: torch.Tensor | None = None
    levels: list[torch.Tensor] = field(default_factory=list)
    fused: Fused | None = None
    ground_logits: torch.Tensor | None = None
    groups: Groups | None = None
    path_logits: torch.Tensor | None = None


class VLSegModel(PreTrainedModel):
    """The native model. See `VLSegConfig` for its parts; `VLSegProcessor` makes its inputs."""

    config_class = VLSegConfig
    config: VLSegConfig
    base_model_prefix = "vlseg"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: VLSegConfig, vlm: PreTrainedModel | None = None):
        """vlm: the language model where it is at hand (see `models/build.py`); else one is made from `config.vlm`."""
        super().__init__(config)
        self.family = family_of(config)
        if vlm is None:
            asked = {"attn_implementation": "eager"} if config._attn_implementation == "eager" else {}
            dtype = torch.get_default_dtype()  # that of this load, whatever `config.vlm` was saved in
            vlm = AutoModelForImageTextToText.from_config(config.vlm, dtype=dtype, **asked)
        self.vlm: Any = vlm
        for module in self.family.idle(self.vlm):
            module.requires_grad_(False)
        hidden = config.vlm.get_text_config().hidden_size
        self.pixel_encoder = build_pixel_encoder(config)
        self.pixel_decoder = PixelDecoder(self.pixel_encoder.channels, self.pixel_encoder.strides, config.head)
        self.mask_head = build_mask_head(hidden, config.head, scales=2 + (32 in self.pixel_encoder.strides))
        self.prefix_position = FourierPosition(hidden) if config.prefix_position == "fourier" else None
        nouns, noun_dim = config.head["nouns"], config.head["noun_dim"]
        self.noun_prototypes = nn.Parameter(torch.randn(nouns + 1, noun_dim)) if nouns else None
        self.token_noun = nn.Linear(hidden, noun_dim) if nouns else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Every part initialises itself in its constructor (timm, open_clip, the VLM class, our heads); only buffers
        # that live outside the state dict (rotary frequencies) are rebuilt by transformers after a load.
        if "RotaryEmbedding" in type(module).__name__:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The token rows of the language model."""
        return self.vlm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The head of the language model."""
        return self.vlm.get_output_embeddings()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """As in transformers, from safetensors only. dtype may also be "int8" or "nf4" (see `models/precision.py`), for
        the language model's layers; all else is then of `compute_dtype` (default: bfloat16 on GPUs, else float32)."""
        options.setdefault("use_safetensors", True)
        kind, compute = options.get("dtype"), options.pop("compute_dtype", None)
        if kind in QUANTISED:
            default = torch.bfloat16 if torch.cuda.is_available() else torch.float32
            options["dtype"] = default if compute is None else compute
            options["quantization_config"] = quantisation(kind, options["dtype"])
        loaded = super().from_pretrained(name, *args, **options)
        settle(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, card_name: str | None = None, **options: Any) -> None:
        """As in transformers, with a model card (see `models/hub.py`)."""
        super().save_pretrained(save_directory, *args, **options)
        if options.get("is_main_process", True):
            write_card(self, save_directory, card_name)

    def push_to_hub(self, repo_id: str, *, processor: VLSegProcessor | None = None, **options: Any) -> str:  # type: ignore[override]
        """Upload as one commit, with its processor and card. options: see `vlseg.models.hub.push`."""
        return push(self, processor, repo_id, **options)

    def set_progress(self, progress: float) -> None:
        """Tell the mask head how far the training run is, 0..1 (mask annealing); 1, as a model starts: the end."""
        for module in self.modules():  # adapters may hold a copy of the head
            if isinstance(module, MaskHead):
                module.progress = progress

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """pixel_values: (B, 3, H, W) float, normalised. The part of a call that all queries of an image share."""
        tokens = self.family.encode(self.vlm, pixel_values, self.pixel_encoder.levels)
        token_nouns = None
        rows, columns = tokens.grid
        if self.prefix_position is not None:
            place = self.prefix_position(rows, columns).flatten(1).t()
            tokens.pooler_output = tokens.pooler_output + place.to(tokens.pooler_output.dtype)
        if self.token_noun is not None:
            nouns = F.normalize(self.token_noun(tokens.pooler_output).float(), dim=-1)
            token_nouns = nouns.transpose(1, 2).unflatten(2, (rows, columns))
        maps, tokens.maps = tokens.maps, ()  # nobody needs them again
        pixels = self.pixel_decoder(pixel_values, self.pixel_encoder(pixel_values, maps))
        return ImageFeatures(tokens, self.mask_head.prepare(pixels), token_nouns)

    def read_row(
        self,
        image: ImageFeatures,
        query_ids: torch.Tensor,
        query_owner: torch.Tensor,
        query_offset: torch.Tensor,
        path: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> torch.Tensor:
        """The states of the queries, (B, S, hidden); see `read`."""
        return self.read(image, query_ids, query_owner, query_offset, path, cache)[1]

    def read(
        self,
        image: ImageFeatures,
        query_ids: torch.Tensor,
        query_owner: torch.Tensor,
        query_offset: torch.Tensor,
        path: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the language model on [image][query 1]..[query K].

        Returns the states of the image tokens, (B, hidden, rows, columns), and those of the queries, (B, S, hidden).
        path: (B, S) bool, places that belong to a query's path: causal in every family. cache: filled with the row.
        """
        batch, prefix = query_ids.shape[0], self.family.prefix(image.tokens)
        p = len(prefix.ids)
        owner = torch.cat([query_owner.new_zeros(batch, p), query_owner], 1)
        blocks = self.family.block(p, query_owner if path is None else query_owner.masked_fill(path, PADDING))
        visible = visibility(owner, blocks)
        states = self.vlm.model(
            input_ids=torch.cat([prefix.ids.to(query_ids.device).expand(batch, -1), query_ids], 1),
            attention_mask=additive_mask(visible, self.attention_dtype(query_ids.device)),
            position_ids=self.family.positions(prefix, query_offset),
            mm_encoder_outputs=self.family.encoder_outputs(image.tokens),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        rows, columns = image.tokens.grid
        places = self.family.places(image.tokens, prefix)
        return states[:, places].transpose(1, 2).unflatten(2, (rows, columns)), states[:, p:]

    def read_queries(
        self,
        image: ImageFeatures,
        query_ids: torch.Tensor,
        query_owner: torch.Tensor,
        query_offset: torch.Tensor,
        query_answers: torch.Tensor,
    ) -> torch.Tensor:
        """`read_row`'s states that answer, (B, K, hidden)."""
        return answering(self.read_row(image, query_ids, query_owner, query_offset), query_answers)

    def attention_dtype(self, device: torch.device) -> torch.dtype:
        """The number type that an additive attention mask must have."""
        autocast = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if autocast else self.dtype

    def path_token_logits(self, states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) to (..., V) float32: logits of the path tokens alone, whatever the grammar allows."""
        grammar, first = self.path_grammar, self.config.paths["first"]
        return self.family.token_logits(self.vlm, states, slice(first, first + len(grammar)))

    @property
    def path_grammar(self) -> PathGrammar:
        """The grammar of the path tokens of a model with path mode."""
        paths = self.config.paths
        return path_grammar(paths["grid"], paths["box_bins"], paths["joint"], paths["curves"])

    def forward(
        self,
        query_ids: torch.Tensor,
        query_owner: torch.Tensor,
        query_offset: torch.Tensor,
        query_answers: torch.Tensor,
        query_valid: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: ImageFeatures | None = None,
        path_targets: torch.Tensor | None = None,
        path_states: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
        return_dict: bool = True,
    ) -> VLSegOutput:
        """One pass for B images and their packed queries (see `Packed` for the query tensors).

        Give either pixel_values (B, 3, H, W) or the image_features of an earlier `encode_image`. Slots of `query_valid`
        that are False hold no query; their outputs mean nothing. cache: gets the keys and values of the row, for paths
        to be written behind it (`models/path_decoding.py`).
        """
        del query_valid, return_dict  # part of a batch; nothing here depends on them
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give either pixel_values or image_features")
        image = self.encode_image(pixel_values) if image_features is None else image_features  # type: ignore[arg-type]
        path = None if path_targets is None else path_targets >= 0
        seen, row = self.read(image, query_ids, query_owner, query_offset, path, cache)
        states = answering(row, query_answers)
        token_logits = self.family.token_logits(self.vlm, states)
        masks = self.mask_head(states, image.pixels, seen)
        evidence = token_logits[..., self.config.seg_token_id] - token_logits[..., self.config.rej_token_id]
        if masks.presence is not None:
            evidence = evidence + masks.presence
        path_logits = None
        if path is not None and path_states is not None:
            path_logits = self.path_grammar.masked(self.path_token_logits(row[path]), path_states[path])
        return VLSegOutput(
            mask_logits=masks.logits,
            coarse_logits=masks.coarse,
            token_logits=token_logits,
            evidence=evidence,
            query_embedding=masks.embedding,
            pixel_embedding=image.pixels.embedding,
            query_nouns=masks.nouns,
            pixel_nouns=image.pixels.nouns,
            token_nouns=image.token_nouns,
            noun_prototypes=self.noun_prototypes,
            slots=masks.slots,
            query_state=masks.entered,
            levels=image.pixels.levels,
            fused=masks.fused,
            ground_logits=masks.ground,
            groups=image.pixels.groups,
            path_logits=path_logits,
        )


def answering(states: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Of states (B, S, hidden) those at answers (B, K), (B, K, hidden)."""
    return states.gather(1, answers[..., None].expand(-1, -1, states.shape[-1]))
