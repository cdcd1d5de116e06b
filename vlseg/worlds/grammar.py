"""The parts of an expression: a described noun phrase, predicates with their words, and the sentence around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlseg.worlds import wordings
from vlseg.worlds.colours import NAMES
from vlseg.worlds.draw import Draw
from vlseg.worlds.facts import Truth
from vlseg.worlds.referents import Group, Referents, is_are

SIDES = ("left", "right", "above", "below")
PLACES = tuple(wordings.PLACES)


@dataclass(slots=True)
class Asked:
    """A finished expression: text, targets, distractors, nouns that it rests on, objects mentioned besides."""

    text: str
    targets: tuple[int, ...]
    distractors: tuple[int, ...]
    nouns: tuple[str, ...] = ()
    anchors: tuple[int, ...] = ()


@dataclass(slots=True)
class Predicate:
    """Something true or not of an object. words go before the noun if ``before``, else after it (and after "is")."""

    words: str
    before: bool
    holds: Callable[[int], Truth]
    anchors: tuple[int, ...] = ()
    nouns: tuple[str, ...] = ()


def sentence(adjective: str, noun: str, after: str, many: bool, d: Draw, link: bool = True) -> str:
    """The whole expression about "the <adjective> <noun> <after>"; link: "that is" may stand before ``after``."""
    if after and link and d.chance(0.18):
        verb = is_are(noun, many)
        start = "that's" if verb == "is" and d.chance(0.15) else f"{'that' if d.chance(0.7) else 'which'} {verb}"
        after = f"{start} {after}"
    core = " ".join(part for part in ("the", adjective, noun, after) if part)
    bare = core[4:]
    if d.chance(0.5):
        bare = bare.replace("the ", "")
    return wordings.framed(core, many or is_are(noun, many) == "are", bare, d)


def colour_word(d: Draw) -> str:
    """A colour word, the common ones as often as the rare."""
    word = d.choice(NAMES)
    return "grey" if word == "gray" and d.chance(0.5) else word


def colour_predicate(r: Referents, word: str) -> Predicate:
    """ "red" """
    return Predicate(word, True, lambda x: r.facts.colour(word, x))


def place_predicate(r: Referents, place: str, d: Draw) -> Predicate:
    """ "in the top left corner" """
    return Predicate(d.choice(wordings.PLACES[place]), False, lambda x: r.facts.place(place, x))


def anchor(r: Referents, d: Draw, apart: tuple[int, ...]) -> tuple[int, str, str] | None:
    """An object outside ``apart`` that words pick out alone: (index, "red car", noun phrase)."""
    pool = [g for g in r.singles if g.members[0] not in apart]
    crowds = [g for g in r.multis if not set(g.members) & set(apart)]
    if crowds and (not pool or d.chance(0.1)):
        group = d.choice(crowds)
        phrase = group.phrase(d)
        word = colour_word(d)
        hits = only(group.members, colour_predicate(r, word))
        if hits is not None and len(hits) == 1 and tintless(phrase):
            return hits[0], f"{word} {phrase}", phrase
    if not pool:
        return None
    group = d.choice(pool)
    phrase = group.phrase(d)
    return group.members[0], phrase, phrase


def tintless(phrase: str) -> bool:
    """Whether the phrase holds no colour word of its own, so that another may stand before it."""
    return not any(word in NAMES or word in ("grey", "gold", "golden", "silver", "bronze") for word in phrase.split())


def only(members: tuple[int, ...], predicate: Predicate) -> tuple[int, ...] | None:
    """The members of whom the predicate holds, or None where it is open for one of them."""
    values = [predicate.holds(x) for x in members]
    if None in values:
        return None
    return tuple(x for x, value in zip(members, values, strict=True) if value)


def relation_predicate(r: Referents, d: Draw, apart: tuple[int, ...], kinds: tuple[str, ...] = ()) -> Predicate | None:
    """A relation to one anchor (or two, for "between") outside ``apart``."""
    found = anchor(r, d, apart)
    if found is None:
        return None
    a, said, noun = found
    relation = d.choice(kinds or ("left", "right", "above", "below", "next", "next", "between"))
    word = d.choice(wordings.RELATIONS[relation])
    if relation == "between":
        second = anchor(r, d, (*apart, a))
        if second is None:
            return None
        b, said_b, noun_b = second
        words = f"{word} the {said} and the {said_b}"
        return Predicate(words, False, lambda x: r.facts.between(x, a, b), (a, b), (noun, noun_b))
    if relation == "next":
        return Predicate(f"{word} the {said}", False, lambda x: r.facts.next_to(x, a), (a,), (noun,))
    return Predicate(f"{word} the {said}", False, lambda x: r.facts.side(relation, x, a), (a,), (noun,))


def any_predicate(r: Referents, d: Draw, apart: tuple[int, ...]) -> Predicate | None:
    """A colour, a relation or a place."""
    pick = d.unit()
    if pick < 0.4:
        return colour_predicate(r, colour_word(d))
    if pick < 0.82:
        return relation_predicate(r, d, apart)
    return place_predicate(r, d.choice(PLACES), d)


def true_colour(r: Referents, members: tuple[int, ...], d: Draw) -> str:
    """A colour word that is true of one of the members, where there is one; else any."""
    words = [c for c in NAMES if any(c in r.objects[x].colours for x in members)]
    word = d.choice(words) if words else d.choice(NAMES)
    return "grey" if word == "gray" and d.chance(0.5) else word


def tinted(r: Referents, target: int, phrase: str, d: Draw) -> str:
    """The phrase, now and then with a colour word that is true of the target."""
    if d.chance(0.85) or not tintless(phrase):
        return phrase
    words = [c for c in NAMES if c in r.objects[target].colours]
    return f"{d.choice(words)} {phrase}" if words else phrase


def phrase_for(group: Group, d: Draw, plain: bool = False) -> str:
    """A phrase of the group; ``plain``: rather one without a colour word."""
    phrase = group.phrase(d)
    if plain and not tintless(phrase):
        others = [p for p in group.phrases if tintless(p)]
        phrase = d.choice(others) if others else phrase
    return phrase
