"""The procedural worlds as data sets: scene i of a seed, rendered when it is asked for."""

from __future__ import annotations

import re
from functools import cached_property

from vlseg.data.dataset import Problem
from vlseg.data.index import count, fingerprint, outline
from vlseg.data.request import Request
from vlseg.types import Sample, VLSegError
from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry.diagrams import GeometryWorld
from vlseg.worlds.render import SIZES
from vlseg.worlds.sprites import STYLES, SpriteWorld


def open_sprites(request: Request) -> SceneDataset:
    """`sprites?n=500&seed=9&size=256x256&queries=8&styles=held_out`; without a size, a mixture. Raises VLSegError."""
    styles = request.choice("styles", "train", STYLES)
    return _open(request, "sprites", SpriteWorld(styles), f"&styles={styles}", least=32)


def open_geometry(request: Request) -> SceneDataset:
    """`geometry?n=500&seed=9&size=256x256&queries=8`; without a size, a mixture. Raises VLSegError."""
    return _open(request, "geometry", GeometryWorld(), "", least=96)


def _open(request: Request, name: str, world: SpriteWorld | GeometryWorld, suffix: str, least: int) -> SceneDataset:
    return SceneDataset(
        name,
        world,
        n=request.number("n", 500, 1),
        seed=request.number("seed", 0, 0),
        size=_size(name, request.options.get("size"), least),
        queries=request.number("queries", 8, 1),
        suffix=suffix,
    )


def _size(name: str, text: str | None, least: int) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)[xX×](\d+)", text)
    if not match or min(int(match[1]), int(match[2])) < least or max(int(match[1]), int(match[2])) > 4096:
        raise VLSegError(f"{name}: size={text}: write height x width such as 256x320, each from {least} to 4096")
    return int(match[1]), int(match[2])


class SceneDataset:
    """n scenes with exact masks, distractors and kinds; the same arguments give the same samples.

    size: (H, W) of every scene, or None for the mixture of `vlseg data render`.
    """

    def __init__(
        self,
        kind: str,
        world: SpriteWorld | GeometryWorld,
        n: int,
        seed: int,
        size: tuple[int, int] | None,
        queries: int = 8,
        suffix: str = "",
    ):
        self.kind, self.world = kind, world
        self.n, self.seed, self.size, self.queries = n, seed, size, queries
        shape = f"&size={size[0]}x{size[1]}" if size else ""
        self.name = f"{kind}?n={n}&seed={seed}{shape}&queries={queries}{suffix}"
        self.split = ""
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        position = index + self.n if index < 0 else index
        if not 0 <= position < self.n:
            raise IndexError(f"scene {index} of {self.n}")
        shape = self.size or Draw(self.seed, position, 7).choice(SIZES)
        sample = self.world.scene(self.seed, position, shape, self.queries).to_sample(f"{self.seed}-{position}")
        sample.size = shape
        for number, query in enumerate(sample.queries):
            query.id = f"{self.kind}:{self.seed}-{position}:{number}"
        return sample

    labels = __getitem__

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of every query; renders every scene once."""
        return fingerprint(self[i] for i in range(self.n))

    def counts(self) -> dict[str, int]:
        """As `IndexedDataset.counts`; renders every scene once."""
        return count(outline(self[i]) for i in range(self.n))
