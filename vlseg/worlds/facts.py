"""What is true between objects, in three values: True, False, or None where a careful person would not decide.

Lengths are pixels; margins are shares of the image's short side or of its width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import hypot

from vlseg.worlds.scene import Scene, SceneObject

Truth = bool | None


class Facts:
    """The geometry of a scene's objects.

    Centres are those of the visible boxes; n objects, indices as in ``scene.objects``.
    """

    def __init__(self, scene: Scene) -> None:
        self.objects: list[SceneObject] = scene.objects
        self.h, self.w = scene.ids.shape
        self.short = min(self.h, self.w)
        self.cx = [(o.box[0] + o.box[2]) / 2 for o in self.objects]
        self.cy = [(o.box[1] + o.box[3]) / 2 for o in self.objects]
        self.wide = [o.box[2] - o.box[0] for o in self.objects]
        self.high = [o.box[3] - o.box[1] for o in self.objects]

    def side(self, relation: str, x: int, y: int) -> Truth:
        """Whether x is left of, right of, above or below y: clearly apart, and more so than across."""
        if relation in ("left", "right"):
            along, across = self.cx[y] - self.cx[x], abs(self.cy[y] - self.cy[x])
            reach = (self.wide[x] + self.wide[y]) / 2
        else:
            along, across = self.cy[y] - self.cy[x], abs(self.cx[y] - self.cx[x])
            reach = (self.high[x] + self.high[y]) / 2
        if relation in ("right", "below"):
            along = -along
        if along > max(0.07 * self.short, 0.5 * reach) and across <= 1.3 * along:
            return True
        if along < -0.02 * self.short:
            return False
        return None

    def gap(self, x: int, y: int) -> float:
        """Pixels between the visible boxes; 0 where they touch or overlap."""
        a, b = self.objects[x].box, self.objects[y].box
        dx, dy = max(a[0], b[0]) - min(a[2], b[2]), max(a[1], b[1]) - min(a[3], b[3])
        return hypot(max(dx, 0.0), max(dy, 0.0))

    def distance(self, x: int, y: int) -> float:
        """Pixels between the centres."""
        return hypot(self.cx[x] - self.cx[y], self.cy[x] - self.cy[y])

    def next_to(self, x: int, y: int) -> Truth:
        """Whether x stands beside y: a small gap, nothing far."""
        gap = self.gap(x, y)
        if gap <= 0.06 * self.short and self.distance(x, y) <= 0.42 * self.short:
            return True
        if gap >= 0.22 * self.short:
            return False
        return None

    def between(self, x: int, a: int, b: int) -> Truth:
        """Whether x lies between a and b."""
        ux, uy = self.cx[b] - self.cx[a], self.cy[b] - self.cy[a]
        length = hypot(ux, uy)
        if length < 0.25 * self.short:
            return None
        vx, vy = self.cx[x] - self.cx[a], self.cy[x] - self.cy[a]
        along, off = (ux * vx + uy * vy) / length**2, abs(ux * vy - uy * vx) / length
        if 0.25 <= along <= 0.75 and off <= 0.2 * length:
            return True
        if along < -0.05 or along > 1.05 or off > 0.75 * length:
            return False
        return None

    def colour(self, word: str, x: int) -> Truth:
        """Whether a colour word is true of x."""
        word = "gray" if word == "grey" else word
        if word in self.objects[x].colours:
            return True
        return None if word in self.objects[x].open_colours else False

    def place(self, place: str, x: int) -> Truth:
        """Whether x is in a named part of the picture."""
        u, v = self.cx[x] / self.w, self.cy[x] / self.h
        if place == "middle":
            off = max(abs(u - 0.5), abs(v - 0.5))
            return True if off < 0.12 else False if off > 0.24 else None
        parts = place.split()
        corner = len(parts) == 2
        values = []
        for part in parts:
            share = {"left": u, "right": 1 - u, "top": v, "bottom": 1 - v}[part]
            values.append(True if share < (0.36 if corner else 0.4) else False if share > 0.55 else None)
        if False in values:
            return False
        return None if None in values else True

    def key(self, way: str, x: int) -> float:
        """What a superlative sorts by, smallest first: "left", "right", "top", "bottom", "large" or "small"."""
        if way in ("left", "right"):
            return self.cx[x] if way == "left" else -self.cx[x]
        if way in ("top", "bottom"):
            return self.cy[x] if way == "top" else -self.cy[x]
        return -self.objects[x].area if way == "large" else float(self.objects[x].area)

    def order(self, way: str, group: Sequence[int]) -> list[int] | None:
        """``group`` in the order of ``way`` where each step is clear, else None."""
        ranked = sorted(group, key=lambda x: self.key(way, x))
        return ranked if all(self.before(way, a, b) for a, b in pairwise(ranked)) else None

    def first(self, way: str, group: Sequence[int]) -> int | None:
        """The one that clearly comes first in the order of ``way``, else None."""
        best = min(group, key=lambda x: self.key(way, x))
        return best if all(self.before(way, best, x) for x in group if x != best) else None

    def before(self, way: str, a: int, b: int) -> bool:
        """Whether a clearly comes before b in the order of ``way``."""
        if way in ("large", "small"):
            big, tiny = (a, b) if way == "large" else (b, a)
            return self.larger(big, tiny, 1.5)
        p, q = self.objects[a].box, self.objects[b].box
        lead = self.key(way, b) - self.key(way, a)
        edge = {"left": q[0] - p[0], "right": p[2] - q[2], "top": q[1] - p[1], "bottom": p[3] - q[3]}[way]
        return lead > 0.06 * self.short and edge > 0.02 * self.short

    def larger(self, big: int, tiny: int, ratio: float) -> bool:
        """Whether ``big`` is clearly larger: in visible and whole area by ``ratio``, and in extent."""
        p, q = self.objects[big], self.objects[tiny]
        if p.area < ratio * q.area or p.full_area < ratio * q.full_area:
            return False
        return hypot(self.wide[big], self.high[big]) > 1.12 * hypot(self.wide[tiny], self.high[tiny])

    def nearest(self, group: Sequence[int], anchor: int) -> int | None:
        """The member of ``group`` that is clearly closest to ``anchor``, by centres and by gaps."""
        best = min(group, key=lambda x: self.distance(x, anchor))
        for x in group:
            if x == best:
                continue
            if self.distance(x, anchor) < 1.2 * self.distance(best, anchor) + 0.05 * self.short:
                return None
            if self.gap(x, anchor) < self.gap(best, anchor) + 0.05 * self.short:
                return None
        return best

    def farthest(self, group: Sequence[int], anchor: int) -> int | None:
        """The member of ``group`` that is clearly farthest from ``anchor``."""
        best = max(group, key=lambda x: self.distance(x, anchor))
        for x in group:
            if x == best:
                continue
            if self.distance(best, anchor) < 1.2 * self.distance(x, anchor) + 0.05 * self.short:
                return None
            if self.gap(best, anchor) < self.gap(x, anchor) + 0.05 * self.short:
                return None
        return best
