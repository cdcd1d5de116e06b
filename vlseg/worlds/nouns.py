"""Which words fit which glyph: yes, no, or open. A noun is a set of glyphs."""

from __future__ import annotations

from functools import cache
from typing import Literal

from vlseg.worlds.atlas import entries
from vlseg.worlds.curation import curation
from vlseg.worlds.inflect import LINKS, stem

Fit = Literal["yes", "no", "open"]


def head_of(phrase: str) -> str:
    """The part of a phrase whose suffixes name the thing itself: "nest with eggs" is a nest, a "cup of tea" is open."""
    if " of " in phrase or " and " in phrase:
        return ""
    for link in LINKS:
        phrase = phrase.split(link, 1)[0]
    return phrase


def grams(parts: list[str]) -> set[tuple[str, ...]]:
    """All runs of words in ``parts``."""
    return {tuple(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}


class Nouns:
    """The noun tables of the atlas.

    names: primary name per glyph index. phrases: all noun phrases that fit a glyph, the primary name first.
    yes: the glyphs that a phrase names. open: the glyphs of which it is open whether the phrase fits.
    """

    def __init__(self) -> None:
        self.names: list[str] = [entry["name"] for entry in entries()]
        self.subgroups: list[str] = [entry["subgroup"] for entry in entries()]
        self.members: dict[str, list[int]] = {}
        for glyph, subgroup in enumerate(self.subgroups):
            self.members.setdefault(subgroup, []).append(glyph)
        own = [[entry["name"], *entry["also"]] for entry in entries()]
        known = {phrase for group in own for phrase in group} | set(curation().heads)
        self.phrases: list[list[str]] = [self._all_phrases(group, known) for group in own]
        self._inside: dict[tuple[str, ...], set[int]] = {}
        self._exact: dict[tuple[str, ...], set[int]] = {}
        for glyph, group in enumerate(self.phrases):
            for phrase in [*group, *entries()[glyph]["keywords"]]:
                for gram in grams([stem(word) for word in phrase.split()]):
                    self._inside.setdefault(gram, set()).add(glyph)
            for phrase in own[glyph]:
                self._exact.setdefault(tuple(stem(word) for word in phrase.split()), set()).add(glyph)
        self._twins = self._read_twins()
        self.yes: dict[str, frozenset[int]] = {}
        for glyph, group in enumerate(self.phrases):
            for phrase in group:
                self.yes[phrase] = self.yes.get(phrase, frozenset()) | {glyph}
        self._open: dict[str, frozenset[int]] = {}

    @staticmethod
    def _all_phrases(own: list[str], known: set[str]) -> list[str]:
        out = list(own)
        for phrase in own:
            parts = head_of(phrase).split()
            for start in range(len(parts)):
                head = " ".join(parts[start:])
                if head in known and head not in out and " ".join(parts) not in curation().not_a.get(head, ()):
                    out.append(head)
        for head, listed in curation().heads.items():
            if own[0] in listed and head not in out:
                out.append(head)
        return out

    def _read_twins(self) -> list[frozenset[int]]:
        index = {name: i for i, name in enumerate(self.names)}
        twins: list[set[int]] = [set() for _ in self.names]
        for line in curation().interchangeable:
            group = [index[name] for name in line]
            for glyph in group:
                twins[glyph].update(group)
        return [frozenset(group) for group in twins]

    def open(self, phrase: str) -> frozenset[int]:
        """The glyphs of which it is open whether ``phrase`` (singular, lower case) fits them."""
        found = self._open.get(phrase)
        if found is None:
            found = self._open[phrase] = self._find_open(phrase)
        return found

    def _find_open(self, phrase: str) -> frozenset[int]:
        yes = self.yes.get(phrase, frozenset())
        parts = [stem(word) for word in phrase.split()]
        named = [g for g in yes if self.names[g] == phrase or phrase in entries()[g]["also"]] or list(yes)
        near = frozenset().union(*(self._twins[g] for g in named)) if named else frozenset()
        found = set(near)
        found.update(self._inside.get(tuple(parts), ()))
        for gram in grams(parts):
            found.update(self._exact.get(gram, ()))
        return frozenset(found) - yes

    def fits(self, phrase: str, glyph: int) -> Fit:
        """Whether the noun phrase names the glyph."""
        if glyph in self.yes.get(phrase, ()):
            return "yes"
        return "open" if glyph in self.open(phrase) else "no"


@cache
def nouns() -> Nouns:
    """The one table, read when first asked for."""
    return Nouns()
