"""The reduced sprite world of `target_aware.py`: 40 things, few words, and always a second object of the noun."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from vlseg.worlds.backgrounds import gradient
from vlseg.worlds.casting import stranger
from vlseg.worlds.compose import compose
from vlseg.worlds.draw import Draw
from vlseg.worlds.referents import Referents
from vlseg.worlds.scene import Scene, SceneObject, SceneQuery
from vlseg.worlds.sprites import SpriteWorld

SIZE = (64, 64)
THINGS = 40
WAYS = {
    "left": "leftmost",
    "right": "rightmost",
    "top": "topmost",
    "bottom": "bottommost",
    "large": "largest",
    "small": "smallest",
}
QUERIES = 8  # at most, of a scene
LEAST = 0.03  # share of the picture that the smallest object spoken of takes
WORDS = 311  # keeps the draws apart from those of the scene's picture


def the_world() -> SpriteWorld:
    """Every n-th thing of the sprite world, drawn plainly."""
    names = SpriteWorld().nouns
    return SpriteWorld("plain", only=names[:: len(names) // THINGS][:THINGS])


def expressions(scene: Scene, world: SpriteWorld, absent: float, d: Draw) -> list[SceneQuery]:
    """Of the kind "the dog that is leftmost", for one of several objects of a noun whose place or size is clear.

    absent: the chance of one more, for a thing that is not there. One wording for each meaning: what is compared is how
    a choice is learned, not how language is.
    """
    said = Referents(scene)
    found = []
    for group in said.multis:
        if group.primary and min(scene.objects[m].area for m in group.members) >= LEAST * scene.ids.size:
            noun = group.primary[0]
            for way, word in WAYS.items():
                target = said.facts.first(way, group.members)
                if target is not None:
                    rest = tuple(m for m in group.members if m != target)
                    found.append(SceneQuery(f"the {noun} that is {word}", way, (target,), rest, (noun,)))
    found = d.shuffled(found)[:QUERIES]
    if d.chance(absent):
        assert world.pool is not None
        missing = [name for name in (world.nouns[glyph] for glyph in world.pool) if said.clean(name)]
        noun = d.choice(missing)
        found.append(SceneQuery(f"the {noun} that is {WAYS[d.choice(list(WAYS))]}", "absent", (), (), (noun,)))
    return found


def picture(world: SpriteWorld, seed: int, index: int) -> Scene:
    """Two to five sprites on a plain ground, two or three of them of one noun; no expressions yet."""
    assert world.pool is not None
    d = Draw(seed, index, *SIZE)
    canvas = gradient(SIZE, d)
    glyphs = [d.choice(world.pool)]
    glyphs *= 2 if d.chance(0.7) else 3
    for _ in range(d.below(3)):
        other = stranger(glyphs, world.pool, d)
        if other is not None:
            glyphs.append(other)
    ids, placed, extents = compose(canvas, glyphs, "plain", d)
    objects = []
    for number, (item, extent) in enumerate(zip(placed, extents, strict=True)):
        own = ids == number + 1
        rows, columns = own.any(1).nonzero()[0], own.any(0).nonzero()[0]
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        name = world.nouns[item.glyph]
        objects.append(SceneObject(item.glyph, name, box, int(own.sum()), item.full_area, extent=extent))
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), ids, objects, [], "gradient")


def scenes(world: SpriteWorld, seed: int, absent: float = 0.5) -> Iterator[Scene]:
    """The endless stream of scenes of a seed; each has at least two expressions with a target."""
    for index in itertools.count():
        scene = picture(world, seed, index)
        scene.queries = expressions(scene, world, absent, Draw(seed, index, WORDS))
        if sum(bool(query.targets) for query in scene.queries) >= 2:
            yield scene
