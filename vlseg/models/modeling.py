"""`VLSegModel`: a vision-language model and a CLIP-style pixel encoder; K packed queries in, K masks out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vlseg.models.configuration import VLSegConfig
from vlseg.models.families import family_of
from vlseg.models.mask_head import MaskHead
from vlseg.models.packing import additive_mask, visibility
from vlseg.models.pixel_decoder import FourierPosition, PixelDecoder, PixelFeatures
from vlseg.models.pixel_encoder import build_pixel_encoder


@dataclass(slots=True)
class ImageFeatures:
    """All that depends on the image alone: encoded once, shared by every query. tokens: the VLM's own output object."""

    tokens: Any
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


class VLSegModel(PreTrainedModel):
    """The native model. See `VLSegConfig` for its parts; `VLSegProcessor` makes its inputs."""

    config_class = VLSegConfig
    config: VLSegConfig
    base_model_prefix = "vlseg"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: VLSegConfig):
        super().__init__(config)
        self.family = family_of(config)
        self.vlm = AutoModelForImageTextToText.from_config(config.vlm)
        for module in self.family.idle(self.vlm):
            module.requires_grad_(False)
        hidden = config.vlm.get_text_config().hidden_size
        self.pixel_encoder = build_pixel_encoder(config.pixel_encoder)
        self.pixel_decoder = PixelDecoder(self.pixel_encoder.channels, self.pixel_encoder.strides, config.head)
        self.mask_head = MaskHead(hidden, config.head)
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

    def encode_image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """pixel_values: (B, 3, H, W) float, normalised. The part of a call that all queries of an image share."""
        tokens = self.family.image_features(self.vlm, pixel_values)
        token_nouns = None
        rows, columns = self.family.grid(tokens)
        if self.prefix_position is not None:
            place = self.prefix_position(rows, columns).flatten(1).t()
            tokens.pooler_output = tokens.pooler_output + place.to(tokens.pooler_output.dtype)
        if self.token_noun is not None:
            nouns = F.normalize(self.token_noun(tokens.pooler_output).float(), dim=-1)
            token_nouns = nouns.transpose(1, 2).unflatten(2, (rows, columns))
        pixels = self.pixel_decoder(pixel_values, self.pixel_encoder(pixel_values))
        return ImageFeatures(tokens, pixels, token_nouns)

    def read_queries(
        self,
        image: ImageFeatures,
        query_ids: torch.Tensor,
        query_owner: torch.Tensor,
        query_offset: torch.Tensor,
        query_answers: torch.Tensor,
    ) -> torch.Tensor:
        """Run the language model on [image][query 1]..[query K]; returns (B, K, hidden) the answering states."""
        batch, n = query_ids.shape[0], image.tokens.pooler_output.shape[1]
        prefix = self.family.prefix_ids(n).to(query_ids.device)
        p = len(prefix)
        owner = torch.cat([query_owner.new_zeros(batch, p), query_owner], 1)
        visible = visibility(owner, self.family.block(p, query_owner))
        device = query_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        states = self.vlm.model(
            input_ids=torch.cat([prefix.expand(batch, -1), query_ids], 1),
            attention_mask=additive_mask(visible, dtype),
            position_ids=self.family.positions(p, query_offset),
            mm_encoder_outputs={"image": image.tokens},
            use_cache=False,
        ).last_hidden_state
        index = (query_answers + p)[..., None].expand(-1, -1, states.shape[-1])
        return states.gather(1, index)

    def forward(
        self,
        query_ids: torch.Tensor,
        query_owner: torch.Tensor,
        query_offset: torch.Tensor,
        query_answers: torch.Tensor,
        query_valid: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: ImageFeatures | None = None,
        return_dict: bool = True,
    ) -> VLSegOutput:
        """One pass for B images and their packed queries (see `Packed` for the query tensors).

        Give either pixel_values (B, 3, H, W) or the image_features of an earlier `encode_image`. Slots of `query_valid`
        that are False hold no query; their outputs mean nothing.
        """
        del query_valid, return_dict  # part of a batch; nothing here depends on them
        if (pixel_values is None) == (image_features is None):
            raise ValueError("give either pixel_values or image_features")
        image = self.encode_image(pixel_values) if image_features is None else image_features  # type: ignore[arg-type]
        states = self.read_queries(image, query_ids, query_owner, query_offset, query_answers)
        token_logits = self.vlm.get_output_embeddings()(states).float()
        masks = self.mask_head(states, image.pixels)
        evidence = token_logits[..., self.config.seg_token_id] - token_logits[..., self.config.rej_token_id]
        if masks.presence is not None:
            evidence = evidence + masks.presence
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
        )
