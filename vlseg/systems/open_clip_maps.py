"""`open_clip` activation maps: words to masks by an open_clip model alone, nothing trained for it.

Every patch is likened to the words of the query and to words for background (MaskCLIP, arXiv 2112.01071); see
`vlseg.systems.open_clip_towers` for the features. A query's answer does not depend on the other queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vlseg.systems.base import EncodedImage, SoftAnswer, check_queries
from vlseg.systems.class_names import ARTICLES, candidates
from vlseg.systems.foreign import ForeignSystem, TextCache, logit
from vlseg.systems.open_clip_towers import OpenClipTowers, load_open_clip
from vlseg.types import Answer

TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a photo of a scene with a {}.",
    "there is a {} in the picture.",
)
# What images consist of where no object is; a word that the query itself says is left out.
BACKGROUND = (
    "background", "sky", "cloud", "ground", "floor", "wall", "ceiling", "grass", "water", "road", "tree", "building",
)  # fmt: skip
CLUSTERS = 8
ROUNDS = 20


def open_system(
    places: Sequence[str | None], device: str | None, dtype: str | None, name: str, clusters: int = 0
) -> OpenClipMaps:
    """The factory of the preset: places = [folder or architecture, checkpoint or None]."""
    checkpoint = places[1] if len(places) > 1 else None
    return OpenClipMaps(load_open_clip(str(places[0]), checkpoint, device, dtype), name, clusters)


def open_clusters(places: Sequence[str | None], device: str | None, dtype: str | None, name: str) -> OpenClipMaps:
    """The factory of the preset with clusters."""
    return open_system(places, device, dtype, name, CLUSTERS)


class OpenClipMaps(ForeignSystem):
    """An open_clip model as a `System`: one mask a query, one segment.

    A patch's logit is that of the query in the softmax, at the model's own temperature, over the query and the
    background words. clusters: 0: each patch for itself; else patches of an image are put into so many clusters by
    k-means, and all patches of a cluster have its mean logit: coarser, with the borders of what looks alike.
    """

    def __init__(
        self,
        towers: OpenClipTowers,
        name: str = "open_clip",
        clusters: int = 0,
        templates: Sequence[str] = TEMPLATES,
        background: Sequence[str] = BACKGROUND,
    ):
        super().__init__(name)
        self.towers, self.clusters = towers, clusters
        self.templates, self.background = tuple(templates), tuple(background)
        self.texts = TextCache(self._text_features)
        self.protocol = (
            f"open_clip activation maps, training-free; patches against {len(self.background)} background words"
            f"{f', voted in {clusters} clusters' if clusters else ''}; score: highest probability of a "
            f"{'cluster' if clusters else 'patch'}, uncalibrated; mask: bilinear logits; relations are not read"
        )

    def _encode(self, images: list[Image.Image]) -> list[dict[str, torch.Tensor]]:
        """Per image "places" ``(D, h, w)`` and, where there are clusters, "labels" ``(h, w)`` int64."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault(self.towers.input_size(image), []).append(i)
        made: dict[int, dict[str, torch.Tensor]] = {}
        for members in sizes.values():
            for i, own in zip(members, self.towers.places([images[i] for i in members]), strict=True):
                made[i] = {"places": own.clone(memory_format=torch.contiguous_format)}
                if self.clusters:
                    points = own.flatten(1).t()
                    made[i]["labels"] = k_means(points, self.clusters).view(own.shape[1:])
        return [made[i] for i in range(len(images))]

    def _text_features(self, texts: list[str]) -> list[torch.Tensor]:
        """One ``(D,)`` unit vector a text: the mean over the templates. All texts and templates in one batch."""
        said = [template.format(_bare(text)) for text in texts for template in self.templates]
        words = self.towers.words(said).unflatten(0, (len(texts), len(self.templates)))
        return list(F.normalize(words.mean(1), dim=-1))

    def _soft(self, encoded: EncodedImage, texts: Sequence[str]) -> list[SoftAnswer]:
        words = self.texts([*self.background, *texts])
        background, asked = torch.stack(words[: len(self.background)]), torch.stack(words[len(self.background) :])
        places = encoded.features["places"].to(asked.device)
        heat = self.towers.temperature
        queries = heat * torch.einsum("kd,dhw->khw", asked, places)
        against = heat * torch.einsum("nd,dhw->nhw", background, places)
        answers = []
        for text, own in zip(texts, queries, strict=True):
            said = set(candidates(text))
            rivals = [n for n, word in enumerate(self.background) if word not in said]
            logits = own - against[rivals].logsumexp(0) if rivals else own
            if self.clusters:
                logits = _voted(logits, encoded.features["labels"].to(logits.device))
            answers.append(SoftAnswer(text, float(logits.max().sigmoid()), partial(_mask, logits)))
        return answers

    @torch.inference_mode()
    def soft_answers(self, image: Image.Image | EncodedImage, queries: Sequence[str]) -> list[SoftAnswer]:
        """See `SoftSystem.soft_answers`."""
        return self._soft(self._encoded([image])[0], check_queries(queries))

    def _answer(
        self, encoded: list[EncodedImage], texts: list[list[str]], threshold: float, mask_threshold: float
    ) -> list[list[Answer]]:
        self.texts([text for row in texts for text in row])  # those of all images in one batch
        return [
            [answer.at(image.size, threshold, mask_threshold) for answer in self._soft(image, row)]
            for image, row in zip(encoded, texts, strict=True)
        ]


def k_means(points: torch.Tensor, clusters: int, rounds: int = ROUNDS) -> torch.Tensor:
    """The cluster, int64 in 0..clusters - 1, of each of N unit vectors ``(N, D)``, by Lloyd's rounds on their cosines.

    Without chance: the first centre is the point farthest from the mean, each further one the point farthest from all.
    """
    points = points.float()
    centres = points[(points @ points.mean(0)).argmin()][None]
    while len(centres) < min(clusters, len(points)):
        centres = torch.cat([centres, points[(points @ centres.t()).amax(1).argmin()][None]])
    labels = (points @ centres.t()).argmax(1)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        filled = torch.bincount(labels, minlength=len(centres)) > 0
        centres = torch.where(filled[:, None], F.normalize(sums, dim=1), centres)
        before, labels = labels, (points @ centres.t()).argmax(1)
        if torch.equal(before, labels):
            break
    return labels


def _voted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``(h, w)``: at each place the mean over its cluster."""
    flat = labels.flatten()
    counts = torch.bincount(flat).clamp(min=1)
    means = torch.zeros(len(counts), device=logits.device).index_add_(0, flat, logits.flatten()) / counts
    return means[labels]


def _mask(logits: torch.Tensor, size: tuple[int, int], mask_threshold: float) -> np.ndarray:
    """``(H, W)`` bool of ``(h, w)`` logits, interpolated before the threshold."""
    large = F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    return (large > logit(mask_threshold)).cpu().numpy()


def _bare(text: str) -> str:
    """Without the articles before it; the templates have their own."""
    words = text.split()
    while len(words) > 1 and words[0].lower() in ARTICLES:
        words.pop(0)
    return " ".join(words)
