"""Targets of path mode: the paths of a batch's masks, none longer than the model may write, behind their queries."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from vlseg.losses.mask import IGNORE
from vlseg.masks.path_codec import EffortName, PathCodec
from vlseg.models.configuration import VLSegConfig
from vlseg.models.modeling import VLSegModel
from vlseg.models.path_head import CODEC, MAX_TOKENS, add_paths, codec_of, pack_paths
from vlseg.models.processing import VLSegProcessor
from vlseg.training.batches import Batch
from vlseg.training.config import PathSection

# A path that is too long at the price asked for is sought again at these multiples of it.
_DEARER = (3.0, 9.0, 27.0, 81.0)


def learn_paths(model: VLSegModel, processor: VLSegProcessor, section: PathSection) -> None:
    """Give a model the path tokens that a run asks for; in place. What the section leaves open stays as the model has
    it, or is the default. Raises VLSegError as `add_paths`."""
    codec, own = PathCodec(), model.config.paths
    settings = {name: getattr(codec, name) for name in CODEC} | {"max_tokens": MAX_TOKENS, "box": "written"}
    for name in settings:
        asked = getattr(section, name)
        settings[name] = own.get(name, settings[name]) if asked is None else asked
    add_paths(model, processor, PathCodec(**{name: settings[name] for name in CODEC}), settings["max_tokens"])
    model.config.paths["box"] = settings["box"]


def short_paths(
    codec: PathCodec, masks: Sequence[np.ndarray], most: int, price: float, effort: EffortName = "fast"
) -> list[list[int]]:
    """Paths of (H, W) bool masks, none of more than `most` tokens: where a path at the price is longer, tokens get
    dearer for this mask until it fits. most: at least 6, which is a box."""
    paths = [found.tokens for found in codec.encode_many(masks, price, effort=effort)]
    long = [i for i, path in enumerate(paths) if len(path) > most]
    if long:
        offers = codec.trade_offs([masks[i] for i in long], [price * factor for factor in _DEARER], effort)
        box_alone = slice(0, 4)
        for i, some in zip(long, offers, strict=True):
            fits = [offer.tokens for offer in some if len(offer.tokens) <= most]
            paths[i] = fits[0] if fits else [*paths[i][box_alone], codec.vocabulary.first["end"]]
    return paths


def truths(batch: Batch) -> dict[tuple[int, int], np.ndarray]:
    """By (image, query) what a path should enclose, (H, W) bool: the union of the query's targets, without the pixels
    that do not count. Queries without target, or whose target has no pixel, are left out."""
    regions = (batch.regions == 1).float()
    labelled = (batch.regions != IGNORE).float()
    found: dict[tuple[int, int], np.ndarray] = {}
    for b, k in (batch.targets.any(-1) & batch.packed.valid).nonzero().tolist():
        mine = batch.targets[b, k]
        mask = (regions[b, mine].amax(0) > 0) & (labelled[b, mine].amin(0) > 0)
        if batch.ignored is not None:
            mask &= ~batch.ignored[b, k]
        if mask.any():
            found[b, k] = mask.cpu().numpy()
    return found


class PathTargets:
    """Puts paths behind the queries of batches. The path of a query is that of the union of its targets."""

    def __init__(self, config: VLSegConfig, pad_id: int, price: float, effort: EffortName = "fast", share: float = 1.0):
        """config: of a model with path mode; price: IoU that one more token must bring, as in `PathCodec`; share: of
        the queries with a target that get a path, drawn by the batch's own content."""
        self.config, self.pad_id, self.price, self.effort, self.share = config, pad_id, price, effort, share
        self.codec = codec_of(config)

    def __call__(self, batch: Batch) -> Batch:
        """The same batch with rows that go on; a query without target, or whose target has no pixel, does not."""
        masks: list[np.ndarray] = []
        number: dict[tuple[int, bytes], int] = {}  # of a mask among `masks`: several queries of an image mean the same
        places: dict[tuple[int, int], int] = {}
        for (b, k), mask in self._drawn(batch).items():
            same = (b, np.packbits(mask).tobytes())
            if same not in number:
                number[same] = len(masks)
                masks.append(mask)
            places[b, k] = number[same]
        found = short_paths(self.codec, masks, self.config.paths["max_tokens"], self.price, self.effort)
        by_place = {place: found[i] for place, i in places.items()}
        packed, rows, paths = batch.packed, [], []
        for b, valid in enumerate(packed.valid.tolist()):
            count = sum(valid)
            rows.append([packed.ids[b, packed.owner[b] == k + 1].tolist() for k in range(count)])
            paths.append([by_place.get((b, k)) for k in range(count)])
        batch.packed = pack_paths(rows, paths, self.config, self.pad_id, packed.valid.shape[1])
        return batch

    def _drawn(self, batch: Batch) -> dict[tuple[int, int], np.ndarray]:
        """Of `truths` those that get a path: the same share in every image, or the others' rows would be padding."""
        found = truths(batch)
        if self.share >= 1:
            return found
        random = np.random.default_rng(zlib.crc32(batch.packed.ids.numpy().tobytes()))
        luck, kept = random.random(), {}
        for b in range(len(batch.pixels)):
            mine = [place for place in found if place[0] == b]
            for i in random.permutation(len(mine))[: int(self.share * len(mine) + luck)]:
                kept[mine[i]] = found[mine[i]]
        return kept
