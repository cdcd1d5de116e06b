"""From the words of a query to the classes of a closed vocabulary. No torch.

A query is answered by the class of its head noun: "the red mug on the left" by every cup. Attributes and relations are
not read, which the `protocol` of such a system says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlseg.systems.synonyms import groups, kinds

ARTICLES = {
    "a",
    "an",
    "the",
    "this",
    "that",
    "these",
    "those",
    "all",
    "every",
    "any",
    "some",
    "my",
    "his",
    "her",
    "each",
}
# Where the head of a noun phrase ends: "the mug | on the table", "the man | who waves", "a dog | running".
ENDS = {
    "above", "across", "against", "along", "amid", "among", "and", "are", "around", "at", "behind", "below", "beneath",
    "beside", "between", "beyond", "by", "closest", "facing", "farthest", "for", "from", "furthest", "holding", "in",
    "inside", "is", "leaning", "lying", "near", "nearest", "next", "of", "off", "on", "onto", "opposite", "or", "out",
    "outside", "over", "past", "playing", "riding", "running", "sitting", "standing", "that", "through", "to", "toward",
    "towards", "under", "underneath", "walking", "watching", "wearing", "where", "which", "who", "whose", "with",
    "within", "without",
}  # fmt: skip
# Any other word in -ing behind a noun ends the head as well ("dog | chasing a ball"), but for these, which are nouns or
# belong to one.
NOUNS_IN_ING = {
    "awning", "baking", "boxing", "building", "carpeting", "ceiling", "clothing", "crossing", "cutting", "dining",
    "dressing", "drinking", "earring", "fencing", "fishing", "flooring", "frosting", "icing", "ironing", "king",
    "landing", "lighting", "living", "monitoring", "painting", "parking", "pudding", "railing", "ring", "rolling",
    "sewing", "shopping", "string", "stuffing", "swimming", "swing", "topping", "vending", "washing", "wedding", "wing",
}  # fmt: skip
# What may stand behind the head without a preposition: "man far left".
PLACES = {
    "left",
    "right",
    "far",
    "middle",
    "center",
    "centre",
    "top",
    "bottom",
    "front",
    "back",
    "most",
    "here",
    "there",
}
IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "knives": "knife", "leaves": "leaf", "shelves": "shelf",
    "wolves": "wolf", "calves": "calf", "loaves": "loaf", "scarves": "scarf", "oxen": "ox", "buses": "bus",
    "skis": "ski", "policemen": "policeman", "firemen": "fireman", "snowmen": "snowman",
}  # fmt: skip
UNCHANGED = {
    "scissors", "stairs", "steps", "cactus", "canvas", "compass", "octopus", "tennis", "binoculars", "goggles", "jeans",
    "gas", "lens", "bus", "chess", "shears",
}  # fmt: skip
# What names in COCO panoptic and ADE20K carry behind the thing itself.
SUFFIXES = re.compile(r"[-\s](merged|stuff|other|otherstuff)\b")
NAMELESS = {"n/a", "", "unlabeled", "unlabelled", "void", "ignore"}
SHOWN = 6  # classes named in a reason


class TextMatch(Protocol):
    """Likens words to class names by meaning, such as `vlseg.systems.clip_text.ClipText`."""

    name: str

    def nearest(self, text: str) -> tuple[int, float] | None:
        """Position of the nearest class name and the cosine; None where none is near enough."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """The classes that answer a query. how: "name", "synonym", "kind" or "clip"; reason: why there are none."""

    classes: tuple[int, ...]
    how: str = ""
    reason: str | None = None


class ClassNames:
    """The class names of a checkpoint, and which of them a query means. Matches are kept, so each text costs once.

    labels: by class number; "N/A" and the like are never matched. near: asked where words alone find nothing.
    """

    KEPT = 100_000  # matches

    def __init__(self, labels: Sequence[str], near: TextMatch | None = None):
        self.labels, self.near = list(labels), near
        self.exact = {label.strip().lower(): (number,) for number, label in reversed(list(enumerate(self.labels)))}
        self.aliases: dict[str, tuple[int, ...]] = {}
        self.senses: dict[str, tuple[int, ...]] = {}
        for number, label in enumerate(self.labels):
            for alias in aliases(label):
                self._add(self.aliases, alias, number)
                for word in groups().get(alias, ()):
                    self._add(self.senses, word, number)
        self._kept: dict[str, Match] = {}

    @staticmethod
    def _add(table: dict[str, tuple[int, ...]], word: str, number: int) -> None:
        if number not in table.get(word, ()):
            table[word] = (*table.get(word, ()), number)

    def match(self, text: str) -> Match:
        """The classes of a query: by name, by synonym, by kind, by the same of its head noun alone, then by `near`."""
        if text not in self._kept:
            if len(self._kept) >= self.KEPT:
                self._kept.clear()
            self._kept[text] = self._match(text)
        return self._kept[text]

    def _match(self, text: str) -> Match:
        exact = self.exact.get(text.strip().lower())
        if exact and aliases(text):
            return Match(exact, "name")
        for phrase in candidates(text):
            for how, table in (("name", self.aliases), ("synonym", self.senses)):
                if phrase in table:
                    return Match(table[phrase], how)
            for name in kinds().get(phrase, ()):
                found = self.aliases.get(name) or self.senses.get(name)
                if found:
                    return Match(found, "kind")
        nearest = self.near.nearest(text) if self.near is not None else None
        if nearest is not None:
            return Match((nearest[0],), "clip")
        return Match((), reason=f"no class of this name; {self.summary()}")

    def summary(self) -> str:
        """The classes in a few words: "classes: person, car, ... (80)"."""
        named = [label for label in self.labels if aliases(label)]
        shown = ", ".join(named[:SHOWN])
        return f"classes: {shown}, ... ({len(named)})" if len(named) > SHOWN else f"classes: {shown}"


def aliases(label: str) -> list[str]:
    """The words that name a class, normalised: "door-stuff" is "door"; "wall-brick" "wall brick" and "wall"."""
    found = []
    for part in re.split(r"[;,]", label.replace("_", " ")):
        plain = SUFFIXES.sub("", part.strip().lower())
        if plain.strip() in NAMELESS:
            continue
        found.append(normal(plain.replace("-", " ")))
        if "-" in plain and " " not in plain:  # COCO panoptic: "wall-brick", "floor-wood"
            found.append(normal(plain.split("-")[0]))
    return list(dict.fromkeys(word for word in found if word))


def normal(text: str) -> str:
    """Lower case, single spaces, no article, no punctuation, the last word in the singular."""
    words = re.sub(r"[^\w\s'/-]", " ", text.lower().replace("_", " ")).split()
    while words and words[0] in ARTICLES:
        words.pop(0)
    if words:
        words[-1] = singular(words[-1])
    return " ".join(words)


def singular(word: str) -> str:
    """A noun in the singular, by the usual endings and a list of exceptions."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in UNCHANGED or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "shes", "ches", "xes", "zes", "toes")):
        return word[:-2]
    return word[:-1]


def candidates(text: str) -> list[str]:
    """Phrases to look up, most of the query first: all of it, then its head with fewer and fewer adjectives before it.

    "the two big traffic lights on the left" gives that, "two big traffic light", "big traffic light", "traffic light",
    "light".
    """
    whole = normal(text.replace("-", " "))
    words = re.sub(r"[^\w\s'/-]", " ", text.lower().replace("-", " ")).split()
    while words and words[0] in ARTICLES:
        words.pop(0)
    end = next((i for i, word in enumerate(words) if i and _ends(word)), len(words))
    head = words[:end]
    while len(head) > 1 and head[-1] in PLACES:
        head.pop()
    found = [whole, *(normal(" ".join(head[i:])) for i in range(len(head)))]
    return list(dict.fromkeys(phrase for phrase in found if phrase))


def _ends(word: str) -> bool:
    """Whether the head of a noun phrase ends before this word."""
    return word in ENDS or (word.endswith("ing") and len(word) > 4 and word not in NOUNS_IN_ING)
