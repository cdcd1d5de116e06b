"""Expressions without a referent: easy ones (the noun is not there) and hard ones (only the rest is not)."""

from __future__ import annotations

from vlseg.worlds import wordings
from vlseg.worlds.draw import Draw
from vlseg.worlds.grammar import (
    PLACES,
    Asked,
    Predicate,
    colour_predicate,
    colour_word,
    only,
    place_predicate,
    relation_predicate,
    sentence,
    tintless,
    true_colour,
)
from vlseg.worlds.referents import Referents, countable
from vlseg.worlds.several import all_of


def _about(r: Referents, phrase: str, subgroup: str | None, d: Draw) -> Asked:
    """Some expression about ``phrase``, which names nobody here."""
    pick = d.unit()
    anchors: tuple[int, ...] = ()
    nouns: tuple[str, ...] = (phrase,)
    if pick < 0.5:
        text = sentence("", phrase, "", False, d)
    elif pick < 0.62 and tintless(phrase):
        text = sentence(colour_word(d), phrase, "", False, d)
    elif pick < 0.72:
        way = d.choice(tuple(wordings.ENDS))
        text = sentence(d.choice(wordings.ENDS[way][0]), phrase, "", False, d)
    elif pick < 0.84:
        predicate = relation_predicate(r, d, ()) or place_predicate(r, d.choice(PLACES), d)
        anchors, nouns = predicate.anchors, (phrase, *predicate.nouns)
        text = sentence("", phrase, predicate.words, False, d)
    elif pick < 0.93:
        text = all_of(phrase, "", "", d.choice((1, 2)), d)
    else:
        text = sentence("", phrase, d.choice(wordings.PLACES[d.choice(PLACES)]), False, d)
    return Asked(text, (), r.distractors((), anchors, subgroup), nouns, anchors)


def absent(r: Referents, d: Draw) -> Asked | None:
    """The noun is not there at all."""
    phrase = r.nobody(d)
    return None if phrase is None else _about(r, phrase, None, d)


def absent_hard(r: Referents, d: Draw) -> Asked | None:
    """The noun is there and its attribute is not; or its look-alike is there; or what it is said to be near is not."""
    pick = d.unit()
    if pick < 0.22 or not r.groups:
        found = r.look_alike(d)
        return None if found is None else _about(r, *found, d)
    group = d.choice(r.multis) if r.multis and d.chance(0.6) else d.choice(r.groups)
    members, phrase = group.members, group.phrase(d)
    if pick < 0.29:
        return _missing_anchor(r, members, phrase, d)
    if pick < 0.34 and countable(phrase) and len(members) < 4:
        word = wordings.ORDINALS[d.below(4 - len(members)) + len(members)]
        side = d.choice(("left", "right", "top", "bottom"))
        text = sentence(word, phrase, f"from the {side}", False, d, link=False)
        return Asked(text, (), r.distractors((), members), (phrase,))
    predicate = _untrue(r, members, d)
    if predicate is None or (predicate.before and not tintless(phrase)):
        return None
    before, after = (predicate.words, "") if predicate.before else ("", predicate.words)
    if len(members) > 1 and d.chance(0.2):
        text = all_of(phrase, before, after, 1, d)
    else:
        text = sentence(before, phrase, after, False, d)
    near = (*members, *predicate.anchors)
    return Asked(text, (), r.distractors((), near), (phrase, *predicate.nouns), predicate.anchors)


def _untrue(r: Referents, members: tuple[int, ...], d: Draw) -> Predicate | None:
    """What clearly holds for none of the members: mostly a relation to something that is there.

    Without many of these a model takes any relation for true where both things are in sight.
    """
    kind = d.weighted(("colour", "relation", "place"), (0.28, 0.56, 0.16))
    for _ in range(6):
        predicate: Predicate | None
        if kind == "colour":
            others = tuple(x for x in r.everyone if x not in members)
            word = true_colour(r, others, d) if others and d.chance(0.6) else colour_word(d)
            predicate = colour_predicate(r, word)
        elif kind == "relation":
            predicate = relation_predicate(r, d, members)
        else:
            predicate = place_predicate(r, d.choice(PLACES), d)
        if predicate is not None and only(members, predicate) == ():
            return predicate
    return None


def _missing_anchor(r: Referents, members: tuple[int, ...], phrase: str, d: Draw) -> Asked | None:
    """ "the dog next to the zebra" where no zebra is."""
    other = r.nobody(d)
    if other is None:
        return None
    relation = d.choice(("left", "right", "above", "below", "next", "next"))
    text = sentence("", phrase, f"{d.choice(wordings.RELATIONS[relation])} the {other}", False, d)
    return Asked(text, (), r.distractors((), members), (phrase, other))
