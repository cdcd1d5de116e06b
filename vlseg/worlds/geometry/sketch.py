"""A diagram in the making: what has been placed, and whether something more fits without clutter."""

from __future__ import annotations

import numpy as np

from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry.figures import Element, distance_to

LETTERS = "ABCDEFGHIJKLMNPQRSTUVWXYZ"  # O is kept for centres


class Sketch:
    """Points with letters and the elements on them. Everything placed keeps clear of everything it does not touch.

    size: (height, width) in pixels. gap: pixels that things which do not touch keep between them.
    """

    def __init__(self, size: tuple[int, int], d: Draw):
        self.size, self.d = size, d
        self.unit = float(min(size))
        self.gap = 0.075 * self.unit
        self.margin = 0.09 * self.unit
        self.points: dict[str, np.ndarray] = {}
        self.elements: list[Element] = []
        self._letters = list(LETTERS[d.below(12) :] + LETTERS) if d.chance(0.5) else list(LETTERS)

    # placing ---------------------------------------------------------------------------------------------------------
    def spot(self) -> np.ndarray:
        """A random place inside the margins, (2,)."""
        height, width = self.size
        m = self.margin
        return np.array([self.d.between(m, width - m), self.d.between(m, height - m)])

    def holds(self, *points: np.ndarray) -> bool:
        """Whether points lie inside the margins."""
        height, width = self.size
        m = self.margin
        return all(m <= p[0] <= width - m and m <= p[1] <= height - m for p in points)

    def free(self, point: np.ndarray) -> bool:
        """Whether a new point keeps clear of the other points, and lies on lines exactly or well beside them."""
        if not self.holds(point):
            return False
        if any(np.hypot(*(point - q)) < 1.6 * self.gap for q in self.points.values()):
            return False
        return all(not 0.1 < float(distance_to(e, point)) < self.gap for e in self.elements if e.kind != "angle")

    def clear(self, a: np.ndarray, b: np.ndarray, touching: tuple[np.ndarray, ...]) -> bool:
        """Whether a new segment ab runs past no point but `touching`, and along no line that is there."""
        new = Element("segment", ("", ""), np.stack([a, b]))
        if new.length < 2.2 * self.gap:
            return False
        for q in self.points.values():
            if all(np.hypot(*(q - t)) > 0.5 for t in touching) and float(distance_to(new, q)) < self.gap:
                return False
        inner = a + (b - a) * np.linspace(0.1, 0.9, 33)[:, None]
        lines = [e for e in self.elements if e.kind in ("segment", "polygon")]
        return all(float(np.mean(distance_to(e, inner) < 0.6 * self.gap)) < 0.45 for e in lines)

    def room_for_circle(self, centre: np.ndarray, radius: float) -> bool:
        """Whether a circle lies inside the picture and is not all but another circle."""
        height, width = self.size
        x, y = centre
        edge = 0.4 * self.margin
        if radius < 1.5 * self.gap or min(x, y, width - x, height - y) - radius < edge:
            return False
        for e in self.elements:
            if e.kind == "circle":
                apart = float(np.hypot(*(centre - e.points[0])))
                if apart + abs(radius - e.radius) < 1.2 * self.gap:
                    return False
        turns = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        rim = centre + radius * np.stack([np.cos(turns), np.sin(turns)], -1)
        lines = [e for e in self.elements if e.kind != "angle"]
        return all(float(np.mean(distance_to(e, rim) < 0.15 * self.gap)) < 0.5 for e in lines)  # tangents may touch

    # adding ----------------------------------------------------------------------------------------------------------
    def letter(self, wanted: str = "") -> str:
        """The next unused letter, or `wanted` where it is free; "" where none is left."""
        if wanted and wanted not in self.points:
            return wanted
        return next((x for x in self._letters if x not in self.points), "")

    def point(self, place: np.ndarray, wanted: str = "") -> str:
        """Name a point and draw its dot."""
        name = self.letter(wanted)
        self.points[name] = np.asarray(place, float)
        self.elements.append(Element("point", (name,), np.asarray([place], float), radius=0.011 * self.unit))
        return name

    def segment(self, a: str, b: str, side: bool = False) -> Element:
        """Join two points."""
        new = Element("segment", (a, b), np.stack([self.points[a], self.points[b]]), side=side)
        self.elements.append(new)
        return new

    def polygon(self, names: list[str], word: str) -> None:
        """A polygon and its sides."""
        corners = np.stack([self.points[n] for n in names])
        self.elements.append(Element("polygon", tuple(names), corners, word=word))
        for a, b in zip(names, [*names[1:], names[0]], strict=True):
            self.segment(a, b, side=True)

    def circle(self, centre: np.ndarray, radius: float, name: str = "") -> None:
        """A circle; name: the letter of its centre, "" where it has none."""
        self.elements.append(Element("circle", (name,) if name else (), np.asarray([centre], float), radius))

    def joined(self, a: str, b: str) -> bool:
        """Whether a segment joins two points, or a longer one runs over both."""
        places = np.stack([self.points[a], self.points[b]])
        return any(e.kind == "segment" and float(distance_to(e, places).max()) < 0.1 for e in self.elements)

    def of(self, kind: str) -> list[Element]:
        """All elements of a kind, in random order."""
        return self.d.shuffled([e for e in self.elements if e.kind == kind])
