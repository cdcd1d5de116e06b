"""Which glyphs play in a scene: repeated nouns, look-alikes of the same subgroup, and strangers."""

from __future__ import annotations

from functools import cache

from vlseg.worlds.draw import Draw
from vlseg.worlds.nouns import Nouns, nouns

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
COUNT_WEIGHTS = (0.04, 0.07, 0.12, 0.15, 0.16, 0.18, 0.11, 0.08, 0.05, 0.04)


@cache
def clashes(glyph: int) -> frozenset[int]:
    """Glyphs of which it is open whether ``glyph``'s primary name fits."""
    table = nouns()
    return table.open(table.names[glyph])


def clash(first: int, second: int) -> bool:
    """Whether the primary name of either glyph is open for the other, or fits it although they differ."""
    if first == second:
        return False
    table = nouns()
    if second in clashes(first) or first in clashes(second):
        return True
    return second in table.yes[table.names[first]] or first in table.yes[table.names[second]]


def fits_in(glyph: int, cast: list[int]) -> bool:
    """Whether ``glyph`` clashes with nobody in ``cast``."""
    return not any(clash(glyph, other) for other in cast)


def stranger(cast: list[int], table: Nouns, d: Draw) -> int | None:
    """A glyph that is not in the cast and clashes with nobody there; None where a few tries find none."""
    for _ in range(6):
        glyph = d.below(len(table.names))
        if glyph not in cast and fits_in(glyph, cast):
            return glyph
    return None


def look_alike(glyph: int, cast: list[int], table: Nouns, d: Draw) -> int | None:
    """A glyph of the same Unicode subgroup that is clearly something else."""
    pool = table.members[table.subgroups[glyph]]
    for _ in range(6):
        other = d.choice(pool)
        if other not in cast and fits_in(other, cast):
            return other
    return None


def sibling(glyph: int, cast: list[int], table: Nouns, d: Draw) -> int:
    """Another glyph that one phrase names together with ``glyph`` ("dog": dog, guide dog), or the glyph itself."""
    shared = [g for phrase in table.phrases[glyph] for g in sorted(table.yes[phrase]) if g != glyph]
    return d.choice(shared) if shared else glyph


def cast(d: Draw) -> list[int]:
    """The glyphs of a scene, one per object, in no particular order."""
    table = nouns()
    count = d.weighted(COUNTS, COUNT_WEIGHTS)
    first = d.below(len(table.names))
    chosen = [first]
    if count >= 2 and d.chance(0.68):
        for _ in range(min(count, d.weighted((2, 3, 4), (0.5, 0.33, 0.17))) - 1):
            chosen.append(sibling(first, chosen, table, d) if d.chance(0.12) else first)
        if count - len(chosen) >= 2 and d.chance(0.4):
            second = (look_alike(first, chosen, table, d) if d.chance(0.4) else None) or stranger(chosen, table, d)
            if second is not None:
                chosen += [second] * (2 if count - len(chosen) < 3 or d.chance(0.7) else 3)
    if len(chosen) < count and d.chance(0.55):
        other = look_alike(d.choice(chosen), chosen, table, d)
        if other is not None:
            chosen.append(other)
    while len(chosen) < count:
        found = (look_alike(d.choice(chosen), chosen, table, d) if d.chance(0.2) else None) or stranger(
            chosen, table, d
        )
        if found is None:
            break
        chosen.append(found)
    return chosen
