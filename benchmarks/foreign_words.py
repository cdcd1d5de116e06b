"""What is said of the pictures of foreign_scenes.py: plain statements, each checked, each clear beyond dispute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from foreign_nouns import Noun, apart, nouns
from foreign_pictures import SIDE, Thing

ABSENT = 0.18
BRIGHT = ("red", "yellow", "green", "blue", "purple")  # of these, no two are ever taken for each other
# Sides: 0 left, 1 right, 2 above, 3 below.
SAY_SIDE = (("left of", "to the left of"), ("right of", "to the right of"), ("above",), ("below",))
SAY_MOST = (
    ("leftmost", "on the left"),
    ("rightmost", "on the right"),
    ("topmost", "at the top"),
    ("", "at the bottom"),
)


@dataclass(frozen=True)
class Query:
    """An expression; targets: indices of the objects it means; distractors: of those it might be taken for."""

    text: str
    kind: str
    targets: tuple[int, ...] = ()
    distractors: tuple[int, ...] = ()


def beside(a: Thing, b: Thing, side: int) -> bool:
    """Whether a clearly lies on that side of b: past it, and more that way than another."""
    axis, sign = side // 2, 1 if side % 2 == 0 else -1
    along, across = (sign * (b.centre[k] - a.centre[k]) for k in (axis, 1 - axis))
    gap = b.box[axis] - a.box[axis + 2] if sign > 0 else a.box[axis] - b.box[axis + 2]
    return along >= 24 and gap >= -4 and along >= 1.2 * abs(across)


def gap_between(a: Thing, b: Thing) -> float:
    """Distance of two boxes."""
    dx, dy = (max(a.box[k] - b.box[k + 2], b.box[k] - a.box[k + 2], 0) for k in (0, 1))
    return math.hypot(dx, dy)


def wording(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]


class Truths:
    """Every plain statement about the things of a scene that is clear beyond dispute, by kind."""

    def __init__(self, things: Sequence[Thing], rng: np.random.Generator) -> None:
        self.things, self.rng = things, rng
        self.groups: dict[Noun, list[int]] = {}
        for i, thing in enumerate(things):
            self.groups.setdefault(thing.noun, []).append(i)
        self.single = {noun: group[0] for noun, group in self.groups.items() if len(group) == 1}
        self.found: dict[str, list[Query]] = {}
        for noun, group in self.groups.items():
            if len(group) == 1:
                text = wording(rng, [f"the {noun.said}", noun.said])
                self.add("noun", text, group, [i for i in range(len(things)) if i not in group])
            else:
                text = wording(rng, [f"all the {noun.plural}", f"the {noun.plural}"])
                self.add("all", text, group, [i for i in range(len(things)) if i not in group])
                self.places(noun, group)
                self.sizes(noun, group)
            self.colours(noun, group)
            for other, anchor in self.single.items():
                if other is not noun:
                    self.relations(noun, group, other, anchor)
        self.missing()

    def add(self, kind: str, text: str, targets: Sequence[int] = (), rivals: Sequence[int] = ()) -> None:
        others = tuple(i for i in rivals if i not in targets)
        self.found.setdefault(kind, []).append(Query(text, kind, tuple(targets), others))

    def places(self, noun: Noun, group: list[int]) -> None:
        for side, (most, at) in enumerate(SAY_MOST):
            axis, sign = side // 2, 1 if side % 2 == 0 else -1
            order = sorted(group, key=lambda i: sign * self.things[i].centre[axis])
            a, b = self.things[order[0]], self.things[order[1]]
            edges = [sign * (b.box[k] - a.box[k]) for k in (axis, axis + 2)]
            clear = sign * (b.centre[axis] - a.centre[axis])
            if clear < 24 or min(edges) < 8:
                continue
            texts = [f"the {most} {noun.said}"] if most else []
            here = a.centre[axis] / SIDE
            if len(group) == 2 and clear >= 48 and (here < 0.5 if sign > 0 else here > 0.5):
                texts.append(f"the {noun.said} {at}")
            if texts:
                self.add("place", wording(self.rng, texts), order[:1], group)

    def sizes(self, noun: Noun, group: list[int]) -> None:
        for sign, names in ((-1, ("largest", "biggest")), (1, ("smallest",))):
            order = sorted(group, key=lambda i: sign * self.things[i].whole)
            pair = [self.things[i] for i in order[:2]]
            small, big = pair if sign > 0 else pair[::-1]
            if big.whole >= 1.6 * small.whole and big.area >= 1.6 * small.area and big.extent >= 1.2 * small.extent:
                self.add("size", f"the {wording(self.rng, names)} {noun.said}", order[:1], group)

    def colours(self, noun: Noun, group: list[int]) -> None:
        own = [self.things[i].colours for i in group]
        if any(name in said for name in own[0] for said in noun.named):  # no "red red apple"
            return
        for name in own[0]:
            clear = [i for i, c in zip(group, own, strict=True) if c[name] >= 0.62]
            if len(clear) == 1 and all(c[name] <= 0.08 for i, c in zip(group, own, strict=True) if i not in clear):
                self.add("colour", f"the {name} {noun.said}", clear, group)
        bright = [[name for name in BRIGHT if c[name] >= 0.62] for c in own]
        if all(bright):
            for name in BRIGHT:
                if all(c[name] <= 0.03 for c in own):
                    self.add("absent: colour", f"the {name} {noun.said}")

    def relations(self, noun: Noun, group: list[int], other: Noun, anchor: int) -> None:
        b = self.things[anchor]
        for side, says in enumerate(SAY_SIDE):
            text = f"the {noun.said} {wording(self.rng, says)} the {other.said}"
            there = [i for i in group if beside(self.things[i], b, side)]
            against = [i for i in group if beside(self.things[i], b, side ^ 1)]
            axis, sign = side // 2, 1 if side % 2 == 0 else -1
            not_there = [i for i in group if sign * (self.things[i].centre[axis] - b.centre[axis]) > 0]
            if len(there) == 1 and len(there) + len(not_there) == len(group):
                self.add("relation", text, there, [*group, anchor])
            elif len(against) == len(group):
                self.add("absent: relation", text)
        gaps = sorted((gap_between(self.things[i], b), i) for i in group)
        text = f"the {noun.said} next to the {other.said}"
        if gaps[0][0] <= 18 and all(g >= 72 for g, _ in gaps[1:]):
            self.add("next to", text, [gaps[0][1]], [*group, anchor])
        elif gaps[0][0] >= 120:
            self.add("absent: relation", text)

    def missing(self) -> None:
        pool = [n for n in nouns() if all(apart(n, here) for here in self.groups)]
        for k in self.rng.choice(len(pool), 4, replace=False):
            absent, anchors = pool[k].said, [n.said for n in self.single]
            if anchors and self.rng.random() < 0.1:
                side = wording(self.rng, SAY_SIDE[self.rng.integers(4)])
                self.add("absent: noun", f"the {absent} {side} the {anchors[0]}")
            else:
                self.add("absent: noun", wording(self.rng, [f"the {absent}", f"the {absent}", absent]))

    def pick(self, count: int) -> list[Query]:
        """`count` queries of mixed kinds, those with a rival of the same name first where there are any."""
        present = {"noun": 5, "place": 5, "size": 3, "relation": 5, "next to": 2, "colour": 3, "all": 2}
        absent = {"absent: noun": 5, "absent: relation": 4, "absent: colour": 1}
        chosen: list[Query] = []
        for _ in range(count):
            for weights in (absent, present) if self.rng.random() < ABSENT else (present, absent):
                kinds = [k for k in weights if self.found.get(k)]
                if kinds:
                    share = np.array([weights[k] for k in kinds], float)
                    pool = self.found[kinds[self.rng.choice(len(kinds), p=share / share.sum())]]
                    hard = [q for q in pool if any(self.twin(q, d) for d in q.distractors)]
                    pick = hard if hard and self.rng.random() < 0.7 else pool
                    chosen.append(pick[self.rng.integers(len(pick))])
                    pool.remove(chosen[-1])
                    break
        return chosen

    def twin(self, query: Query, other: int) -> bool:
        return self.things[other].noun in {self.things[t].noun for t in query.targets}
