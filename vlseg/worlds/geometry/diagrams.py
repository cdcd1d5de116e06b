"""The geometry world: diagrams with exact masks of thin strokes, and expressions whose truth is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from vlseg.masks.rle import encode
from vlseg.types import Query, Sample, VLSegError
from vlseg.worlds import photometric
from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry.construct import construct
from vlseg.worlds.geometry.figures import Element
from vlseg.worlds.geometry.paint import COLOURS, draw_element, draw_labels, mask_of
from vlseg.worlds.geometry.phrases import QUERY_KINDS, Asked, Asker
from vlseg.worlds.geometry.sketch import Sketch

GEOMETRY = 4096  # keeps the draws apart from those of other worlds with the same seed and index


@dataclass(slots=True)
class Diagram:
    """image: ``(H, W, 3) uint8``; elements in the order they were drawn; rules: how it was constructed."""

    image: np.ndarray
    elements: list[Element]
    queries: list[Asked] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)

    def mask(self, index: int) -> np.ndarray:
        """The ink of ``elements[index]``, ``(H, W) bool``; lines cross, so masks may share pixels."""
        return mask_of(self.elements[index], self.image.shape[:2])

    def to_sample(self, id: str = "") -> Sample:
        """The diagram as a ``Sample``: one RLE per target and per distractor."""
        rles = [encode(self.mask(i)) for i in range(len(self.elements))]
        queries = [
            Query(q.text, [rles[t] for t in q.targets], [rles[x] for x in q.distractors], q.kind, id=f"{id}:{k}")
            for k, q in enumerate(self.queries)
        ]
        return Sample(self.image, queries, id, {"world": "geometry"}, self.image.shape[:2])


class GeometryWorld:
    """Diagrams, each fully determined by its arguments: same seed, same bytes."""

    kinds = QUERY_KINDS

    def vocabulary(self) -> list[str]:
        """Every lower-case word that an expression can contain, sorted; letters of points are left out."""
        return _vocabulary()

    def scene(
        self,
        seed: int,
        index: int,
        size: tuple[int, int] = (256, 256),
        queries: int = 8,
        kinds: dict[str, float] | None = None,
    ) -> Diagram:
        """Diagram ``index`` of the stream ``seed``, ``size`` (H, W) pixels, with up to ``queries`` expressions.

        kinds: weights of query kinds (those of ``QUERY_KINDS``) in place of the standard ones. Raises VLSegError for
        sizes below 96, negative seeds or unknown kinds.
        """
        h, w = size
        if min(h, w) < 96 or seed < 0 or index < 0:
            raise VLSegError(
                f"geometry: at least 96 x 96 pixels, seed and index not negative; got {size}, {seed}, {index}"
            )
        if kinds is not None and not set(kinds) <= set(QUERY_KINDS):
            wrong = sorted(set(kinds) - set(QUERY_KINDS))
            raise VLSegError(f"geometry: unknown kinds {wrong}; there are {', '.join(QUERY_KINDS)}")
        d = Draw(seed, index, h, w, GEOMETRY)
        sketch = Sketch(size, d)
        rules = construct(sketch, d.below(6) + 2)
        image, dark = paper(size, d)
        dress(sketch.elements, sketch.unit, dark, d)
        for element in sorted(sketch.elements, key=lambda e: (not e.look.shaded, e.kind == "point")):
            if element.kind != "polygon" or element.look.shaded:  # its sides draw it
                draw_element(image, element)
        draw_labels(image, sketch.points, sketch.elements, dark, d)
        picture = np.clip(image, 0, 255).astype(np.uint8)
        return Diagram(photometric.camera(picture, d), sketch.elements, Asker(sketch, d).ask(queries, kinds), rules)


def paper(size: tuple[int, int], d: Draw) -> tuple[np.ndarray, bool]:
    """An empty sheet ``(H, W, 3) float32``, and whether it is dark."""
    h, w = size
    dark = d.chance(0.15)
    base = np.array([d.between(18, 55) if dark else d.between(236, 255) for _ in range(3)], np.float32)
    if d.chance(0.4):
        base[:] = base.mean()
    image = np.empty((h, w, 3), np.float32)
    image[:] = base
    if d.chance(0.3):  # squared paper
        step = d.between(0.05, 0.1) * min(size)
        shift = -14.0 if not dark else 16.0
        for axis, length in ((0, h), (1, w)):
            lines = np.arange(d.between(0, step), length, step).astype(int)
            if axis == 0:
                image[lines] += shift
            else:
                image[:, lines] += shift
    if d.chance(0.3):  # uneven light
        slope = d.between(-18, 18)
        image += np.linspace(-slope, slope, w, dtype=np.float32)[None, :, None]
    return image, dark


def dress(elements: list[Element], unit: float, dark: bool, d: Draw) -> None:
    """Give every element its look: one ink and one pen for most, some that stand out."""
    ink = "white" if dark else d.weighted(("black", "blue", "purple"), (8, 1, 0.5))
    pen = max(1.4, unit * d.between(0.006, 0.014))
    accents = [c for c in COLOURS if c not in (ink, "white", "black")]
    dash = (unit * d.between(0.022, 0.035), unit * d.between(0.014, 0.022))
    for e in elements:
        e.look.colour, e.look.width = ink, pen
        if e.kind == "point":
            e.look.width = 1.0
            e.radius = pen * d.between(1.0, 1.3)
        elif e.kind == "angle":
            e.look.width = max(1.2, pen * 0.75)
            e.look.shaded = not e.right and d.chance(0.3)
        elif e.kind in ("segment", "circle"):
            if not e.side and d.chance(0.22):
                e.look.dash = dash
            if d.chance(0.16):
                e.look.colour = d.choice(accents)
        if e.kind in ("polygon", "circle") and d.chance(0.18):
            e.look.shaded = True
            e.look.colour = d.choice((ink, *accents[:2])) if e.kind == "polygon" else e.look.colour


@cache
def _vocabulary() -> list[str]:
    world, words = GeometryWorld(), set()
    for index in range(400):
        for asked in world.scene(0, index, (128, 128), 16).queries:
            words |= set(asked.text.lower().split()) - {name for name in asked.text.split() if name.isupper()}
    return sorted(words)
