"""What a diagram is made of: points, segments, circles, polygons and angles, in pixels (x right, y down)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["point", "segment", "circle", "polygon", "angle"]
KINDS: tuple[Kind, ...] = ("point", "segment", "circle", "polygon", "angle")


@dataclass(slots=True)
class Look:
    """How an element is drawn. width in pixels; dash: lengths in pixels of stroke and gap, or None; shaded: filled."""

    colour: str = "black"
    width: float = 2.0
    dash: tuple[float, float] | None = None
    shaded: bool = False


@dataclass(slots=True, eq=False)
class Element:
    """One thing that words can refer to.

    names: labels of its points: ("A",); ("A", "B"); the centre of a circle; corners in order; (arm, vertex, arm).
    points: (N, 2) float64: the point; both ends; the centre; the corners; arm, vertex, arm. radius: of a circle, of an
    angle's mark, of a point's dot. side: a segment that is the side of a polygon. word: "triangle", "square", ...
    """

    kind: Kind
    names: tuple[str, ...]
    points: np.ndarray
    radius: float = 0.0
    look: Look = field(default_factory=Look)
    side: bool = False
    word: str = ""

    @property
    def length(self) -> float:
        """Length of a segment, radius of a circle, area of a polygon, degrees of an angle: what "largest" compares."""
        if self.kind == "segment":
            return float(np.hypot(*(self.points[1] - self.points[0])))
        if self.kind == "polygon":
            return abs(area(self.points))
        if self.kind == "angle":
            return degrees(self.points)
        return self.radius

    @property
    def middle(self) -> np.ndarray:
        """Where it is, for "leftmost" and the like: (2,)."""
        if self.kind == "angle":
            return self.points[1]
        return self.points.mean(0)

    @property
    def right(self) -> bool:
        """An angle of 90 degrees; it is marked with a square."""
        return self.kind == "angle" and abs(degrees(self.points) - 90) < 0.05


def area(corners: np.ndarray) -> float:
    """Signed area of a polygon, (N, 2) corners."""
    x, y = corners.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def degrees(points: np.ndarray) -> float:
    """The angle at points[1] between the arms to points[0] and points[2], 0 to 180."""
    a, b = points[0] - points[1], points[2] - points[1]
    return float(np.degrees(np.arctan2(abs(a[0] * b[1] - a[1] * b[0]), a @ b)))


def distance_to_segment(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of (..., 2) points to the segment ab, and how far along it (in pixels from a) the nearest place is."""
    along = b - a
    length = float(np.hypot(*along))
    if length == 0:
        return np.linalg.norm(points - a, axis=-1), np.zeros(points.shape[:-1])
    t = np.clip((points - a) @ along / length, 0, length)
    nearest = a + t[..., None] * (along / length)
    return np.linalg.norm(points - nearest, axis=-1), t


def distance_to(element: Element, points: np.ndarray) -> np.ndarray:
    """Distance of (..., 2) points to the element's line: a point's centre, a segment, a circle, a polygon's outline."""
    p = element.points
    if element.kind == "circle":
        return np.abs(np.linalg.norm(points - p[0], axis=-1) - element.radius)
    if element.kind == "point":
        return np.linalg.norm(points - p[0], axis=-1)
    if element.kind == "segment":
        return distance_to_segment(points, p[0], p[1])[0]
    if element.kind == "polygon":
        return np.min([distance_to_segment(points, a, b)[0] for a, b in zip(p, np.roll(p, -1, 0), strict=True)], axis=0)
    ends = [distance_to_segment(points, p[1], arm)[0] for arm in (p[0], p[2])]
    return np.minimum(*ends)
