"""Which glyphs play in a scene: repeated nouns, look-alikes of the same subgroup, and strangers."""

from __future__ import annotations

from collections.abc import Sequence
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


def stranger(cast: list[int], pool: Sequence[int], d: Draw) -> int | None:
    """A glyph of the pool, not in the cast, that clashes with nobody there; None where a few tries find none."""
    for _ in range(6):
        glyph = pool[d.below(len(pool))]
        if glyph not in cast and fits_in(glyph, cast):
            return glyph
    return None


def look_alike(glyph: int, cast: list[int], table: Nouns, pool: Sequence[int], d: Draw) -> int | None:
    """A glyph of the pool and of the same Unicode subgroup that is clearly something else."""
    members = [m for m in table.members[table.subgroups[glyph]] if m in pool]
    for _ in range(6):
        other = d.choice(members)
        if other not in cast and fits_in(other, cast):
            return other
    return None


def sibling(glyph: int, table: Nouns, pool: Sequence[int], d: Draw) -> int:
    """Another glyph of the pool that one phrase names together with ``glyph`` ("dog": dog, guide dog), or itself."""
    shared = [g for phrase in table.phrases[glyph] for g in sorted(table.yes[phrase]) if g != glyph and g in pool]
    return d.choice(shared) if shared else glyph


def cast(d: Draw, pool: Sequence[int] | None = None) -> list[int]:
    """The glyphs of a scene, one per object, in no particular order. pool: the glyphs there are; default: all."""
    table = nouns()
    pool = range(len(table.names)) if pool is None else pool
    count = d.weighted(COUNTS, COUNT_WEIGHTS)
    first = pool[d.below(len(pool))]
    chosen = [first]
    if count >= 2 and d.chance(0.68):
        for _ in range(min(count, d.weighted((2, 3, 4), (0.5, 0.33, 0.17))) - 1):
            chosen.append(sibling(first, table, pool, d) if d.chance(0.12) else first)
        if count - len(chosen) >= 2 and d.chance(0.4):
            second = look_alike(first, chosen, table, pool, d) if d.chance(0.4) else None
            second = second or stranger(chosen, pool, d)
            if second is not None:
                chosen += [second] * (2 if count - len(chosen) < 3 or d.chance(0.7) else 3)
    if len(chosen) < count and d.chance(0.55):
        other = look_alike(d.choice(chosen), chosen, table, pool, d)
        if other is not None:
            chosen.append(other)
    while len(chosen) < count:
        found = look_alike(d.choice(chosen), chosen, table, pool, d) if d.chance(0.2) else None
        found = found or stranger(chosen, pool, d)
        if found is None:
            break
        chosen.append(found)
    return chosen
