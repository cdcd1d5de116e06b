"""Words for things that no glyph shows: ordinary nouns, and invented ones."""

from __future__ import annotations

import json
from functools import cache

from vlseg.worlds.atlas import ASSETS

_ONSETS = (
    "b",
    "bl",
    "br",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "s",
    "sk",
    "sn",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
_NUCLEI = ("a", "e", "i", "o", "u", "oo", "ee", "ai")
_CODAS = ("b", "ck", "dge", "ft", "g", "lb", "lk", "mp", "n", "nk", "p", "rf", "rn", "sk", "t", "x", "zz")
_ENDS = ("", "", "", "le", "er", "ix", "on", "oid", "ump", "ette")


@cache
def ordinary() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Ordinary things without a glyph, by domain: (words, near).

    near: how the Unicode subgroups begin among which some glyph could pass for one of the words.
    """
    raw = json.loads((ASSETS / "absent.json").read_text(encoding="utf-8"))
    return {domain: (tuple(entry["words"]), tuple(entry["near"])) for domain, entry in raw.items()}


@cache
def invented() -> tuple[str, ...]:
    """Some ten thousand words of no language, in a fixed order."""
    out = {a + b + c + d for a in _ONSETS for b in _NUCLEI for c in _CODAS for d in _ENDS}
    real = {part for words, _ in ordinary().values() for phrase in words for part in phrase.split()}
    return tuple(sorted(word for word in out - real if len(word) > 4))
