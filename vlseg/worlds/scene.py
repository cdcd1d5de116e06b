"""What a scene is: its pixels, its objects, and the queries about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vlseg.masks.rle import encode
from vlseg.types import Query, Sample


@dataclass(slots=True)
class SceneObject:
    """One object. box: (x0, y0, x1, y1) of its visible pixels; area: visible pixels; full_area: unoccluded ones.

    colours: the colour words that are true of it; open_colours: those that are neither true nor false.
    rotation in degrees; extent: longest side over the image's short side; style: the drawing style's name.
    """

    glyph: int
    noun: str
    box: tuple[float, float, float, float]
    area: int
    full_area: int
    colours: frozenset[str] = frozenset()
    open_colours: frozenset[str] = frozenset()
    style: str = "original"
    rotation: float = 0.0
    flipped: bool = False
    extent: float = 0.0


@dataclass(slots=True)
class SceneQuery:
    """One expression. targets and distractors: indices into ``Scene.objects``; ``()`` as targets says absent.

    nouns: the noun phrases (singular) that its truth rests on; anchors: the objects that it mentions besides.
    """

    text: str
    kind: str
    targets: tuple[int, ...]
    distractors: tuple[int, ...]
    nouns: tuple[str, ...] = ()
    anchors: tuple[int, ...] = ()


@dataclass(slots=True)
class Scene:
    """image: ``(H, W, 3) uint8``; ids: ``(H, W) uint8``, 0 background, i the visible pixels of ``objects[i - 1]``."""

    image: np.ndarray
    ids: np.ndarray
    objects: list[SceneObject]
    queries: list[SceneQuery] = field(default_factory=list)
    background: str = ""

    def mask(self, index: int) -> np.ndarray:
        """The visible pixels of ``objects[index]``, ``(H, W) bool``."""
        return self.ids == index + 1

    def to_sample(self, id: str = "") -> Sample:
        """The scene as a ``Sample``: one RLE per target and per distractor."""
        rles = [encode(self.mask(i)) for i in range(len(self.objects))]
        queries = [
            Query(q.text, [rles[t] for t in q.targets], [rles[d] for d in q.distractors], q.kind) for q in self.queries
        ]
        return Sample(self.image, queries, id, {"world": "sprites"})
