"""Expressions that may have several referents: all, every, both, not, except."""

from __future__ import annotations

from vlseg.worlds import wordings
from vlseg.worlds.draw import Draw
from vlseg.worlds.grammar import Asked, any_predicate, colour_predicate, only, sentence, tintless, true_colour
from vlseg.worlds.present import pick_group
from vlseg.worlds.referents import Referents, countable, is_are, many_of


def everyone(r: Referents, d: Draw) -> Asked | None:
    """ "all the dogs", "every red cup", "both cats", "the two owls next to the tree" """
    if len(r.singles) > 1 and d.chance(0.08):
        return _pair(r, d)
    group = pick_group(r, d, 0.2)
    if group is None:
        return None
    members, phrase = group.members, group.phrase(d)
    nouns: tuple[str, ...] = (phrase,)
    if d.chance(0.1):
        members, phrase, nouns = r.everyone, d.choice(wordings.THINGS), ()
    hits, before, after = members, "", ""
    anchors: tuple[int, ...] = ()
    if d.chance(0.45) or not nouns:
        predicate = any_predicate(r, d, members if nouns else ())
        if predicate is None:
            return None
        if predicate.before and d.chance(0.7):
            predicate = colour_predicate(r, true_colour(r, members, d))
        scope = tuple(x for x in members if x not in predicate.anchors)
        kept = only(scope, predicate)
        if not kept or (predicate.before and not tintless(phrase)):
            return None
        hits, anchors, nouns = kept, predicate.anchors, (*nouns, *predicate.nouns)
        before, after = (predicate.words, "") if predicate.before else ("", predicate.words)
    text = all_of(phrase, before, after, len(hits), d)
    return Asked(text, hits, r.distractors(hits, (*members, *anchors)), nouns, anchors)


def _pair(r: Referents, d: Draw) -> Asked | None:
    first, second = d.shuffled(r.singles)[:2]
    one, other = first.phrase(d), second.phrase(d)
    hits = tuple(sorted({*first.members, *second.members}))
    if len(hits) != 2:
        return None
    core = f"the {one} and the {other}"
    bare = f"{one} and {other}"
    return Asked(wordings.framed(core, True, bare, d), hits, r.distractors(hits, ()), (one, other))


def all_of(phrase: str, before: str, after: str, count: int, d: Draw) -> str:
    """An expression for all that fit; numbers only where ``count`` of them do."""
    noun = f"{before} {phrase}".strip()
    several = f"{before} {many_of(phrase)}".strip()
    many = True
    if countable(phrase) and d.chance(0.3):
        core = f"{d.choice(('every', 'each', 'every single'))} {noun}"
        many = False
    elif countable(phrase) and count in (2, 3, 4) and d.chance(0.2):
        number = wordings.NUMBERS[count]
        numbers = ("both", "both the", "the two") if count == 2 else (f"the {number}", f"all {number}")
        core = f"{d.choice(numbers)} {several}"
    else:
        options = ("all the", "all", "all of the") if count < 2 else ("all the", "all", "all of the", "the", "the", "")
        core = f"{d.choice(options)} {several}".strip()
    if after and d.chance(0.15):
        after = f"that {'are' if many else is_are(phrase, False)} {after}"
    core = f"{core} {after}".strip()
    return wordings.framed(core, many, core, d, question=many)


def negation(r: Referents, d: Draw) -> Asked | None:
    """ "the dog that is not next to the tree", "everything except the car", "all the cups but the red one" """
    if len(r.everyone) > 1 and r.singles and d.chance(0.04):
        return _except_one(r, d)
    if not r.multis:
        return None
    group = d.choice(r.multis)
    members, phrase = group.members, group.phrase(d)
    predicate = any_predicate(r, d, members)
    if predicate is None or (predicate.before and not tintless(phrase)):
        return None
    if predicate.before and d.chance(0.75):
        predicate = colour_predicate(r, true_colour(r, members, d))
    hits = only(members, predicate)
    if not hits or len(hits) == len(members):
        return None
    rest = tuple(x for x in members if x not in hits)
    nouns = (phrase, *predicate.nouns)
    distractors = r.distractors(rest, (*members, *predicate.anchors))
    if len(hits) == 1 and predicate.before and countable(phrase) and d.chance(0.3):
        head = d.choice((f"every {phrase}", f"all the {many_of(phrase)}", f"all {many_of(phrase)}"))
        core = f"{head} {d.choice(('except', 'but', 'other than'))} the {predicate.words} one"
        return Asked(wordings.framed(core, True, core, d), rest, distractors, nouns, predicate.anchors)
    many = len(rest) > 1
    verb = is_are(phrase, many)
    denial = d.choice((f"that {verb} not", f"that {verb} not", f"that {verb}n't", f"which {verb} not", "not"))
    after = f"{denial} {predicate.words}"
    if many:
        core = f"{d.choice(('all the', 'all', 'the'))} {many_of(phrase)} {after}"
        return Asked(wordings.framed(core, True, core, d), rest, distractors, nouns, predicate.anchors)
    return Asked(sentence("", phrase, after, False, d, link=False), rest, distractors, nouns, predicate.anchors)


def _except_one(r: Referents, d: Draw) -> Asked:
    group = d.choice(r.singles)
    phrase = group.phrase(d)
    rest = tuple(x for x in r.everyone if x not in group.members)
    head = d.choice(("everything", "all objects", "all the objects", "all things", "every object"))
    core = f"{head} {d.choice(('except', 'but', 'other than', 'except for'))} the {phrase}"
    return Asked(wordings.framed(core, True, core, d), rest, group.members, (phrase,), group.members)
