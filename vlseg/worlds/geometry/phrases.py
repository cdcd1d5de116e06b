"""Expressions about a diagram, each checked against every element it could mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlseg.worlds import wordings
from vlseg.worlds.draw import Draw
from vlseg.worlds.geometry import relations as rel
from vlseg.worlds.geometry.figures import Element, Kind
from vlseg.worlds.geometry.relations import Judge
from vlseg.worlds.geometry.sketch import LETTERS, Sketch

QUERY_KINDS = ("label", "attribute", "relation", "superlative", "all", "negation", "absent", "absent-hard")
WEIGHTS = {
    "label": 0.2, "attribute": 0.1, "relation": 0.26, "superlative": 0.1, "all": 0.12, "negation": 0.05, "absent": 0.07,
    "absent-hard": 0.1,
}  # fmt: skip
VERBS = {"goes": "go", "touches": "touch", "crosses": "cross", "bisects": "bisect", "lies": "lie"}


@dataclass(slots=True)
class Condition:
    """Words behind (or before) a noun, and what they say. about: the elements that they mention."""

    words: str
    judge: Judge
    about: tuple[Element, ...] = ()
    before: bool = False


def _seen(test: Callable[[Element], bool]) -> Judge:
    return lambda e: "yes" if test(e) else "no"


def _has_colour(colour: str) -> Judge:
    return _seen(lambda e: e.look.colour == colour)


def _measures(word: str) -> Judge:
    return lambda e: rel.kind_of_angle(e, word)


_HUES = tuple((colour, _has_colour(colour)) for colour in ("red", "blue", "green", "orange", "purple"))
_PEN = (("dashed", _seen(lambda e: e.look.dash is not None)), ("solid", _seen(lambda e: e.look.dash is None)))
_SHADED = (("shaded", _seen(lambda e: e.look.shaded)),)
# The sides of a polygon may differ in colour, so it has none; nor is a polygon dashed.
ATTRIBUTES: dict[Kind, tuple[tuple[str, Judge], ...]] = {
    "point": _HUES,
    "segment": (*_HUES, *_PEN, *_PEN),
    "circle": (*_HUES, *_PEN, *_SHADED, *_SHADED),
    "polygon": _SHADED,
    "angle": tuple((word, _measures(word)) for word in ("right", "acute", "obtuse")),
}


@dataclass(slots=True)
class Asked:
    """One expression. targets, distractors: indices of elements."""

    text: str
    kind: str
    targets: tuple[int, ...]
    distractors: tuple[int, ...]


class Asker:
    """Asks about one finished diagram."""

    def __init__(self, sketch: Sketch, d: Draw):
        self.s, self.d = sketch, d
        self.elements = sketch.elements
        self.index = {id(e): i for i, e in enumerate(self.elements)}

    def ask(self, count: int, weights: dict[str, float] | None = None) -> list[Asked]:
        """Up to `count` different expressions."""
        weights = weights or WEIGHTS
        made: dict[str, Asked] = {}
        for _ in range(count * 3):
            kind = self.d.weighted(list(weights), list(weights.values()))
            rule = getattr(self, "_" + kind.replace("-", "_"))
            for _ in range(30):  # most conditions fit nothing, or more than one
                asked = rule()
                if asked is not None and asked.text not in made:
                    made[asked.text] = asked
                    break
            if len(made) == count:
                break
        return list(made.values())

    # pieces ----------------------------------------------------------------------------------------------------------
    def of(self, kind: Kind) -> list[Element]:
        """All elements of a kind."""
        return [e for e in self.elements if e.kind == kind]

    def subject(self) -> tuple[str, list[Element]] | None:
        """A noun and everything it could mean."""
        kind: Kind = self.d.weighted(("segment", "circle", "point", "polygon", "angle"), (4, 2, 2.5, 1.2, 1.2))
        found = self.of(kind)
        if not found:
            return None
        if kind == "polygon":
            word = self.d.choice(found).word
            # A square is a rectangle, too, and a rhombus a parallelogram: only what cannot be taken for another.
            same = [e for e in found if len(e.names) == len(self._first(found, word).names)]
            return (word, found) if all(e.word == word for e in same) else ("polygon", found)
        noun = self.d.choice(("segment", "line segment", "line")) if kind == "segment" else kind
        return noun, found

    def _first(self, found: Sequence[Element], word: str) -> Element:
        return next(e for e in found if e.word == word)

    def fits_noun(self, noun: str, e: Element) -> rel.Fit:
        """Whether an element is what a noun says."""
        return "yes" if e.kind != "polygon" or noun in ("polygon", e.word) else "no"

    def name_of(self, e: Element) -> str:
        """How an element is called by its letters; "" where it has none."""
        d = self.d
        if e.kind == "point":
            return f"point {e.names[0]}"
        if e.kind == "segment":
            noun = "side" if e.side and d.chance(0.35) else d.choice(("segment", "segment", "line segment"))
            return f"{noun} {''.join(e.names if d.chance(0.6) else e.names[::-1])}"
        if e.kind == "polygon":
            start = d.below(len(e.names))
            names = e.names[start:] + e.names[:start]
            return f"{e.word} {''.join(names if d.chance(0.6) else names[::-1])}"
        if e.kind == "angle":
            return f"angle {''.join(e.names if d.chance(0.5) else e.names[::-1])}"
        if e.names and sum(c.kind == "circle" and c.names == e.names for c in self.elements) == 1:
            name = e.names[0]
            return d.choice((f"circle {name}", f"the circle with center {name}", f"the circle centered at {name}"))
        return ""

    def finished(self, noun: str, found: Sequence[Element], condition: Condition, kind: str) -> Asked | None:
        """The expression of a noun and a condition, where every candidate is clearly in or out."""
        fits = {id(e): rel.both(self.fits_noun(noun, e), self._judged(e, condition)) for e in found}
        if "open" in fits.values():
            return None
        hits = [e for e in found if fits[id(e)] == "yes"]
        absent = kind.startswith("absent")
        if absent != (not hits) or (kind in ("relation", "attribute", "superlative") and len(hits) != 1):
            return None
        if kind == "all" and len(hits) < 2:
            return None
        return self._said(noun, hits, found, condition, kind)

    def _judged(self, e: Element, condition: Condition) -> rel.Fit:
        return "no" if any(e is other for other in condition.about) else condition.judge(e)

    def _said(
        self, noun: str, hits: Sequence[Element], found: Sequence[Element], condition: Condition, kind: str
    ) -> Asked:
        many = len(hits) > 1
        name, words = (plural(noun), in_plural(condition.words)) if many else (noun, condition.words)
        body = f"{words} {name}" if condition.before else f"{name} {words}"
        core = f"{self.d.choice(('all the', 'all', 'every one of the'))} {body}" if many else f"the {body}"
        targets = tuple(self.index[id(e)] for e in hits)
        others = tuple(self.index[id(e)] for e in found if self.index[id(e)] not in targets)
        return Asked(wordings.framed(core, many, core, self.d), kind, targets, others)

    # conditions ------------------------------------------------------------------------------------------------------
    def relation(self, kind: Kind) -> Condition | None:
        """A condition on elements of `kind` that mentions another element."""
        options: dict[Kind, tuple[Callable[[], Condition | None], ...]] = {
            "segment": (self._to_segment, self._to_segment, self._to_circle, self._through),
            "circle": (self._touching, self._touching, self._around, self._through),
            "point": (self._on, self._middle, self._on),
            "polygon": (self._corner,),
            "angle": (self._vertex,),
        }
        return self.d.choice(options[kind])()

    def _mention(self, kind: Kind) -> tuple[Element, str] | None:
        found = self.of(kind)
        if not found:
            return None
        e = self.d.choice(found)
        name = self.name_of(e)
        return (e, name) if name else None

    def _to_segment(self) -> Condition | None:
        other = self._mention("segment")
        if other is None:
            return None
        t, name = other
        words, judge = self.d.choice(
            (
                ("parallel to {}", rel.parallel),
                ("perpendicular to {}", rel.perpendicular),
                ("with the same length as {}", rel.equally_long),
                ("as long as {}", rel.equally_long),
                ("that bisects {}", rel.bisects),
                ("that crosses {}", rel.crosses),
            )
        )
        return Condition(words.format(name), lambda e: judge(e, t), (t,))

    def _to_circle(self) -> Condition | None:
        other = self._mention("circle")
        circles = self.of("circle")
        if other is None and len(circles) == 1:
            other = circles[0], "the circle"
        if other is None:
            return None
        c, name = other
        words, judge = self.d.choice(
            (
                ("tangent to {}", lambda s: rel.tangent(c, s)),
                ("that touches {}", lambda s: rel.tangent(c, s)),
                ("that is a diameter of {}", lambda s: rel.is_diameter(s, c)),
                ("that is a radius of {}", lambda s: rel.is_radius(s, c)),
                ("that is a chord of {}", lambda s: rel.is_chord(s, c)),
            )
        )
        return Condition(words.format(name), judge, (c,))

    def _through(self) -> Condition | None:
        other = self._mention("point")
        if other is None:
            return None
        p, name = other
        words = self.d.choice(("passing through {}", "that goes through {}", "through {}"))
        return Condition(words.format(name), lambda e: rel.passes(e, p.points[0]), (p,))

    def _touching(self) -> Condition | None:
        other = self._mention(self.d.choice(("segment", "segment", "circle")))
        if other is None:
            return None
        t, name = other
        words = self.d.choice(("tangent to {}", "that touches {}"))
        return Condition(words.format(name), lambda e: rel.tangent(e, t), (t,))

    def _around(self) -> Condition | None:
        other = self._mention("point")
        if other is None:
            return None
        p, name = other
        words = self.d.choice(("with center {}", "centered at {}", "around {}"))
        return Condition(words.format(name.removeprefix("point ")), lambda e: rel.centred(e, p.points[0]), (p,))

    def _on(self) -> Condition | None:
        other = self._mention(self.d.choice(("segment", "circle")))
        if other is None:
            return None
        t, name = other
        words = self.d.choice(("on {}", "that lies on {}"))
        return Condition(words.format(name), lambda e: rel.lies_on(e, t), (t,))

    def _middle(self) -> Condition | None:
        other = self._mention("segment")
        if other is None:
            return None
        t, name = other
        words = self.d.choice(("in the middle of {}", "that is the midpoint of {}", "halfway along {}"))
        return Condition(words.format(name), lambda e: rel.middle_of(e, t), (t,))

    def _corner(self) -> Condition | None:
        other = self._mention("point")
        if other is None:
            return None
        p, name = other
        words = self.d.choice(("with a corner at {}", "with a vertex at {}"))
        return Condition(words.format(name), lambda e: rel.has_corner(e, p.points[0]), (p,))

    def _vertex(self) -> Condition | None:
        other = self._mention("point")
        if other is None:
            return None
        p, name = other
        words = self.d.choice(("at {}", "with its vertex at {}"))
        judge: Judge = lambda e: rel.graded(float(np.hypot(*(e.points[1] - p.points[0]))), rel.EXACT, rel.NEAR)  # noqa: E731
        return Condition(words.format(name), judge, (p,))

    def attribute(self, kind: Kind) -> Condition | None:
        """What is seen on the element itself."""
        words, judge = self.d.choice(ATTRIBUTES[kind])
        return Condition(words, judge, before=True)

    # kinds of expression ---------------------------------------------------------------------------------------------
    def _label(self) -> Asked | None:
        e = self.d.choice(self.elements)
        name = self.name_of(e)
        if not name:
            return None
        if e.kind == "segment" and any(t is not e and rel.share_ink(e, t) for t in self.of("segment")):
            return None
        others = tuple(i for i, t in enumerate(self.elements) if t.kind == e.kind and t is not e)
        return Asked(wordings.framed(name, False, name, self.d), "label", (self.index[id(e)],), others)

    def _with(self, source: str, kind: str) -> Asked | None:
        picked = self.subject()
        if picked is None:
            return None
        noun, found = picked
        condition = getattr(self, source)(found[0].kind)
        return None if condition is None else self.finished(noun, found, condition, kind)

    def _attribute(self) -> Asked | None:
        return self._with("attribute", "attribute")

    def _relation(self) -> Asked | None:
        return self._with("relation", "relation")

    def _all(self) -> Asked | None:
        return self._with("relation" if self.d.chance(0.6) else "attribute", "all")

    def _absent_hard(self) -> Asked | None:
        return self._with("relation" if self.d.chance(0.7) else "attribute", "absent-hard")

    def _superlative(self) -> Asked | None:
        picked = self.subject()
        if picked is None:
            return None
        noun, found = picked
        if not all(self.fits_noun(noun, e) == "yes" for e in found):
            return None
        unit, kind = self.s.unit, found[0].kind
        place = [
            ("leftmost", lambda e: -e.middle[0], 0.08 * unit),
            ("rightmost", lambda e: e.middle[0], 0.08 * unit),
            ("topmost", lambda e: -e.middle[1], 0.08 * unit),
            ("lowest", lambda e: e.middle[1], 0.08 * unit),
        ]
        if kind == "segment":
            place = [("longest", lambda e: float(np.log(e.length)), 0.14)]
        elif kind != "point":
            place += [
                ("largest", lambda e: float(np.log(e.length)), 0.25),
                ("smallest", lambda e: -np.log(e.length), 0.25),
            ]
        word, value, margin = self.d.choice(place)
        judge = rel.stands_out(found, value, margin)
        return None if judge is None else self.finished(noun, found, Condition(word, judge, before=True), "superlative")

    def _negation(self) -> Asked | None:
        picked = self.subject()
        if picked is None or len(picked[1]) < 2:
            return None
        noun, found = picked
        condition = self.relation(found[0].kind)
        if condition is None or condition.words.startswith(
            ("through", "around", "at ", "with", "in ", "on ", "halfway")
        ):
            return None
        if condition.about and condition.about[0].kind == found[0].kind:
            return None  # whether the one that is mentioned counts is open
        words = condition.words
        if in_plural(words).startswith("that ") and not words.startswith("that is "):
            words = f"that does not {in_plural(words).removeprefix('that ')}"
        else:
            words = f"that is not {words.removeprefix('that is ')}"
        inner = condition.judge
        flip = {"yes": "no", "no": "yes", "open": "open"}
        denied = Condition(words, lambda e: flip[inner(e)], condition.about)  # type: ignore[arg-type,return-value]
        fits = [self._judged(e, denied) for e in found]
        if "no" not in fits or fits.count("yes") != 1:
            return None
        return self.finished(noun, found, denied, "negation")

    def _absent(self) -> Asked | None:
        """A letter that is not there, or a kind of thing that is not."""
        d = self.d
        lacking: tuple[Kind, ...] = ("circle", "polygon", "angle")
        kinds = [k for k in lacking if not self.of(k)]
        if len(self.of("segment")) > 2 and "polygon" in kinds:
            kinds.remove("polygon")  # three lines may make a triangle
        if kinds and d.chance(0.4):
            noun = {"circle": "circle", "polygon": "triangle", "angle": "marked angle"}[d.choice(kinds)]
            core = f"the {noun}"
        else:
            unused = [x for x in LETTERS if x not in self.s.points]
            if not unused or not self.s.points:
                return None
            gone, there = d.choice(unused), d.choice(list(self.s.points))
            core = d.choice((f"point {gone}", f"segment {there}{gone}", f"circle {gone}", f"segment {gone}{there}"))
        return Asked(wordings.framed(core, False, core, d), "absent", (), ())


def plural(noun: str) -> str:
    """The plural of a kind of element."""
    return "rhombuses" if noun == "rhombus" else f"{noun}s"


def in_plural(words: str) -> str:
    """A clause about several: "that touches" becomes "that touch", "that is a chord of" "that are chords of"."""
    if words.startswith("that is "):
        rest = words.removeprefix("that is ")
        for one, many in (("a diameter", "diameters"), ("a radius", "radii"), ("a chord", "chords")):
            rest = rest.replace(one, many)
        return f"that are {rest.replace('the midpoint', 'midpoints')}"
    for one, many in VERBS.items():
        if words.startswith(f"that {one} "):
            return f"that {many} {words.removeprefix(f'that {one} ')}"
    return words
