"""The sprite world: scenes of colour glyphs with exact masks and referring expressions whose truth is checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlseg.types import VLSegError
from vlseg.worlds import backgrounds, colours, photometric, wordings
from vlseg.worlds.casting import cast
from vlseg.worlds.compose import Placed, compose
from vlseg.worlds.draw import Draw
from vlseg.worlds.nouns import nouns
from vlseg.worlds.queries import KINDS, ask
from vlseg.worlds.scene import Scene, SceneObject, SceneQuery

__all__ = ["KINDS", "Scene", "SceneObject", "SceneQuery", "SpriteWorld"]

STYLES = ("train", "plain", "held_out")


class SpriteWorld:
    """Scenes of sprites, each fully determined by its arguments: same seed, same bytes.

    styles: "train" (all drawing styles but the held-out one), "plain" (changes of colour and light only) or
    "held_out" (every object in a style that "train" never shows). only: primary names; no other things play in its
    scenes (expressions may still speak of absent ones). Raises VLSegError for an unknown style or name.
    """

    def __init__(self, styles: str = "train", only: Sequence[str] | None = None) -> None:
        if styles not in STYLES:
            raise VLSegError(f"sprites: no styles {styles!r}; there are {', '.join(STYLES)}")
        if only is not None and (strange := sorted(set(only) - set(self.nouns))):
            raise VLSegError(f"sprites: no thing is called {strange[0]!r}")
        self.styles = styles
        self.pool = None if only is None else tuple(self.nouns.index(name) for name in only)

    @property
    def nouns(self) -> list[str]:
        """The primary name per glyph index; the order is stable."""
        return nouns().names

    def vocabulary(self) -> list[str]:
        """Every lower-case word that an expression can contain, sorted; invented words ("blorf") are left out."""
        return wordings.vocabulary()

    def scene(
        self,
        seed: int,
        index: int,
        size: tuple[int, int] = (128, 128),
        queries: int = 8,
        kinds: dict[str, float] | None = None,
    ) -> Scene:
        """Scene ``index`` of the stream ``seed``, ``size`` (H, W) pixels, with up to ``queries`` different queries.

        kinds: weights of query kinds (those of ``KINDS``) in place of the standard ones. Fewer queries come back only
        where a tiny scene admits no more. Raises VLSegError for sizes below 32, negative seeds or unknown kinds.
        """
        h, w = size
        if min(h, w) < 32 or seed < 0 or index < 0:
            raise VLSegError(
                f"sprites: at least 32 x 32 pixels, seed and index not negative; got {size}, {seed}, {index}"
            )
        if kinds is not None and not set(kinds) <= set(KINDS):
            raise VLSegError(f"sprites: unknown kinds {sorted(set(kinds) - set(KINDS))}; there are {', '.join(KINDS)}")
        d = Draw(seed, index, h, w, STYLES.index(self.styles))
        canvas, kind = backgrounds.background((h, w), d)
        ids, placed, extents = compose(canvas, cast(d, self.pool), self.styles, d)
        lit = np.clip(photometric.light(canvas, d), 0, 255).astype(np.uint8)
        said = colours.words(lit, ids, len(placed))
        objects = [
            _described(item, ids, i + 1, extent, *words)
            for i, (item, extent, words) in enumerate(zip(placed, extents, said, strict=True))
        ]
        scene = Scene(photometric.camera(lit, d), ids, objects, [], kind)
        scene.queries = ask(scene, queries, kinds, d)
        return scene


def _described(
    item: Placed, ids: np.ndarray, number: int, extent: float, true: frozenset[str], undecided: frozenset[str]
) -> SceneObject:
    h, w = item.alpha.shape
    x, y = max(item.x, 0), max(item.y, 0)
    own = ids[y : item.y + h, x : item.x + w] == number
    if item.style == "sticker":
        # The rim is part of the mask but not of what people would name the colour of.
        true, undecided = frozenset(), undecided | true
    rows, columns = own.any(1).nonzero()[0], own.any(0).nonzero()[0]
    box = (float(x + columns[0]), float(y + rows[0]), float(x + columns[-1] + 1), float(y + rows[-1] + 1))
    return SceneObject(
        glyph=item.glyph,
        noun=nouns().names[item.glyph],
        box=box,
        area=int(np.count_nonzero(own)),
        full_area=item.full_area,
        colours=true,
        open_colours=undecided,
        style=item.style,
        rotation=item.rotation,
        flipped=item.flipped,
        extent=extent,
    )
