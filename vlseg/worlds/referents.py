"""Who can be spoken of in a scene: groups of objects by the noun phrases that name exactly them."""

from __future__ import annotations

from vlseg.worlds.absent_words import invented, ordinary
from vlseg.worlds.backgrounds import seen_in
from vlseg.worlds.colours import NAMES
from vlseg.worlds.draw import Draw
from vlseg.worlds.facts import Facts
from vlseg.worlds.inflect import is_plural, plural
from vlseg.worlds.nouns import nouns
from vlseg.worlds.scene import Scene

TINTS = frozenset(NAMES) | {"grey", "golden", "gold", "silver", "bronze"}
KEEPS_TINT = ("original", "sticker", "texture", "watercolour", "crayon")
PRIMARY = 0.6


class Group:
    """The objects ``members`` (indices, ascending) that each of ``phrases`` names, and no other object."""

    __slots__ = ("members", "phrases", "primary")

    def __init__(self, members: tuple[int, ...]) -> None:
        self.members = members
        self.phrases: list[str] = []
        self.primary: list[str] = []

    def phrase(self, d: Draw) -> str:
        """One of the phrases, most often a glyph's primary name."""
        if self.primary and d.chance(PRIMARY):
            return d.choice(self.primary)
        return d.choice(self.phrases)


class Referents:
    """A scene as the grammar sees it. groups: all noun groups; singles and multis: those of one and of several."""

    def __init__(self, scene: Scene) -> None:
        self.facts = Facts(scene)
        self.objects = scene.objects
        self.table = nouns()
        self.everyone = tuple(range(len(scene.objects)))
        self.cast = frozenset(o.glyph for o in scene.objects)
        # Nouns that the background might show are neither asked for nor said to be absent.
        unsure = seen_in(scene.background)
        self.unsure = frozenset(self.table.names.index(name) for name in unsure)
        self.outdoors = scene.background.startswith(("photo", "blend"))
        self.subgroups = {self.table.subgroups[g] for g in self.cast}
        by_members: dict[tuple[int, ...], Group] = {}
        for glyph in sorted(self.cast):
            for k, phrase in enumerate(self.table.phrases[glyph]):
                if not self.table.open(phrase).isdisjoint(self.cast):
                    continue
                named = self.table.yes[phrase]
                if not self.unsure.isdisjoint(named):
                    continue
                members = tuple(i for i in self.everyone if self.objects[i].glyph in named)
                if not self._tint_holds(phrase, members):
                    continue
                group = by_members.setdefault(members, Group(members))
                if phrase not in group.phrases:
                    group.phrases.append(phrase)
                    if k == 0:
                        group.primary.append(phrase)
        self.groups = list(by_members.values())
        self.singles = [g for g in self.groups if len(g.members) == 1]
        self.multis = [g for g in self.groups if len(g.members) > 1]

    def _tint_holds(self, phrase: str, members: tuple[int, ...]) -> bool:
        """Whether a colour inside the phrase ("silver medal") still holds: nobody was re-styled."""
        if TINTS.isdisjoint(phrase.split()):
            return True
        return all(self.objects[i].style in KEEPS_TINT for i in members)

    def clean(self, phrase: str) -> bool:
        """Whether ``phrase`` names nobody here, and of nobody it is open."""
        cast = self.cast
        named = self.table.yes.get(phrase, frozenset())
        return cast.isdisjoint(named) and self.unsure.isdisjoint(named) and cast.isdisjoint(self.table.open(phrase))

    def look_alike(self, d: Draw) -> tuple[str, str] | None:
        """(phrase, subgroup) of a glyph that is not here but has kin here."""
        for _ in range(6):
            subgroup = self.table.subgroups[self.objects[d.choice(self.everyone)].glyph]
            glyph = d.choice(self.table.members[subgroup])
            phrase = self._phrase(glyph, d)
            if self.clean(phrase) and TINTS.isdisjoint(phrase.split()):
                return phrase, subgroup
        return None

    def nobody(self, d: Draw) -> str | None:
        """A phrase for something that is not here at all: another glyph's, an ordinary word, or an invented one."""
        for _ in range(6):
            pick = d.unit()
            if pick < 0.62:
                glyph = d.below(len(self.table.names))
                if self.table.subgroups[glyph] in self.subgroups:
                    continue
                phrase = self._phrase(glyph, d)
            elif pick < 0.87:
                domain = d.choice(tuple(ordinary()))
                choices, kin = ordinary()[domain]
                if self.outdoors and domain in ("rest", "places"):
                    continue
                if any(subgroup.startswith(near) for subgroup in self.subgroups for near in kin):
                    continue
                phrase = d.choice(choices)
            else:
                phrase = d.choice(invented())
            if self.clean(phrase):
                return phrase
        return None

    def _phrase(self, glyph: int, d: Draw) -> str:
        return self.table.names[glyph] if d.chance(PRIMARY) else d.choice(self.table.phrases[glyph])

    def distractors(
        self, targets: tuple[int, ...], near: tuple[int, ...], subgroup: str | None = None
    ) -> tuple[int, ...]:
        """Everybody in ``near`` and everybody of the targets' subgroups (or of ``subgroup``) who is no target."""
        kin = {self.table.subgroups[self.objects[t].glyph] for t in targets}
        if subgroup:
            kin.add(subgroup)
        return tuple(
            i
            for i in self.everyone
            if i not in targets and (i in near or self.table.subgroups[self.objects[i].glyph] in kin)
        )


def many_of(phrase: str) -> str:
    """The phrase as it stands after "all the"."""
    return plural(phrase) or phrase


def countable(phrase: str) -> bool:
    """Whether "every" and numbers go with the phrase."""
    return plural(phrase) is not None


def is_are(phrase: str, many: bool) -> str:
    """The verb after the phrase."""
    return "are" if many or is_plural(phrase) else "is"
