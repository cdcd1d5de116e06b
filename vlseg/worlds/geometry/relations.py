"""What is true of the elements of a diagram: yes, no, or open.

Relations are measured, not remembered from the construction, so what came about by chance counts too. "open" is what
a person could take for true although it is not, or the other way round; no expression rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vlseg.worlds.geometry.figures import Element, degrees, distance_to
from vlseg.worlds.nouns import Fit

Judge = Callable[[Element], Fit]

EXACT, NEAR = 0.25, 6.0  # pixels at a 256-pixel diagram: true within, open within
ANGLE_EXACT, ANGLE_NEAR = 0.2, 9.0  # degrees


def graded(value: float, exact: float, near: float) -> Fit:
    """Yes within `exact`, open within `near`, else no."""
    return "yes" if value <= exact else "open" if value <= near else "no"


def both(*fits: Fit) -> Fit:
    """Yes where all are, no where one is not, else open."""
    return "no" if "no" in fits else "open" if "open" in fits else "yes"


def direction(s: Element) -> float:
    """Of a segment, in degrees, 0 to 180."""
    along = s.points[1] - s.points[0]
    return float(np.degrees(np.arctan2(along[1], along[0]))) % 180


def turn_between(s: Element, t: Element) -> float:
    """Angle between two segments' lines, 0 to 90 degrees."""
    apart = abs(direction(s) - direction(t))
    return min(apart, 180 - apart)


def share_ink(s: Element, t: Element) -> bool:
    """Two segments that lie (partly) on one line, so that one could be taken for part of the other."""
    if turn_between(s, t) > ANGLE_NEAR:
        return False
    return bool(min(distance_to(s, t.points).min(), distance_to(t, s.points).min()) < NEAR)


def parallel(s: Element, t: Element) -> Fit:
    """Whether two segments are parallel; on one line it is open."""
    return "open" if share_ink(s, t) else graded(turn_between(s, t), ANGLE_EXACT, ANGLE_NEAR)


def perpendicular(s: Element, t: Element) -> Fit:
    """Whether the lines of two segments meet at right angles."""
    return graded(90 - turn_between(s, t), ANGLE_EXACT, ANGLE_NEAR)


def equally_long(s: Element, t: Element) -> Fit:
    """Whether two segments have the same length."""
    longer, shorter = max(s.length, t.length), min(s.length, t.length)
    return graded(longer / shorter - 1, 0.005, 0.12)


def passes(e: Element, point: np.ndarray) -> Fit:
    """Whether a circle, a segment (not only its line) or an outline runs through a point, (2,)."""
    if e.kind == "segment" and min(np.linalg.norm(e.points - point, axis=1)) < 2 * NEAR:
        return "open"  # "passes through" of its own end
    return graded(float(distance_to(e, point)), EXACT, NEAR)


def lies_on(p: Element, e: Element) -> Fit:
    """Whether a point lies on a circle or a segment; of a segment's ends it is open."""
    return passes(e, p.points[0])


def middle_of(p: Element, s: Element) -> Fit:
    """Whether a point is the midpoint of a segment."""
    return graded(float(np.hypot(*(p.points[0] - s.points.mean(0)))), EXACT, max(NEAR, 0.12 * s.length))


def tangent(c: Element, e: Element) -> Fit:
    """Whether a circle touches a segment or another circle in one place."""
    if e.kind == "circle":
        apart = float(np.hypot(*(c.points[0] - e.points[0])))
        outside, within = abs(apart - c.radius - e.radius), abs(apart - abs(c.radius - e.radius))
        return graded(min(outside, within), EXACT, NEAR)
    a, b = e.points
    along = (b - a) / e.length
    place = float((c.points[0] - a) @ along)
    away = abs(float(np.hypot(*(c.points[0] - a - along * place))) - c.radius)
    fit = graded(away, EXACT, NEAR)
    if fit != "no" and not -EXACT <= place <= e.length + EXACT:
        return "no" if min(abs(place), abs(place - e.length)) > 2 * NEAR else "open"  # its extension touches
    return fit


def centred(c: Element, point: np.ndarray) -> Fit:
    """Whether a circle is drawn around a point, (2,)."""
    return graded(float(np.hypot(*(c.points[0] - point))), EXACT, NEAR)


def is_chord(s: Element, c: Element) -> Fit:
    """Whether both ends of a segment lie on a circle."""
    return both(*(graded(float(distance_to(c, p)), EXACT, NEAR) for p in s.points))


def is_diameter(s: Element, c: Element) -> Fit:
    """A chord through the centre."""
    return both(is_chord(s, c), graded(float(distance_to(s, c.points[0])), EXACT, NEAR))


def is_radius(s: Element, c: Element) -> Fit:
    """From the centre to the circle."""
    ends = [
        both(
            graded(float(np.hypot(*(s.points[i] - c.points[0]))), EXACT, NEAR),
            graded(float(distance_to(c, s.points[1 - i])), EXACT, NEAR),
        )
        for i in (0, 1)
    ]
    return "yes" if "yes" in ends else "open" if "open" in ends else "no"


def bisects(s: Element, t: Element) -> Fit:
    """Whether a segment runs through the midpoint of another, not along it."""
    if share_ink(s, t):
        return "open"
    return graded(float(distance_to(s, t.points.mean(0))), EXACT, max(NEAR, 0.12 * t.length))


def crosses(s: Element, t: Element) -> Fit:
    """Whether two segments cross at inner points of both."""
    if share_ink(s, t):
        return "open"
    (a, b), (c, x) = s.points, t.points
    system = np.stack([b - a, c - x], 1)
    if abs(np.linalg.det(system)) < 1e-9:
        return "no"
    shares = np.linalg.solve(system, c - a)
    inner = [min(u, 1 - u) * length for u, length in zip(shares, (s.length, t.length), strict=True)]
    return "yes" if min(inner) > NEAR else "open" if min(inner) > -NEAR else "no"


def has_corner(e: Element, point: np.ndarray) -> Fit:
    """Whether a point is a corner of a polygon or the end of a segment."""
    return graded(float(np.linalg.norm(e.points - point, axis=1).min()), EXACT, NEAR)


def kind_of_angle(e: Element, word: str) -> Fit:
    """Whether an angle is "right", "acute" or "obtuse"."""
    off = degrees(e.points) - 90
    if word == "right":
        return graded(abs(off), ANGLE_EXACT, ANGLE_NEAR)
    wanted = -off if word == "acute" else off
    return "yes" if wanted > ANGLE_NEAR else "no" if abs(off) < ANGLE_EXACT or wanted < -ANGLE_NEAR else "open"


def stands_out(candidates: Sequence[Element], value: Callable[[Element], float], margin: float) -> Judge | None:
    """The judge of "the one of greatest value": None unless it leads by `margin` and the others are no look-alikes."""
    ranked = sorted(candidates, key=value, reverse=True)
    if len(ranked) < 2 or value(ranked[0]) - value(ranked[1]) < margin:
        return None
    return lambda e: "yes" if e is ranked[0] else "no"
