"""Every expression's truth, read again from its words by a checker that shares no code with the grammar.

The checker parses plain English with regular expressions and looks only at ids, glyph names and boxes. What it cannot
parse it reports, and few may be left unread.
"""

from __future__ import annotations

import collections
import re

import pytest

from vlseg.worlds.inflect import plural
from vlseg.worlds.nouns import nouns
from vlseg.worlds.sprites import Scene, SceneQuery, SpriteWorld

COUNT = 300
FRAME = re.compile(
    r"^(please |can you |could you |would you |help me |i am looking for|i'm looking for|i would like|i want|i need|"
    r"where is|where are|where's|which one is|which ones are|where can i find|which object is|do you see|can you see|"
    r"draw a mask on|give me the mask of)?\s*(please )?(show me|show|give me|point to|point out|cut out|pick out|pick|"
    r"look for|segment out|segment|find|mask|select|highlight|mark|outline|locate|get|trace|detect|"
    r"isolate|extract)?(?![a-z-])\s*"
)
TAIL = re.compile(r"(,? please| for me| in this image| in the picture| in the image| in this picture)$")
SIDE = {"left of": "left", "on the left side of": "left", "right of": "right", "on the right side of": "right"}
SIDE |= {w: "above" for w in ("above", "over", "higher than")}
SIDE |= {w: "below" for w in ("below", "under", "beneath", "underneath", "lower than")}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    world = SpriteWorld("train")
    return [world.scene(21, i, ((128, 128), (96, 160))[i % 2]) for i in range(COUNT)]


def fitting(scene: Scene, phrase: str) -> list[int] | None:
    """The objects that a singular or plural noun phrase names; None where it names no glyph at all."""
    table = nouns()
    forms = [p for p in table.yes if phrase == p or phrase == plural(p)]
    if not forms:
        return None
    return [i for i, o in enumerate(scene.objects) if any(table.fits(p, o.glyph) == "yes" for p in forms)]


def core(text: str) -> str:
    """The noun phrase inside the frame."""
    text = text.lower().rstrip(".?").strip()
    for _ in range(3):
        if not re.search(r"(part|left|right|top|bottom|middle|center|side|centre) (of|in) the (picture|image)$", text):
            text = TAIL.sub("", text).strip()
    text = FRAME.sub("", text, count=1)
    return re.sub(r"^(the|a|an) ", "", text.strip())


def centre(scene: Scene, i: int) -> tuple[float, float]:
    x0, y0, x1, y1 = scene.objects[i].box
    return (x0 + x1) / 2, (y0 + y1) / 2


def on_side(scene: Scene, side: str, i: int, a: int) -> bool:
    (x, y), (ax, ay) = centre(scene, i), centre(scene, a)
    return {"left": x < ax, "right": x > ax, "above": y < ay, "below": y > ay}[side]


def check(scene: Scene, query: SceneQuery) -> bool | None:
    """True where the words were understood and the targets are right, False where they are wrong, None if unread."""
    text = core(query.text)
    if query.kind in ("name", "absent"):
        found = fitting(scene, text)
        return None if found is None else tuple(found) == query.targets
    if query.kind == "all":
        bare = re.sub(
            r"^(all of the|all the|all|every single|every|each|both the|both|the|two|three|four) (two |three |four )?",
            "",
            text,
        )
        found = fitting(scene, re.sub(r"^(two|three|four) ", "", bare))
        return None if found is None else tuple(found) == query.targets
    if query.kind == "superlative":
        match = re.match(
            r"(left-?most|right-?most|topmost|highest|bottommost|lowest|largest|biggest|smallest|tiniest) (.+)$", text
        )
        if match is None:
            return None
        phrase = match.group(2)
        thing = phrase in ("object", "thing", "item")
        group = list(range(len(scene.objects))) if thing else fitting(scene, phrase)
        if not group:
            return None
        word = match.group(1).replace("-", "")
        key = {
            "leftmost": lambda i: centre(scene, i)[0], "rightmost": lambda i: -centre(scene, i)[0],
            "topmost": lambda i: centre(scene, i)[1], "highest": lambda i: centre(scene, i)[1],
            "bottommost": lambda i: -centre(scene, i)[1], "lowest": lambda i: -centre(scene, i)[1],
            "largest": lambda i: -(scene.ids == i + 1).sum(), "biggest": lambda i: -(scene.ids == i + 1).sum(),
            "smallest": lambda i: (scene.ids == i + 1).sum(), "tiniest": lambda i: (scene.ids == i + 1).sum(),
        }[word]  # fmt: skip
        return (min(group, key=key),) == query.targets
    if query.kind in ("relation", "absent-hard"):
        words = "|".join(sorted(SIDE, key=len, reverse=True))
        match = re.match(
            rf"(.+?) (?:that is |that's |which is |that are )?(?:to the |on the )?({words}) (?:the )?(.+)$", text
        )
        if match is None:
            return None
        phrase, side, other = match.group(1), SIDE[match.group(2)], match.group(3)
        thing = phrase in ("object", "thing", "item")
        group = list(range(len(scene.objects))) if thing else fitting(scene, phrase)
        anchors = fitting(scene, other)
        if group is None or anchors is None:
            return None
        if len(anchors) != 1:
            return query.targets == () and not anchors
        hits = tuple(i for i in group if i != anchors[0] and on_side(scene, side, i, anchors[0]))
        return hits == query.targets
    return None


def test_expressions_are_true(scenes: list[Scene]) -> None:
    read: collections.Counter[str] = collections.Counter()
    asked: collections.Counter[str] = collections.Counter()
    wrong = []
    for k, scene in enumerate(scenes):
        for query in scene.queries:
            asked[query.kind] += 1
            value = check(scene, query)
            if value is not None:
                read[query.kind] += 1
            if value is False:
                wrong.append((k, query.text, query.kind, query.targets, [o.noun for o in scene.objects]))
    assert not wrong, wrong[:5]
    assert read["name"] > 0.9 * asked["name"]
    assert read["superlative"] > 0.3 * asked["superlative"]
    assert read["relation"] > 0.25 * asked["relation"]
    assert read["all"] > 0.3 * asked["all"]
    assert read["absent"] > 0.2 * asked["absent"]


def test_no_object_is_open_for_a_noun_that_is_used(scenes: list[Scene]) -> None:
    table = nouns()
    for scene in scenes:
        for query in scene.queries:
            for phrase in query.nouns:
                assert all(table.fits(phrase, o.glyph) != "open" for o in scene.objects), (query.text, phrase)


def test_absent_nouns_are_not_there_and_present_ones_are(scenes: list[Scene]) -> None:
    table = nouns()
    for scene in scenes:
        for query in scene.queries:
            if query.kind == "absent":
                assert not any(table.fits(query.nouns[0], o.glyph) == "yes" for o in scene.objects), query
            elif query.targets and query.nouns and query.kind not in ("negation", "all"):
                things = set(query.text.lower().split()) & {"object", "thing", "item", "objects", "things", "items"}
                fits = all(table.fits(query.nouns[0], scene.objects[t].glyph) == "yes" for t in query.targets)
                assert fits or things, query


def test_colours_hold_in_the_pixels(scenes: list[Scene]) -> None:
    """The asked colour's own channel relation holds on a large share of its pixels."""
    rules = {
        "red": lambda r, g, b: r > g and r > b,
        "green": lambda r, g, b: g > r and g > b,
        "blue": lambda r, g, b: b > r,
        "yellow": lambda r, g, b: min(r, g) > b,
        "white": lambda r, g, b: min(r, g, b) > 110,
        "black": lambda r, g, b: max(r, g, b) < 130,
    }
    seen = 0
    for scene in scenes:
        for query in scene.queries:
            said = [word for word in rules if word in query.text.lower().split()]
            if query.kind != "colour" or len(said) != 1:
                continue
            pixels = scene.image[scene.ids == query.targets[0] + 1].tolist()
            share = sum(rules[said[0]](*pixel) for pixel in pixels) / len(pixels)
            assert share > 0.4, (query.text, share)
            seen += 1
    assert seen > 40
