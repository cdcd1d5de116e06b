"""Singular and plural of noun phrases."""

from __future__ import annotations

from vlseg.worlds.curation import curation

LINKS = (" of ", " with ", " without ", " on ", " in ", " and ", " facing ", " tilted ", " above ")


def stem(word: str) -> str:
    """A word without its plural s, so that "candles" and "candle" meet."""
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def is_plural(phrase: str) -> bool:
    """Whether the phrase is plural in form ("the jeans are")."""
    return phrase in curation().plural_form


IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "die": "dice",
    "person": "people",
    "loaf": "loaves",
    "scarf": "scarves",
    "ox": "oxen",
    "cactus": "cacti",
    "child": "children",
    "shelf": "shelves",
    "tooth": "teeth",
    "foot": "feet",
    "man": "men",
    "woman": "women",
    "calf": "calves",
    "sheep": "sheep",
    "buffalo": "buffalo",
}


def plural(phrase: str) -> str | None:
    """The plural of a singular noun phrase, or None where it has none of its own."""
    if phrase in curation().plural_form or phrase in curation().mass:
        return None
    for link in LINKS:
        if link in phrase:
            head, rest = phrase.split(link, 1)
            inflected = plural(head)
            return None if inflected is None else inflected + link + rest
    if phrase.startswith("hourglass done"):
        return None
    first, _, word = phrase.rpartition(" ")
    if word in IRREGULAR:
        inflected = IRREGULAR[word]
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        inflected = word + "es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        inflected = word[:-1] + "ies"
    elif word in ("potato", "tomato", "mango", "mosquito", "volcano"):
        inflected = word + "es"
    else:
        inflected = word + "s"
    return f"{first} {inflected}".strip()
