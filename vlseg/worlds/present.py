"""Expressions with one referent, a maker per kind. A maker returns None where its draw does not hold."""

from __future__ import annotations

from vlseg.worlds import wordings
from vlseg.worlds.draw import Draw
from vlseg.worlds.grammar import (
    PLACES,
    Asked,
    colour_predicate,
    only,
    phrase_for,
    place_predicate,
    relation_predicate,
    sentence,
    tinted,
    tintless,
    true_colour,
)
from vlseg.worlds.referents import Group, Referents, countable, is_are, many_of

WAYS = ("left", "right", "top", "bottom", "large", "small")
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def pick_group(r: Referents, d: Draw, single: float) -> Group | None:
    """A group of several, or with chance ``single`` (or for want of one) a lone object's."""
    if r.multis and (not r.singles or not d.chance(single)):
        return d.choice(r.multis)
    return d.choice(r.singles) if r.singles else None


def name(r: Referents, d: Draw) -> Asked | None:
    """ "the dog" """
    if not r.singles:
        return None
    group = d.choice(r.singles)
    phrase = group.phrase(d)
    if d.chance(0.06) and countable(phrase):
        text = wordings.framed(f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}", False, phrase, d)
    else:
        text = sentence("", phrase, "", False, d)
    return Asked(text, group.members, r.distractors(group.members, ()), (phrase,))


def colour(r: Referents, d: Draw) -> Asked | None:
    """ "the red mug", "the red thing" """
    if len(r.everyone) > 1 and d.chance(0.15):
        members, phrase = r.everyone, d.choice(wordings.THINGS)
        nouns: tuple[str, ...] = ()
    else:
        group = pick_group(r, d, 0.2)
        if group is None:
            return None
        members, phrase = group.members, phrase_for(group, d, True)
        nouns = (phrase,)
        if not tintless(phrase):
            return None
    word = true_colour(r, members, d)
    hits = only(members, colour_predicate(r, word))
    if hits is None or len(hits) != 1:
        return None
    if d.chance(0.88):
        text = sentence(word, phrase, "", False, d)
    else:
        text = sentence("", phrase, f"that {is_are(phrase, False)} {word}", False, d, link=False)
    return Asked(text, hits, r.distractors(hits, members), nouns)


def size(r: Referents, d: Draw) -> Asked | None:
    """ "the big dog", "the smaller of the two dogs" """
    if not r.multis:
        return None
    group = d.choice(r.multis)
    phrase = group.phrase(d)
    way = d.choice(("large", "small"))
    best = r.facts.first(way, group.members)
    if best is None:
        return None
    rest = [x for x in group.members if x != best]
    pairs = [(best, x) if way == "large" else (x, best) for x in rest]
    if not all(r.facts.larger(big, tiny, 1.9) for big, tiny in pairs):
        return None
    word = d.choice(wordings.SIZES[way])
    if word.endswith("er"):
        if len(rest) != 1:
            return None
        if countable(phrase) and d.chance(0.4):
            text = sentence(word, "", f"of the two {many_of(phrase)}", False, d, link=False)
            return Asked(text, (best,), r.distractors((best,), group.members), (phrase,))
    text = sentence(word, tinted(r, best, phrase, d), "", False, d)
    return Asked(text, (best,), r.distractors((best,), group.members), (phrase,))


def superlative(r: Referents, d: Draw) -> Asked | None:
    """ "the leftmost dog", "the second dog from the left", "the largest object" """
    if len(r.everyone) < 2:
        return None
    nouns: tuple[str, ...] = ()
    if not r.multis or d.chance(0.2):
        members, phrase, adjective = r.everyone, d.choice(wordings.THINGS), ""
    else:
        group = d.choice(r.multis)
        members, phrase, adjective = group.members, phrase_for(group, d), ""
        nouns = (phrase,)
        if len(members) > 2 and d.chance(0.15) and tintless(phrase):
            word = true_colour(r, members, d)
            hits = only(members, colour_predicate(r, word))
            if hits is not None and 1 < len(hits) < len(members):
                members, adjective = hits, word
    way = d.choice(WAYS)
    noun = f"{adjective} {phrase}".strip()
    if len(members) >= 3 and countable(phrase) and d.chance(0.35):
        return _ordinal(r, members, noun, nouns, way, d)
    best = r.facts.first(way, members)
    if best is None:
        return None
    before, after = wordings.ENDS[way]
    if not adjective:
        noun = tinted(r, best, noun, d)
    if len(members) == 2 and way in OPPOSITE and d.chance(0.25) and _apart(r, way, best, members):
        text = sentence("", noun, wordings.PLACES[way][0], False, d)
    elif len(members) == 2 and way in OPPOSITE and d.chance(0.25):
        text = sentence({"top": "upper", "bottom": "lower"}.get(way, way), noun, "", False, d)
    elif after and d.chance(0.25):
        text = sentence("", noun, d.choice(after), False, d)
    elif countable(phrase) and not adjective and d.chance(0.12):
        text = sentence(d.choice(before[:2]), "", f"of the {many_of(phrase)}", False, d, link=False)
    else:
        text = sentence(d.choice(before), noun, "", False, d)
    return Asked(text, (best,), r.distractors((best,), members), nouns)


def _apart(r: Referents, way: str, best: int, members: tuple[int, ...]) -> bool:
    """Whether "on the left" tells two apart: the one could be there, the other is not."""
    other = members[0] if members[1] == best else members[1]
    lead = r.facts.key(way, other) - r.facts.key(way, best)
    return (
        lead > 0.2 * r.facts.short and r.facts.place(way, best) is not False and r.facts.place(way, other) is not True
    )


def _ordinal(
    r: Referents, members: tuple[int, ...], noun: str, nouns: tuple[str, ...], way: str, d: Draw
) -> Asked | None:
    ranked = r.facts.order(way, members)
    if ranked is None:
        return None
    k = min(d.weighted((0, 1, 2, 3), (0.15, 0.5, 0.25, 0.1)), len(ranked) - 1)
    word = wordings.ORDINALS[k] if d.chance(0.85) else wordings.DIGITS[k]
    if way in OPPOSITE:
        start = "from the" if d.chance(0.75) else "from"
        text = sentence(word, noun, f"{start} {way}", False, d, link=False)
    elif k == 0:
        return None
    else:
        text = sentence(f"{word} {d.choice(wordings.ENDS[way][0])}", noun, "", False, d)
    return Asked(text, (ranked[k],), r.distractors((ranked[k],), members), nouns)


def relation(r: Referents, d: Draw) -> Asked | None:
    """ "the dog left of the tree", "the cup closest to the laptop", "the thing between the ..." """
    nouns: tuple[str, ...] = ()
    if d.chance(0.14):
        members, phrase = r.everyone, d.choice(wordings.THINGS)
        apart: tuple[int, ...] = ()
    else:
        group = pick_group(r, d, 0.3)
        if group is None:
            return None
        members, phrase = group.members, group.phrase(d)
        apart, nouns = members, (phrase,)
    if len(members) > 1 and d.chance(0.22):
        return _extreme(r, members, phrase, apart, nouns, d)
    predicate = relation_predicate(r, d, apart)
    if predicate is None:
        return None
    members = tuple(x for x in members if x not in predicate.anchors)
    hits = only(members, predicate)
    if hits is None or len(hits) != 1:
        return None
    text = sentence("", tinted(r, hits[0], phrase, d), predicate.words, False, d)
    near = (*members, *predicate.anchors)
    return Asked(text, hits, r.distractors(hits, near), (*nouns, *predicate.nouns), predicate.anchors)


def _extreme(
    r: Referents, members: tuple[int, ...], phrase: str, apart: tuple[int, ...], nouns: tuple[str, ...], d: Draw
) -> Asked | None:
    found = relation_predicate(r, d, apart, ("next",))
    if found is None:
        return None
    target = found.anchors[0]
    members = tuple(x for x in members if x != target)
    if len(members) < 2:
        return None
    close = d.chance(0.75)
    best = r.facts.nearest(members, target) if close else r.facts.farthest(members, target)
    if best is None:
        return None
    said = found.words.split(" the ", 1)[1]
    words = f"{d.choice(wordings.CLOSEST if close else wordings.FARTHEST)} the {said}"
    text = sentence("", tinted(r, best, phrase, d), words, False, d)
    return Asked(text, (best,), r.distractors((best,), (*members, target)), (*nouns, *found.nouns), (target,))


def position(r: Referents, d: Draw) -> Asked | None:
    """ "the dog on the left", "the thing in the top right corner" """
    nouns: tuple[str, ...] = ()
    if d.chance(0.2):
        members, phrase = r.everyone, d.choice(wordings.THINGS)
    else:
        group = pick_group(r, d, 0.35)
        if group is None:
            return None
        members, phrase = group.members, group.phrase(d)
        nouns = (phrase,)
    predicate = place_predicate(r, d.choice(PLACES), d)
    hits = only(members, predicate)
    if hits is None or len(hits) != 1:
        return None
    return Asked(sentence("", phrase, predicate.words, False, d), hits, r.distractors(hits, members), nouns)
