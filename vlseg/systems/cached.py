"""`CachedSystem`: a system that looks for what it has made of an image on disk before it encodes it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from vlseg.systems.base import EncodedImage, Encoder, PartialAnswer, PathSystem, SoftAnswer, SoftSystem, System
from vlseg.systems.devices import pick_device, pick_dtype
from vlseg.systems.feature_files import LIMIT, FeatureFiles
from vlseg.systems.registry import fingerprint
from vlseg.types import Answer, VLSegError
from vlseg.version import __version__

PACKAGES = ("torch", "transformers", "open_clip_torch", "timm", "torchvision", "pillow")  # that shape features


class CachedSystem:
    """A `System` and `Encoder` around another. model: what the features depend on beside the image.

    An image is known by its pixels: another file of the same picture is the same image.
    """

    def __init__(self, system: Any, files: FeatureFiles, model: str):
        self.system, self.files, self.model = system, files, model
        self.name, self.protocol, self.modes = system.name, system.protocol, system.modes

    @property
    def presence_threshold(self) -> float:
        """That of the system within."""
        return float(self.system.presence_threshold)

    def segment(self, image: Image.Image | EncodedImage, queries: Sequence[str], **options: Any) -> list[Answer]:
        """See `System.segment`."""
        return self.segment_batch([image], [queries], **options)[0]

    def segment_batch(
        self, images: Sequence[Image.Image | EncodedImage], queries: Sequence[Sequence[str]], **options: Any
    ) -> list[list[Answer]]:
        """See `System.segment_batch`; the options are those of the system within."""
        return self.system.segment_batch(self._encoded(images), queries, **options)

    def encode_batch(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """See `Encoder.encode_batch`. Those that are not on disk are encoded together, and put there."""
        keys = [self.key(image) for image in images]
        found = {key: self.files.get(key) for key in dict.fromkeys(keys)}
        fresh = {key: image for key, image in zip(keys, images, strict=True) if found[key] is None}
        if fresh:
            for key, encoded in zip(fresh, self.system.encode_batch(list(fresh.values())), strict=True):
                found[key] = encoded
                self.files.put(key, encoded)
        return [found[key] for key in keys]  # type: ignore[misc]

    def key(self, image: Image.Image) -> str:
        """Hexadecimal: of the pixels, their layout and the model."""
        digest = hashlib.sha256(json.dumps([self.model, image.mode, image.size]).encode())
        digest.update(image.tobytes())
        return digest.hexdigest()

    def _encoded(self, images: Sequence[Image.Image | EncodedImage]) -> list[EncodedImage]:
        fresh = iter(self.encode_batch([image for image in images if not isinstance(image, EncodedImage)]))
        return [image if isinstance(image, EncodedImage) else next(fresh) for image in images]


class _Soft(CachedSystem):
    def soft_answers(self, image: Image.Image | EncodedImage, queries: Sequence[str]) -> list[SoftAnswer]:
        """See `SoftSystem.soft_answers`."""
        return self.system.soft_answers(self._encoded([image])[0], queries)


class _Paths(CachedSystem):
    def stream(
        self, image: Image.Image | EncodedImage, queries: Sequence[str], **options: Any
    ) -> Iterator[PartialAnswer]:
        """See `PathSystem.stream`."""
        return self.system.stream(self._encoded([image])[0], queries, **options)


class _SoftPaths(_Soft, _Paths):
    pass


def cached(
    system: System,
    folder: str | Path,
    model: str | Path | None,
    device: str | None = None,
    dtype: str | None = None,
    limit: int = LIMIT,
) -> System:
    """The system with its image features kept in a folder. model, device, dtype: as it was loaded with; limit: bytes.

    What it can do beyond `System` (soft answers, paths) it can still do. Raises VLSegError for a system that does not
    encode images, and a folder that cannot be made.
    """
    if not isinstance(system, Encoder):
        raise VLSegError(f"--cache: {system.name} makes nothing of an image that could be kept; leave it out")
    place = pick_device(device)
    number = dtype or str(pick_dtype(None, place)).removeprefix("torch.")
    facts = [fingerprint(model), type(system).__name__, place.type, number, __version__, _versions()]
    kinds = {(True, True): _SoftPaths, (True, False): _Soft, (False, True): _Paths, (False, False): CachedSystem}
    kind = kinds[isinstance(system, SoftSystem), isinstance(system, PathSystem)]
    return kind(system, FeatureFiles(folder, place, limit), json.dumps(facts))


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found
