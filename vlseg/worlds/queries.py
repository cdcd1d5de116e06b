"""Expressions about a scene whose truth is checked: a kind is drawn, then words of that kind until some hold."""

from __future__ import annotations

from collections.abc import Callable

from vlseg.worlds.absent import absent, absent_hard
from vlseg.worlds.draw import Draw
from vlseg.worlds.grammar import Asked
from vlseg.worlds.present import colour, name, position, relation, size, superlative
from vlseg.worlds.referents import Referents
from vlseg.worlds.scene import Scene, SceneQuery
from vlseg.worlds.several import everyone, negation

# Weights of the kinds. The two kinds of absence keep their share; what a scene does not admit falls to another kind.
KINDS: dict[str, float] = {
    "name": 0.12,
    "colour": 0.16,
    "size": 0.08,
    "superlative": 0.14,
    "relation": 0.21,
    "all": 0.08,
    "negation": 0.09,
    "position": 0.05,
    "absent": 0.08,
    "absent-hard": 0.12,
}
MAKERS: dict[str, Callable[[Referents, Draw], Asked | None]] = {
    "name": name,
    "colour": colour,
    "size": size,
    "superlative": superlative,
    "relation": relation,
    "all": everyone,
    "negation": negation,
    "position": position,
    "absent": absent,
    "absent-hard": absent_hard,
}
TRIES = {"relation": 12, "colour": 6, "negation": 8, "absent-hard": 8}


def ask(scene: Scene, count: int, kinds: dict[str, float] | None, d: Draw) -> list[SceneQuery]:
    """Up to ``count`` queries with different texts; ``kinds``: weights in place of ``KINDS``."""
    weights = KINDS if kinds is None else {k: w for k, w in kinds.items() if w > 0}
    missing = [k for k in weights if k.startswith("absent")]
    present = [k for k in weights if not k.startswith("absent")]
    if not scene.objects or not weights:
        return []
    referents = Referents(scene)
    out: list[SceneQuery] = []
    said: set[str] = set()
    for _ in range(count):
        first = d.weighted(list(weights), list(weights.values()))
        others = [k for k in (missing if first in missing else present) if k != first]
        order = [first]
        while others:
            pick = d.weighted(others, [weights[k] for k in others])
            others.remove(pick)
            order.append(pick)
        query = _first_that_holds(order, referents, said, d)
        if query is not None:
            said.add(query.text.lower())
            out.append(query)
    return out


def _first_that_holds(order: list[str], referents: Referents, said: set[str], d: Draw) -> SceneQuery | None:
    for kind in order:
        for _ in range(TRIES.get(kind, 4)):
            asked = MAKERS[kind](referents, d)
            if asked is not None and asked.text.lower() not in said:
                return SceneQuery(asked.text, kind, asked.targets, asked.distractors, asked.nouns, asked.anchors)
    return None
