"""How things are said: frames around a noun phrase, relation words, ordinals; and the vocabulary of it all."""

from __future__ import annotations

import re
from functools import cache

from vlseg.worlds.absent_words import ordinary
from vlseg.worlds.colours import NAMES
from vlseg.worlds.draw import Draw
from vlseg.worlds.inflect import plural
from vlseg.worlds.nouns import nouns

# {} is the noun phrase with its article.
VERBS = (
    "segment {}",
    "find {}",
    "mask {}",
    "select {}",
    "show {}",
    "show me {}",
    "highlight {}",
    "mark {}",
    "outline {}",
    "locate {}",
    "point to {}",
    "cut out {}",
    "pick {}",
    "pick out {}",
    "get {}",
    "give me {}",
    "segment out {}",
    "point out {}",
    "look for {}",
    "trace {}",
    "detect {}",
    "isolate {}",
    "i want {}",
    "i need {}",
    "extract {}",
    "draw a mask on {}",
    "give me the mask of {}",
)
POLITE = (
    "please find {}",
    "please segment {}",
    "please mask {}",
    "please select {}",
    "can you mask {}?",
    "can you find {}?",
    "could you segment {}, please?",
    "could you find {} for me?",
    "can you show me {}?",
    "would you highlight {}, please?",
    "i am looking for {}",
    "i'm looking for {}",
    "i would like {}, please",
    "help me find {}",
    "please mark {} for me",
    "would you please outline {}?",
    "can you point out {}?",
    "could you please select {}?",
    "please cut out {}",
    "segment {} please",
    "find {} please",
    "segment {} in this image",
    "find {} in the picture",
    "mask {} in the image",
    "show me {} in this picture",
)
WHERE = (
    "where is {}?",
    "which one is {}?",
    "where can i find {}?",
    "where's {}?",
    "which object is {}?",
    "do you see {}?",
    "can you see {}?",
    "is there {}?",
)
WHERE_MANY = ("where are {}?", "which ones are {}?", "where can i find {}?", "do you see {}?", "can you see {}?")
LEFT, RIGHT = (
    ("left of", "to the left of", "on the left of", "on the left side of"),
    ("right of", "to the right of", "on the right of", "on the right side of"),
)
ABOVE, BELOW = ("above", "over", "higher than"), ("below", "under", "beneath", "underneath", "lower than")
NEXT = ("next to", "beside", "near", "close to", "by", "right next to")
BETWEEN, CLOSEST, FARTHEST = (
    ("between", "in between"),
    ("closest to", "nearest to", "nearest"),
    ("farthest from", "furthest from", "farthest away from"),
)
RELATIONS = {
    "left": LEFT,
    "right": RIGHT,
    "above": ABOVE,
    "below": BELOW,
    "next": NEXT,
    "between": BETWEEN,
    "closest": CLOSEST,
    "farthest": FARTHEST,
}
ENDS = {
    "left": (
        ("leftmost", "left-most", "far left"),
        ("furthest left", "farthest to the left", "furthest to the left", "on the far left"),
    ),
    "right": (
        ("rightmost", "right-most", "far right"),
        ("furthest right", "farthest to the right", "furthest to the right", "on the far right"),
    ),
    "top": (
        ("topmost", "highest", "uppermost", "top"),
        ("at the very top", "highest up", "nearest to the top", "furthest up"),
    ),
    "bottom": (
        ("bottommost", "lowest", "bottom"),
        ("at the very bottom", "lowest down", "nearest to the bottom", "furthest down"),
    ),
    "large": (("largest", "biggest"), ()),
    "small": (("smallest", "tiniest"), ()),
}
ORDINALS = ("first", "second", "third", "fourth")
DIGITS = ("1st", "2nd", "3rd", "4th")
SIZES = {"large": ("large", "big", "bigger", "larger"), "small": ("small", "little", "smaller", "tiny")}
PLACES = {
    "left": (
        "on the left",
        "on the left side",
        "at the left",
        "in the left part of the picture",
        "on the left of the image",
    ),
    "right": (
        "on the right",
        "on the right side",
        "at the right",
        "in the right part of the picture",
        "on the right of the image",
    ),
    "top": ("at the top", "in the upper part", "in the top part of the image", "at the top of the picture"),
    "bottom": ("at the bottom", "in the lower part", "in the bottom part of the image", "at the bottom of the picture"),
    "middle": (
        "in the middle",
        "in the center",
        "in the centre",
        "in the middle of the picture",
        "in the center of the image",
    ),
    "top left": (
        "in the top left corner",
        "in the upper left corner",
        "at the top left",
        "in the top left",
        "top left",
    ),
    "top right": (
        "in the top right corner",
        "in the upper right corner",
        "at the top right",
        "in the top right",
        "top right",
    ),
    "bottom left": (
        "in the bottom left corner",
        "in the lower left corner",
        "at the bottom left",
        "in the bottom left",
        "bottom left",
    ),
    "bottom right": (
        "in the bottom right corner",
        "in the lower right corner",
        "at the bottom right",
        "in the bottom right",
        "bottom right",
    ),
}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
THINGS = ("object", "thing", "item")
GLUE = (
    "the a an all of every each both that is are which not isn't aren't and one ones of the objects things "
    "items except but everything other than from in on picture image that's for single"
)


def tokens(text: str) -> list[str]:
    """The lower-case words of an expression, without the marks between them."""
    return re.findall(r"[^\s.,?!]+", text.lower())


def framed(core: str, many: bool, bare: str, d: Draw, question: bool = True) -> str:
    """A whole expression about the noun phrase ``core`` ("the dog"); ``bare`` is it without an article."""
    pick = d.unit()
    if pick < 0.40:
        text = core
    elif pick < 0.56:
        text = bare
    elif pick < 0.76:
        text = d.choice(VERBS).format(core)
    elif pick < 0.90 or not question:
        frame = d.choice(POLITE)
        if " in " in frame and ("picture" in core or "image" in core):
            frame = "please find {}"
        text = frame.format(core)
    else:
        text = d.choice(WHERE_MANY if many else WHERE[:7]).format(core)
    if d.chance(0.08):
        text = text[0].upper() + text[1:]
        if text[-1] not in "?." and d.chance(0.6):
            text += "."
    return text


@cache
def vocabulary() -> list[str]:
    """Every word of all templates, nouns, plurals, colours and ordinary absent nouns; parts of hyphenated ones too."""
    texts: list[str] = [
        *VERBS,
        *POLITE,
        *WHERE,
        *WHERE_MANY,
        *NAMES,
        "grey",
        GLUE,
        *ORDINALS,
        *DIGITS,
        *NUMBERS.values(),
        *THINGS,
    ]
    texts += [word for group in (*RELATIONS.values(), *SIZES.values(), *PLACES.values()) for word in group]
    texts += [word for pair in ENDS.values() for group in pair for word in group]
    table = nouns()
    singular = [*table.yes, *(word for words, _ in ordinary().values() for word in words), *THINGS]
    texts += singular + [many for many in map(plural, singular) if many]
    found = {word for text in texts for word in tokens(text.replace("{}", ""))}
    found |= {part for word in found for part in re.split(r"[-']", word) if part}
    return sorted(found)
