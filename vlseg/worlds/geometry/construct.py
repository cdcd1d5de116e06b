"""Constructions: figures and what is added to them, every relation solved for, none waited for by chance.

Each rule places what it makes exactly (a foot of an altitude is computed, a tangent point is computed) and returns
whether there was room. Constraint-based construction after "Toward an Artificial General Teacher" (arXiv 2604.02893).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlseg.worlds.geometry.figures import Element, degrees
from vlseg.worlds.geometry.sketch import Sketch

Rule = Callable[[Sketch], bool]
TRIES = 12


def turned(vector: np.ndarray, angle: float = np.pi / 2) -> np.ndarray:
    """A vector turned by an angle in radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector of length one."""
    return vector / np.hypot(*vector)


def foot(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The foot of the perpendicular from a point on the line ab."""
    along = unit(b - a)
    return a + along * float((point - a) @ along)


# figures -----------------------------------------------------------------------------------------------------------
def _figure(s: Sketch, corners: list[np.ndarray], word: str) -> bool:
    points = np.stack(corners)
    if not all(s.free(p) for p in corners):
        return False
    sides = np.linalg.norm(points - np.roll(points, -1, 0), axis=1)
    angles = [degrees(np.stack([points[i - 1], points[i], points[(i + 1) % len(points)]])) for i in range(len(points))]
    if sides.min() < 0.18 * s.unit or min(angles) < 28:
        return False
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        if not s.clear(a, b, ()):
            return False
    s.polygon([s.point(p) for p in corners], word)
    return True


def triangle(s: Sketch) -> bool:
    """Scalene, isosceles, right or equilateral."""
    a = s.spot()
    base = unit(turned(np.array([1.0, 0.0]), s.d.between(0, 2 * np.pi))) * s.d.between(0.28, 0.6) * s.unit
    kind = s.d.choice(("any", "isosceles", "right", "equilateral"))
    if kind == "any":
        return _figure(s, [a, a + base, s.spot()], "triangle")
    if kind == "right":
        return _figure(s, [a, a + base, a + turned(base) * s.d.between(0.5, 1.2)], "triangle")
    height = 3**0.5 / 2 if kind == "equilateral" else s.d.between(0.5, 1.3)
    return _figure(s, [a, a + base, a + base / 2 + turned(base) * height], "triangle")


def quadrilateral(s: Sketch) -> bool:
    """Square, rectangle, parallelogram, rhombus, trapezoid or kite."""
    a = s.spot()
    base = unit(turned(np.array([1.0, 0.0]), s.d.between(0, 2 * np.pi))) * s.d.between(0.25, 0.55) * s.unit
    up = turned(base)
    word = s.d.choice(("square", "rectangle", "parallelogram", "rhombus", "trapezoid", "kite"))
    lean = turned(base, np.radians(s.d.between(50, 75)))
    if word == "square":
        rest = [a + base + up, a + up]
    elif word == "rectangle":
        high = s.d.choice((0.55, 0.65, 1.45))
        rest = [a + base + up * high, a + up * high]
    elif word == "parallelogram":
        lean = lean * s.d.choice((0.6, 0.7, 1.4))
        rest = [a + base + lean, a + lean]
    elif word == "rhombus":
        rest = [a + base + lean, a + lean]
    elif word == "trapezoid":
        start, share = s.d.between(0.1, 0.3), s.d.between(0.35, 0.6)
        high = s.d.between(0.5, 0.9)
        rest = [a + base * (start + share) + up * high, a + base * start + up * high]
    else:
        out, high = s.d.between(0.28, 0.4), s.d.between(0.6, 0.8)
        return _figure(s, [a, a + base * out + up * out * high, a + base, a + base * out - up * out * high], "kite")
    return _figure(s, [a, a + base, *rest], word)


def regular(s: Sketch) -> bool:
    """A regular pentagon or hexagon."""
    n, word = s.d.choice(((5, "pentagon"), (6, "hexagon")))
    centre, radius, start = s.spot(), s.d.between(0.24, 0.36) * s.unit, s.d.between(0, 2 * np.pi)
    turns = start + 2 * np.pi * np.arange(n) / n
    return _figure(s, list(centre + radius * np.stack([np.cos(turns), np.sin(turns)], -1)), word)


def circle(s: Sketch) -> bool:
    """A circle, mostly with its centre."""
    centre, radius = s.spot(), s.d.between(0.14, 0.34) * s.unit
    return _circle(s, centre, radius, s.d.chance(0.7))


def _circle(s: Sketch, centre: np.ndarray, radius: float, named: bool) -> bool:
    at = [name for name, p in s.points.items() if np.hypot(*(p - centre)) < 0.1]
    if not s.room_for_circle(centre, radius) or (named and not at and not s.free(centre)):
        return False
    rim = [abs(float(np.hypot(*(p - centre))) - radius) for p in s.points.values()]
    if any(0.1 < away < s.gap for away in rim):
        return False
    name = at[0] if at else s.point(centre, "O") if named else ""
    s.circle(centre, radius, name)
    return True


def pair(s: Sketch) -> bool:
    """Two segments that are parallel, perpendicular or equally long."""
    a, c = s.spot(), s.spot()
    first = turned(np.array([s.d.between(0.25, 0.6) * s.unit, 0.0]), s.d.between(0, 2 * np.pi))
    kind = s.d.choice(("parallel", "perpendicular", "equal"))
    ratio = s.d.choice((1.0, 0.6, 0.75, 1.35))
    if kind == "parallel":
        second = first * ratio
    elif kind == "perpendicular":
        second = turned(first) * ratio
    else:
        second = turned(first, np.radians(s.d.between(20, 70)))
    return _join_new(s, a, a + first) and _join_new(s, c, c + second)


def _join_new(s: Sketch, a: np.ndarray, b: np.ndarray) -> bool:
    if not (s.free(a) and s.free(b) and s.clear(a, b, ())):
        return False
    s.segment(s.point(a), s.point(b))
    return True


# what is added -----------------------------------------------------------------------------------------------------
def _join(s: Sketch, a: str, b: str) -> bool:
    p, q = s.points[a], s.points[b]
    if s.joined(a, b) or not s.clear(p, q, (p, q)):
        return False
    s.segment(a, b)
    return True


def _join_to(s: Sketch, a: str, place: np.ndarray) -> bool:
    """Join a point to a new one at `place`."""
    p = s.points[a]
    if not s.free(place) or not s.clear(p, place, (p, place)):
        return False
    s.segment(a, s.point(place))
    return True


def midpoint(s: Sketch) -> bool:
    """The midpoint of a segment; in a triangle perhaps with the median."""
    for e in s.of("segment"):
        middle = e.points.mean(0)
        if not s.free(middle):
            continue
        apex = _opposite(s, e)
        if apex and s.d.chance(0.5):
            if _join_to(s, apex, middle):
                return True
            continue
        s.point(middle, "M")
        return True
    return False


def _opposite(s: Sketch, side: Element) -> str:
    """The corner across a side of a triangle, or ""."""
    for e in s.elements:
        if e.kind == "polygon" and len(e.names) == 3 and side.side and set(side.names) < set(e.names):
            return next(n for n in e.names if n not in side.names)
    return ""


def altitude(s: Sketch) -> bool:
    """From a corner of a triangle to the side across."""
    for e in s.of("segment"):
        apex = _opposite(s, e)
        if apex:
            place = foot(s.points[apex], *e.points)
            along = float((place - e.points[0]) @ (e.points[1] - e.points[0])) / e.length**2
            if 0.12 < along < 0.88 and _join_to(s, apex, place):
                return True
    return False


def bisector(s: Sketch) -> bool:
    """The bisector of a triangle's angle, to the side across."""
    for e in s.of("segment"):
        apex = _opposite(s, e)
        if apex:
            p = s.points[apex]
            near, far = (float(np.hypot(*(q - p))) for q in e.points)
            if _join_to(s, apex, e.points[0] + (e.points[1] - e.points[0]) * near / (near + far)):
                return True
    return False


def parallel(s: Sketch) -> bool:
    """Through a point, a segment parallel to another, sometimes equally long."""
    for e in s.of("segment")[:4]:
        for name in s.d.shuffled(list(s.points))[:4]:
            if name in e.names or float(np.hypot(*(foot(s.points[name], *e.points) - s.points[name]))) < 2 * s.gap:
                continue
            along = (e.points[1] - e.points[0]) * s.d.choice((1.0, -1.0, 0.6, -0.6, 1.3))
            if _join_to(s, name, s.points[name] + along):
                return True
    return False


def perpendicular(s: Sketch) -> bool:
    """From a point beside a segment down to it."""
    for e in s.of("segment")[:4]:
        for name in s.d.shuffled(list(s.points))[:4]:
            if name in e.names:
                continue
            place = foot(s.points[name], *e.points)
            along = float((place - e.points[0]) @ (e.points[1] - e.points[0])) / e.length**2
            beside = float(np.hypot(*(place - s.points[name]))) > 2 * s.gap
            if beside and 0.1 < along < 0.9 and _join_to(s, name, place):
                return True
    return False


def diagonal(s: Sketch) -> bool:
    """A diagonal of a polygon, or both of a quadrilateral and where they meet."""
    for e in s.of("polygon"):
        n = len(e.names)
        if n < 4:
            continue
        i = s.d.below(n)
        if not _join(s, e.names[i], e.names[(i + 2) % n]):
            continue
        if n == 4 and s.d.chance(0.5) and _join(s, e.names[(i + 1) % 4], e.names[(i + 3) % 4]):
            a, c = s.points[e.names[i]], s.points[e.names[(i + 2) % 4]]
            b, x = s.points[e.names[(i + 1) % 4]], s.points[e.names[(i + 3) % 4]]
            share = np.linalg.solve(np.stack([c - a, b - x], 1), b - a)[0]
            meeting = a + share * (c - a)
            if s.free(meeting):
                s.point(meeting)
        return True
    return False


def circumcircle(s: Sketch) -> bool:
    """Through the corners of a triangle, a rectangle or a regular polygon."""
    for e in s.of("polygon"):
        a, b, c = e.points[:3]
        centre = np.linalg.solve(2 * np.stack([b - a, c - a]), np.array([b @ b - a @ a, c @ c - a @ a]))
        radius = float(np.hypot(*(a - centre)))
        if np.allclose(np.linalg.norm(e.points - centre, axis=1), radius) and _circle(
            s, centre, radius, s.d.chance(0.5)
        ):
            return True
    return False


def incircle(s: Sketch) -> bool:
    """Tangent to the three sides of a triangle."""
    for e in s.of("polygon"):
        if len(e.names) != 3:
            continue
        sides = np.linalg.norm(np.roll(e.points, -1, 0) - np.roll(e.points, 1, 0), axis=1)  # across from each corner
        centre = (e.points * sides[:, None]).sum(0) / sides.sum()
        if _circle(s, centre, 2 * e.length / float(sides.sum()), s.d.chance(0.5)):
            return True
    return False


def diameter_circle(s: Sketch) -> bool:
    """A circle that has a segment for its diameter."""
    return any(_circle(s, e.points.mean(0), e.length / 2, s.d.chance(0.4)) for e in s.of("segment")[:4])


def touching_circle(s: Sketch) -> bool:
    """A circle around a point, tangent to a segment."""
    for e in s.of("segment")[:4]:
        for name in s.d.shuffled(list(s.points))[:4]:
            centre = s.points[name]
            place = foot(centre, *e.points)
            along = float((place - e.points[0]) @ (e.points[1] - e.points[0])) / e.length**2
            if 0.12 < along < 0.88 and _circle(s, centre, float(np.hypot(*(centre - place))), True):
                return True
    return False


def second_circle(s: Sketch) -> bool:
    """A circle tangent to another from outside, or around the same centre."""
    for e in s.of("circle"):
        centre, radius = e.points[0], s.d.between(0.5, 0.8) * e.radius
        if s.d.chance(0.35):
            if _circle(s, centre, radius, False):
                return True
        elif _circle(s, centre + turned(np.array([e.radius + radius, 0.0]), s.d.between(0, 6.28)), radius, True):
            return True
    return False


def tangent(s: Sketch) -> bool:
    """From a point outside a circle, a segment that touches it."""
    for e in s.of("circle"):
        for name in [*s.d.shuffled(list(s.points))[:3], ""]:
            place = s.points[name] if name else s.spot()
            away = float(np.hypot(*(place - e.points[0])))
            if away < 1.35 * e.radius or (not name and not s.free(place)):
                continue
            turn = np.arccos(e.radius / away) * s.d.choice((1, -1))
            touch = e.points[0] + unit(turned(place - e.points[0], turn)) * e.radius
            if not s.free(touch) or not s.clear(place, touch, (place, touch)):
                continue
            s.segment(name or s.point(place), s.point(touch))
            return True
    return False


def chord(s: Sketch) -> bool:
    """A chord, a diameter or a radius of a circle."""
    for e in s.of("circle"):
        start = s.d.between(0, 2 * np.pi)
        kind = s.d.choice(("chord", "diameter", "radius"))
        first = e.points[0] + e.radius * np.array([np.cos(start), np.sin(start)])
        if kind == "radius":
            if e.names and _join_to(s, e.names[0], first):
                return True
            continue
        turn = np.pi if kind == "diameter" else s.d.between(1.2, 2.6)
        second = e.points[0] + e.radius * np.array([np.cos(start + turn), np.sin(start + turn)])
        centre = (e.points[0],) if kind == "diameter" else ()
        if s.free(first) and s.free(second) and s.clear(first, second, (first, second, *centre)):
            s.segment(s.point(first), s.point(second))
            return True
    return False


def angle_mark(s: Sketch) -> bool:
    """The mark of an angle between two segments that share an end."""
    marked = {(e.names[1], frozenset((e.names[0], e.names[2]))) for e in s.of("angle")}
    for first in s.of("segment"):
        for second in s.of("segment"):
            common = set(first.names) & set(second.names)
            if first is second or len(common) != 1:
                continue
            vertex = common.pop()
            arms = [next(n for n in e.names if n != vertex) for e in (first, second)]
            points = np.stack([s.points[arms[0]], s.points[vertex], s.points[arms[1]]])
            between = [
                e for e in s.elements if e.kind == "segment" and vertex in e.names and _within(e, vertex, points)
            ]
            if between or not 25 < degrees(points) < 150 or (vertex, frozenset(arms)) in marked:
                continue
            radius = min(0.1 * s.unit, 0.4 * min(first.length, second.length))
            s.elements.append(Element("angle", (arms[0], vertex, arms[1]), points, radius))
            return True
    return False


def _within(e: Element, vertex: str, points: np.ndarray) -> bool:
    """Whether a segment from the vertex runs inside the angle."""
    other = e.points[1] if e.names[0] == vertex else e.points[0]
    whole = degrees(points)
    parts = [degrees(np.stack([arm, points[1], other])) for arm in (points[0], points[2])]
    return min(parts) > 1 and abs(sum(parts) - whole) < 1


def lone_point(s: Sketch) -> bool:
    """A point on nothing, or on a circle or segment."""
    place = s.spot()
    if s.d.chance(0.5) and (lines := [*s.of("circle"), *s.of("segment")]):
        e = s.d.choice(lines)
        if e.kind == "circle":
            place = e.points[0] + turned(np.array([e.radius, 0.0]), s.d.between(0, 6.28))
        else:
            place = e.points[0] + (e.points[1] - e.points[0]) * s.d.between(0.2, 0.4)
    if not s.free(place):
        return False
    s.point(place)
    return True


FIGURES: tuple[Rule, ...] = (triangle, triangle, quadrilateral, quadrilateral, regular, circle, circle, pair)
ADDITIONS: tuple[Rule, ...] = (
    midpoint, altitude, bisector, parallel, perpendicular, diagonal, circumcircle, incircle, diameter_circle,
    touching_circle, second_circle, tangent, tangent, chord, chord, angle_mark, angle_mark, lone_point, circle, pair,
    triangle,
)  # fmt: skip


def construct(s: Sketch, additions: int) -> list[str]:
    """A figure and up to `additions` more; returns the names of the rules that found room."""
    done: list[str] = []
    while not done:
        rule = s.d.choice(FIGURES)
        if any(_attempt(s, rule) for _ in range(TRIES)):
            done.append(rule.__name__)
    for _ in range(additions):
        rule = s.d.choice(ADDITIONS)
        if any(_attempt(s, rule) for _ in range(TRIES)):
            done.append(rule.__name__)
    return done


def _attempt(s: Sketch, rule: Rule) -> bool:
    """One try of a rule; a rule that fails half-way leaves nothing behind."""
    points, elements = dict(s.points), list(s.elements)
    if len(s.points) < 16 and rule(s):
        return True
    s.points, s.elements = points, elements
    return False
