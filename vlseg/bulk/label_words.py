"""Words of queries for labelling: paraphrases, and what to ask of the mirrored picture."""

from __future__ import annotations

import re

_PAIRS = (
    ("left", "right"), ("leftmost", "rightmost"), ("lefthand", "righthand"), ("leftward", "rightward"),
    ("leftwards", "rightwards"), ("clockwise", "counterclockwise"), ("clockwise", "anticlockwise"),
    ("western", "eastern"), ("west", "east"), ("westernmost", "easternmost"), ("左", "右"),
)  # fmt: skip
_OTHER = {b: a for a, b in _PAIRS} | {a: b for a, b in reversed(_PAIRS)}
# "right" and "left" that mean no side.
_FIXED = re.compile(
    r"\bright[\s-]+angle[ds]?\b|\bright[\s-]+triangles?\b|\b(?<!the )right (?:now|there|here|away|behind|above|below|"
    r"beside|under|underneath|before|after|next to|at|in front|on top|through|over)\b|\ball right\b|"
    r"\bleft[\s-]?overs?\b|\bleft (?:behind|alone|out|open|over)\b|\b(?:is|are|was|were) left\b(?!-| of| hand)",
    re.IGNORECASE,
)
_WORDS = sorted((word for word in _OTHER if word.isascii()), key=len, reverse=True)
_SIDES = re.compile("|".join([*(rf"\b{word}\b" for word in _WORDS), "左", "右"]), re.IGNORECASE)
# What a mirror makes unreadable, or turns in a way that words do not follow.
_WRITTEN = re.compile(
    r"[\"“”„«»`]|(?<!\w)'[^']+'(?!\w)|\d|o'clock|\b(?:says?|saying|reads?|reading|spells?|letters?|digits?|numbers?|"
    r"text|word|words|written|writing|labell?ed|titled|inscription|logo|number plate|licen[cs]e plate|clock)\b",
    re.IGNORECASE,
)


def variants(text: str) -> list[str]:
    """The wordings of one query, the first of which names it: they are separated by " | " in files of queries."""
    return [part.strip() for part in text.split(" | ") if part.strip()] or [text]


def mirrored(text: str) -> str | None:
    """The query that asks of the mirrored picture what `text` asks of the picture; None where that cannot be said.

    Sides change places (left and right, west and east, clockwise; 左 and 右), but not where the word means no side ("a
    right angle", "the cake that is left"). None for what is written or read in the picture, for numbers, and for
    words outside of ASCII, whose sides are not known.
    """
    if _WRITTEN.search(text):
        return None
    if not text.replace("左", "").replace("右", "").isascii() and not re.search("[左右]", text):
        return None
    out, at = [], 0
    for fixed in [*_FIXED.finditer(text), None]:
        end = fixed.start() if fixed else len(text)
        out.append(_SIDES.sub(lambda found: _like(_OTHER[found[0].lower()], found[0]), text[at:end]))
        if fixed:
            out.append(fixed[0])
            at = fixed.end()
    return "".join(out)


def _like(word: str, model: str) -> str:
    """The word in the capitals of another."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word
