"""The hand-made part of the noun list: what is left out, what else a glyph is called, what could be mistaken.

It stands in ``assets/curation.json``. Names there are CLDR short names in lower case with a plain apostrophe.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from vlseg.worlds.atlas import ASSETS

GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")


@dataclass(frozen=True, slots=True)
class Curation:
    """The tables.

    exclude: abstract, flat, scenic or multiple glyphs, and twins of one that stays; used by the builder only.
    synonyms: what else people call a glyph; used by the builder only, which writes them to ``nouns.json``.
    not_a: a noun, and the names that end in it without being one ("dog": "hot dog").
    heads: broader nouns that a plain user types, and the glyphs that they hold for.
    interchangeable: sets of glyphs in which a careful person would not swear which drawing a name means.
    plural_form: phrases that are plural as they stand; mass: phrases without a plural of their own.
    """

    exclude: frozenset[str]
    synonyms: dict[str, list[str]]
    not_a: dict[str, list[str]]
    heads: dict[str, list[str]]
    interchangeable: list[list[str]]
    plural_form: frozenset[str]
    mass: frozenset[str]


@cache
def curation() -> Curation:
    """The tables, read when first asked for."""
    raw = json.loads((ASSETS / "curation.json").read_text(encoding="utf-8"))
    return Curation(
        frozenset(raw["exclude"]),
        raw["synonyms"],
        raw["not_a"],
        raw["heads"],
        raw["interchangeable"],
        frozenset(raw["plural_form"]),
        frozenset(raw["mass"]),
    )
