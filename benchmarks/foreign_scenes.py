"""Score a model on scenes that its own training world did not draw: other renderer, placement and wordings.

    python benchmarks/foreign_scenes.py [--model FOLDER] [--scenes 200] [--photos FOLDER] [--sheet FILE.png] [--json]

Only the names of things are shared with the training world. Glyphs come from NotoColorEmoji.ttf through Pillow
(Debian: fonts-noto-color-emoji), on painted or blurred photographic backgrounds; every query is checked against the
finished picture, and said only where the margin is clear. `--sheet` draws scenes with their queries and runs no model.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SEED, SIDE, OBJECTS, QUERIES = 950_001, 256, 6, 6
FONT, STRIKE = "NotoColorEmoji.ttf", 109  # the only bitmap size in that font
EXTENT, VISIBLE = (24, 110), 0.6
ABSENT = 0.18
NEWER = "a colour bitmap font is needed: install fonts-noto-color-emoji, or give --font"


def listed(text: str) -> list[str]:
    """Names between commas, over any number of lines."""
    return [" ".join(name.split()) for name in text.split(",")]


def paired(text: str) -> dict[str, str]:
    """`a: b, c: d` as a dictionary."""
    return {a.strip(): b.strip() for a, b in (pair.split(":") for pair in listed(text))}


def grouped(text: str) -> list[list[str]]:
    """Lists with a slash between them."""
    return [listed(group) for group in text.split("/")]


# Code points of glyphs whose CLDR name (Emoji 16) is not the Unicode character name.
RENAMED = paired(
    """
    wolf: 1F43A, fox: 1F98A, lion: 1F981, moose: 1FACE, donkey: 1FACF, unicorn: 1F984, zebra: 1F993, ewe: 1F411,
    camel: 1F42A, two-hump camel: 1F42B, giraffe: 1F992, hamster: 1F439, bear: 1F43B, panda: 1F43C, dove: 1F54A,
    wing: 1FABD, goose: 1FABF, frog: 1F438, jellyfish: 1FABC, hyacinth: 1FABB, sheaf of rice: 1F33E, kiwi fruit:
    1F95D, eggplant: 1F346, ear of corn: 1F33D, ginger root: 1FADA, pea pod: 1FADB, pizza: 1F355, salt: 1F9C2,
    curry rice: 1F35B, mate: 1F9C9, fish cake with swirl: 1F365, kitchen knife: 1F52A, derelict house: 1F3DA,
    house: 1F3E0, post office: 1F3E4, castle: 1F3F0, locomotive: 1F682, bullet train: 1F685, sport utility
    vehicle: 1F699, motorcycle: 1F3CD, kick scooter: 1F6F4, police car light: 1F6A8, stop sign: 1F6D1, hourglass
    done: 231B, full moon: 1F315, sun: 2600, full moon face: 1F31D, star: 2B50, tornado: 1F32A, red envelope:
    1F9E7, wrapped gift: 1F381, 1st place medal: 1F947, 2nd place medal: 1F948, 3rd place medal: 1F949,
    basketball: 1F3C0, tennis: 1F3BE, cricket game: 1F3CF, field hockey: 1F3D1, ice hockey: 1F3D2, lacrosse:
    1F94D, ping pong: 1F3D3, badminton: 1F3F8, fishing pole: 1F3A3, running shirt: 1F3BD, skis: 1F3BF, bullseye:
    1F3AF, water pistol: 1F52B, pool 8 ball: 1F3B1, puzzle piece: 1F9E9, piñata: 1FA85, chess pawn: 265F, joker:
    1F0CF, mahjong red dragon: 1F004, framed picture: 1F5BC, thread: 1F9F5, yarn: 1F9F6, glasses: 1F453,
    sunglasses: 1F576, woman's clothes: 1F45A, folding hand fan: 1FAAD, clutch bag: 1F45D, backpack: 1F392, man's
    shoe: 1F45E, running shoe: 1F45F, woman's sandal: 1F461, woman's boot: 1F462, hair pick: 1FAAE, woman's hat:
    1F452, rescue worker's helmet: 26D1, speaker high volume: 1F50A, loudspeaker: 1F4E2, megaphone: 1F4E3, drum:
    1F941, maracas: 1FA87, flute: 1FA88, telephone: 260E, laptop: 1F4BB, computer mouse: 1F5B1, computer disk:
    1F4BD, optical disk: 1F4BF, magnifying glass tilted left: 1F50D, light bulb: 1F4A1, flashlight: 1F526, red
    paper lantern: 1F3EE, yen banknote: 1F4B4, dollar banknote: 1F4B5, euro banknote: 1F4B6, pound banknote:
    1F4B7, fountain pen: 1F58B, pen: 1F58A, paintbrush: 1F58C, crayon: 1F58D, spiral notepad: 1F5D2, spiral
    calendar: 1F5D3, chart increasing: 1F4C8, chart decreasing: 1F4C9, scissors: 2702, locked: 1F512, unlocked:
    1F513, dagger: 1F5E1, clamp: 1F5DC, balance scale: 2696, white cane: 1F9AF, link: 1F517, dna: 1F9EC, soap:
    1F9FC, shopping cart: 1F6D2, cigarette: 1F6AC, moai: 1F5FF
    """
)
# Where another of a thing's names is what people say.
SAID = paired(
    """
    ewe: sheep, baby chick: chick, bug: caterpillar, honeybee: bee, lady beetle: ladybug, evergreen tree: pine
    tree, ear of corn: corn, cheese wedge: cheese, cut of meat: steak, green salad: salad, teacup without handle:
    cup of tea, hot beverage: cup of coffee, bottle with popping cork: champagne bottle, cup with straw: soft
    drink cup, kiwi fruit: kiwifruit, automobile: car, airplane: plane, bicycle: bike, fire engine: fire truck,
    hourglass done: hourglass, ringed planet: planet, umbrella on ground: beach umbrella, jack-o-lantern: pumpkin,
    wrapped gift: gift, tennis: tennis racket, badminton: badminton racket, cricket game: cricket bat, ping pong:
    ping pong paddle, bullseye: dartboard, game die: dice, pool 8 ball: billiard ball, yarn: ball of yarn, thread:
    spool of thread, framed picture: painting, man's shoe: dress shoe, running shoe: sneaker, woman's sandal:
    sandal, woman's hat: sun hat, rescue worker's helmet: hard hat, gem stone: diamond, optical disk: cd,
    magnifying glass tilted left: magnifying glass, red paper lantern: lantern, package: cardboard box,
    wastebasket: trash can, straight ruler: ruler, carpentry saw: saw, balance scale: scales, satellite antenna:
    satellite dish, television: tv, vertical traffic light: traffic light, roll of paper: roll of toilet paper,
    necktie: tie, bowl with spoon: bowl, soft ice cream: ice cream cone, hippopotamus: hippo,
    field hockey: field hockey stick, ice hockey: ice hockey stick, luggage: suitcase, headphone: headphones
    """
)
# Hard to recognise, hard to name, or with a name that means something else as well.
SKIPPED = listed(
    """
    aerial tramway, alembic, amphora, ballot box with ballot, bat, beverage box, bouquet, bowling, brick, bubble
    tea, carp streamer, chains, chart decreasing, chart increasing, clamp, closed mailbox with raised flag, cloud,
    confetti ball, control knobs, coral, cricket, custard, dango, dragon, elevator, empty nest, film frames, fish
    cake with swirl, flag in hole, flatbread, fondue, fork and knife with plate, fountain, full moon face, garlic,
    glass of milk, globe with meridians, goal net, hair pick, hamsa, hook, identification card, joker, kaaba,
    knot, label, lacrosse, leafy green, ledger, light rail, link, locked, magic wand, mahjong red dragon,
    mantelpiece clock, martial arts uniform, mate, memo, microbe, mirror, mirror ball, moon cake, mountain
    cableway, nazar amulet, notebook with decorative cover, nut and bolt, oden, open mailbox with lowered flag,
    page facing up, pager, performing arts, pick, pig nose, pine decoration, placard, police car light, ring,
    rock, running shirt, satellite, sauropod, seal, seat, shallow pan of food, shaved ice, sheaf of rice,
    snowflake, snowman without snow, speaker high volume, spider web, spouting whale, statue of liberty, stuffed
    flatbread, sun with face, tamale, tanabata tree, tokyo tower, trackball, tumbler glass, unlocked, wheel, white
    cane, window, wing, woman's clothes, wood, world map, x-ray
    """
)
# Elsewhere two things of one subgroup may be called alike ("ship", "ferry"): such pairs never meet, not even as
# a thing shown and an absent one that is asked for.
CRISP = listed(
    """
    animal-mammal, animal-marine, animal-reptile, food-fruit, food-vegetable, household, musical-instrument,
    sport, tool, transport-air
    """
)
# Nor do these, though their subgroups are crisp.
ALIKE = grouped(
    """
    bison, cow, ox, water buffalo / beaver, chipmunk, hamster, mouse, rat / ewe, goat, ram / gorilla, monkey,
    orangutan / dog, fox, poodle, raccoon, wolf / cat, leopard, lion, tiger / badger, beaver, otter, raccoon,
    skunk / deer, donkey, horse, llama, moose, unicorn, zebra / blowfish, dolphin, fish, shark, tropical fish,
    whale / bear, koala, panda, teddy bear / lemon, mango, melon, peach, tangerine / crossed swords, dagger,
    kitchen knife / elephant, mammoth / hippopotamus, rhinoceros / crocodile, lizard, turtle / bed, couch and lamp
    / axe, hammer / screwdriver, wrench / crab, lobster, shrimp / basket, bucket, wastebasket / dog, hot dog /
    parachute, umbrella / skis, sled / bread, croissant
    """
)
MASS = listed(
    """
    bacon, bread, broccoli, butter, canned food, cheese, cooked rice, corn, curry rice, fire, fried shrimp, ginger
    root, herb, popcorn, salad, salt, soap, spaghetti, dna, meat on bone, bow and arrow, couch and lamp
    """
)
SINGULAR = listed("bus, bus stop, cactus, compass, hibiscus, lotus, minibus, octopus, trolleybus")
PLURAL = paired(
    """
    mouse: mice, snowman: snowmen, goose: geese, ox: oxen, leaf: leaves, wolf: wolves, knife: knives, scarf: scarves,
    potato: potatoes, tomato: tomatoes, volcano: volcanoes, mango: mangoes, tornado: tornadoes, cd: cds, tv: tvs
    """
)
SAME = listed("fish, jellyfish, blowfish, sheep, deer, moose, bison, buffalo, shrimp, squid, dice, sushi, kiwifruit")
FLIPPED = ("animal", "plant", "food", "transport", "clothing", "tool", "household", "sport", "musical")  # no writing
# Hue (degrees), least saturation and value, largest value; neighbours in this list leave a gap between them.
COLOURS = {
    "red": (346, 12, 0.55, 0.45, 1.0), "orange": (20, 38, 0.65, 0.78, 1.0), "yellow": (45, 66, 0.45, 0.75, 1.0),
    "brown": (8, 42, 0.3, 0.18, 0.62), "green": (75, 165, 0.3, 0.25, 1.0), "blue": (192, 245, 0.4, 0.35, 1.0),
    "purple": (262, 300, 0.3, 0.3, 1.0), "pink": (315, 352, 0.2, 0.75, 1.0),
}  # fmt: skip
BRIGHT = ("red", "yellow", "green", "blue", "purple")  # of these, no two are ever taken for each other
STOP = {"of", "the", "with", "and", "in", "a", "s", "without", "on"}
# Sides: 0 left, 1 right, 2 above, 3 below.
SAY_SIDE = (("left of", "to the left of"), ("right of", "to the right of"), ("above",), ("below",))
SAY_MOST = (
    ("leftmost", "on the left"),
    ("rightmost", "on the right"),
    ("topmost", "at the top"),
    ("", "at the bottom"),
)


class FontError(Exception):
    """The font is missing, or has no colour bitmaps that Pillow reads."""


@dataclass(frozen=True)
class Noun:
    """A thing to draw: what it is called here, its code point, and all words that might be used of it."""

    name: str
    said: str
    code: int
    family: str
    named: frozenset[str]
    hinted: frozenset[str]

    @property
    def countable(self) -> bool:
        if self.name in MASS or self.said in MASS:
            return False
        return self.said in SINGULAR or not self.said.endswith("s")

    @property
    def plural(self) -> str:
        head, of, rest = self.said.partition(" of ")
        before, space, last = head.rpartition(" ")
        if last in PLURAL or last in SAME:
            many = PLURAL.get(last, last)
        elif re.search(r"(s|x|z|ch|sh)$", last):
            many = last + "es"
        elif re.search(r"[^aeiou]y$", last):
            many = last[:-1] + "ies"
        else:
            many = last + "s"
        return before + space + many + of + rest


@dataclass
class Thing:
    """One object of a scene. box: x0, y0, x1, y1 of its visible pixels; colours: share of them in each colour."""

    noun: Noun
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    area: int = 0
    whole: int = 0
    colours: dict[str, float] = field(default_factory=dict)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def extent(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Query:
    """An expression; targets: indices of the objects it means; distractors: of those it might be taken for."""

    text: str
    kind: str
    targets: tuple[int, ...] = ()
    distractors: tuple[int, ...] = ()


@dataclass
class Scene:
    """image (H, W, 3) uint8; ids (H, W) uint8: 0 is background, i is object i - 1."""

    image: np.ndarray
    ids: np.ndarray
    objects: list[Thing]
    queries: list[Query]
    background: str


# --- names -----------------------------------------------------------------------------------------------------------


def words(*texts: str) -> frozenset[str]:
    """Words of names, without a plural s."""
    found = set(re.findall(r"[a-z0-9]+", " ".join(texts).lower())) - STOP
    return frozenset(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in found)


@functools.cache
def nouns() -> tuple[Noun, ...]:
    """All nouns that are used, in a fixed order."""
    from vlseg.worlds.atlas import entries

    found = []
    for entry in entries():
        name, also = entry["name"], entry["also"]
        said = SAID.get(name, name)
        if name in SKIPPED or name.endswith(" face") or name.startswith("oncoming "):
            continue
        if said not in (name, *also) or " with " in said or re.search(r"[^a-z' -]", said):
            continue
        try:
            code = int(RENAMED[name], 16) if name in RENAMED else ord(unicodedata.lookup(name))
        except KeyError:  # a sequence of several code points
            continue
        family = re.sub(r"^(place|plant|food-(?=asian|prepared|sweet)).*", r"\1", entry["subgroup"])
        named = words(name, *also)
        found.append(Noun(name, said, code, family, named, named | words(*entry["keywords"])))
    return tuple(found)


def apart(a: Noun, b: Noun) -> bool:
    """Whether nobody would use one's names of the other."""
    if a.named & b.hinted or b.named & a.hinted or (a.family == b.family and a.family not in CRISP):
        return False
    return not any(a.name in group and b.name in group for group in ALIKE)


# --- drawing ---------------------------------------------------------------------------------------------------------


class Glyphs:
    """Bitmaps of the font, cropped; None where it has none, or only a see-through one."""

    def __init__(self, path: str | None = None) -> None:
        try:
            self.font = ImageFont.truetype(path or FONT, STRIKE)
            self.kept: dict[int, Image.Image | None] = {}
            dog = self.get(0x1F415)
        except OSError as error:
            raise FontError(f"cannot load {path or FONT}: {error}; {NEWER}") from error
        if dog is None or np.ptp(np.asarray(dog)[..., :3].astype(int), axis=2).max() < 30:
            raise FontError(f"{path or FONT} has no colour bitmaps; {NEWER}")

    def get(self, code: int) -> Image.Image | None:
        if code not in self.kept:
            sheet = Image.new("RGBA", (STRIKE * 2, STRIKE * 2))
            ImageDraw.Draw(sheet).text((STRIKE // 4, STRIKE // 4), chr(code), font=self.font, embedded_color=True)
            alpha = np.asarray(sheet)[..., 3]
            solid = (alpha >= 128).sum() >= max(1500, 0.85 * (alpha > 16).sum())
            self.kept[code] = sheet.crop(sheet.getbbox()) if solid else None
        return self.kept[code]


def sprite(glyph: Image.Image, extent: float, turn: int, flip: bool, rng: np.random.Generator) -> np.ndarray:
    """The glyph (h, w, 4) in 0..1 with its longer side at `extent`; turn: steps of hue, out of 256; flip: may be."""
    colour, alpha = glyph.convert("RGB"), glyph.getchannel("A")
    if turn:
        hsv = np.array(colour.convert("HSV"))
        hsv[..., 0] += np.uint8(turn)
        colour = Image.fromarray(hsv, "HSV").convert("RGB")
    image = Image.merge("RGBA", (*colour.split(), alpha))
    if rng.random() < 0.4 and flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.6:
        image = image.rotate(float(rng.uniform(-18, 18)), Image.Resampling.BICUBIC, expand=True)
    solid = image.getchannel("A").point(lambda v: 255 if v >= 128 else 0)
    image = image.crop(solid.getbbox())
    scale = extent / max(image.size)
    size = tuple(max(2, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32) / 255
    light, gamma = rng.uniform(0.88, 1.12), rng.uniform(0.9, 1.12)
    return np.dstack([np.clip(pixels[..., :3] ** gamma * light, 0, 1), pixels[..., 3:]])


def painted(rng: np.random.Generator) -> np.ndarray:
    """A gradient, with brush strokes or shapes over it, (SIDE, SIDE, 3) in 0..1."""
    yy, xx = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = np.clip(xx * np.cos(angle) + yy * np.sin(angle) + 0.5, 0, 1)
    if rng.random() < 0.3:
        along = np.clip(np.hypot(xx - rng.uniform(-0.4, 0.4), yy - rng.uniform(-0.4, 0.4)) * 1.4, 0, 1)
    palette = rng.uniform(0.15, 1.0) + rng.uniform(-0.22, 0.22, (6, 3)) * rng.uniform(0.3, 1.6)
    palette = np.clip(palette, 0, 1)
    image = palette[0] * (1 - along[..., None]) + palette[1] * along[..., None]
    style = rng.integers(4)
    if style:
        big = 2 * SIDE
        sheet = Image.new("RGBA", (big, big))
        draw = ImageDraw.Draw(sheet)
        for _ in range(rng.integers(6, 40) if style < 3 else rng.integers(3, 9)):
            ink = (*(int(255 * v) for v in palette[rng.integers(2, 6)]), int(rng.integers(40, 190)))
            x, y = rng.uniform(0, big, 2)
            if style < 3:  # strokes that curve
                way, bend, width = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.12), int(rng.integers(6, 70))
                line = [(x, y)]
                for _ in range(rng.integers(4, 14)):
                    way += bend
                    line.append((line[-1][0] + 28 * math.cos(way), line[-1][1] + 28 * math.sin(way)))
                draw.line(line, ink, width, joint="curve")
            else:
                corners = rng.integers(3, 7)
                spokes = np.sort(rng.uniform(0, 2 * np.pi, corners))
                far = rng.uniform(60, 330)
                draw.polygon([(x + far * math.cos(s), y + far * math.sin(s)) for s in spokes], ink)
        sheet = sheet.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 6))))
        over = np.asarray(sheet.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
        image = image * (1 - over[..., 3:]) + over[..., :3] * over[..., 3:]
    grain = rng.normal(0, 1, (SIDE // 2, SIDE // 2)).astype(np.float32)
    canvas = np.asarray(Image.fromarray(grain).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return np.clip(image + rng.uniform(0, 0.02) * canvas[..., None], 0, 1)


class Photos:
    """Photographic backgrounds: files of a folder, or textures of scikit-image, or none."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.files: list[Path] = []
        self.textures: list[np.ndarray] = []
        if folder is not None:
            kinds = {".jpg", ".jpeg", ".png", ".webp"}
            self.files = sorted(f for f in Path(folder).iterdir() if f.suffix.lower() in kinds)
            return
        try:
            from skimage import data

            self.textures = [data.grass(), data.gravel(), data.brick(), data.hubble_deep_field()]
        except Exception:  # not installed, or its pictures are not at hand
            self.textures = []

    def __bool__(self) -> bool:
        return bool(self.files or self.textures)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A blurred crop: what stands in the photograph must not be nameable, or an absent query would be false."""
        if self.files:
            photo = Image.open(self.files[rng.integers(len(self.files))]).convert("RGB")
        else:
            photo = Image.fromarray(self.textures[rng.integers(len(self.textures))]).convert("RGB")
        side = int(min(photo.size) * rng.uniform(0.4, 0.8))
        x, y = rng.integers(photo.width - side + 1), rng.integers(photo.height - side + 1)
        crop = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x, y, x + side, y + side))
        blur = rng.uniform(4, 8) if self.files else rng.uniform(0.5, 4)
        pixels = np.asarray(crop.filter(ImageFilter.GaussianBlur(float(blur))), np.float32) / 255
        tint = 1.0 if self.files else rng.uniform(0.7, 1.0, 3)
        return np.clip(pixels * tint * rng.uniform(0.8, 1.1), 0, 1)


def shares(pixels: np.ndarray) -> dict[str, float]:
    """Share of the pixels (n, 3) uint8 in each colour; white, grey, black and what lies between two are in none."""
    hue, sat, val = (np.asarray(Image.fromarray(pixels[None]).convert("HSV"), float)[0] / 255).T
    hue = hue * 360
    found = {}
    for name, (low, high, least, dark, light) in COLOURS.items():
        turned = (hue >= low) & (hue <= high) if low < high else (hue >= low) | (hue <= high)
        found[name] = float((turned & (sat >= least) & (val >= dark) & (val <= light)).mean())
    grey = sat <= 0.12
    found["white"] = float((grey & (val > 0.85)).mean())
    found["gray"] = float((grey & (val > 0.42) & (val < 0.72)).mean())
    found["black"] = float((val < 0.22).mean())
    return found


# --- a scene ---------------------------------------------------------------------------------------------------------


def cast(count: int, glyphs: Glyphs, rng: np.random.Generator) -> list[Noun]:
    """`count` nouns, most scenes with two or three of a kind, all kinds apart from each other."""
    patterns: list[list[int]] = [[2], [2, 2], [3], [3, 2], [2], []]
    groups = list(patterns[rng.integers(len(patterns))])
    while sum(groups) > count:
        groups.pop()
    groups += [1] * (count - sum(groups))
    chosen: list[Noun] = []
    found: list[Noun] = []
    for copies in groups:
        while True:
            noun = nouns()[rng.integers(len(nouns()))]
            if copies > 1 and not noun.countable:
                continue
            if all(apart(noun, other) for other in chosen) and glyphs.get(noun.code) is not None:
                break
        chosen.append(noun)
        found += [noun] * copies
    return found


def place(
    cast_: Sequence[Noun], glyphs: Glyphs, rng: np.random.Generator
) -> tuple[np.ndarray, list[Thing], list[tuple[np.ndarray, int, int]]] | None:
    """ids, things and their sprites with (x, y), back to front; None if they do not fit."""
    low, high = EXTENT
    extents = np.exp(rng.uniform(math.log(low + 1), math.log(high), len(cast_)))
    order = [int(i) for i in rng.permutation(len(cast_))]
    if rng.random() < 0.7:
        order.sort(key=lambda i: -extents[i])
    ids = np.zeros((SIDE, SIDE), np.uint8)
    things = [Thing(noun) for noun in cast_]
    drawn: list[tuple[np.ndarray, int, int]] = []
    for i in order:
        glyph = glyphs.get(cast_[i].code)
        assert glyph is not None
        twins = sum(n is cast_[i] for n in cast_) > 1
        turn = int(rng.integers(70, 187)) if twins and rng.random() < 0.3 else 0
        picture = sprite(glyph, float(extents[i]), turn, cast_[i].family.startswith(FLIPPED), rng)
        solid = picture[..., 3] >= 0.5
        h, w = solid.shape
        crowd = rng.random() < 0.25  # may cover a part of others
        for _ in range(60):
            x, y = int(rng.integers(2, SIDE - w - 1)), int(rng.integers(2, SIDE - h - 1))
            under = ids[y : y + h, x : x + w]
            hit = np.bincount(under[solid], minlength=len(cast_) + 1)[1:]
            if not crowd and hit.any():
                continue
            left = [t.area - n >= (VISIBLE + 0.05) * t.whole for t, n in zip(things, hit, strict=True) if n]
            if all(left):
                break
        else:
            return None
        under[solid] = i + 1
        for thing, n in zip(things, hit, strict=True):
            thing.area -= int(n)
        things[i].whole = things[i].area = int(solid.sum())
        drawn.append((picture, x, y))
    for i, thing in enumerate(things):
        ys, xs = np.nonzero(ids == i + 1)
        thing.box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        if not low <= thing.extent <= high:
            return None
    return ids, things, drawn


def paint(back: np.ndarray, drawn: Sequence[tuple[np.ndarray, int, int]], rng: np.random.Generator) -> np.ndarray:
    """The picture, uint8."""
    image = back.astype(np.float32)
    shadow = rng.uniform(0.2, 0.45) if rng.random() < 0.35 else 0.0
    for picture, x, y in drawn:
        h, w = picture.shape[:2]
        if shadow:
            cast_ = Image.new("L", (SIDE, SIDE))
            cast_.paste(Image.fromarray((picture[..., 3] * 255).astype(np.uint8)), (x + 2, y + 3))
            dark = np.asarray(cast_.filter(ImageFilter.GaussianBlur(3)), np.float32) / 255
            image *= 1 - shadow * dark[..., None]
        part = image[y : y + h, x : x + w]
        alpha = picture[..., 3:]
        part *= 1 - alpha
        part += picture[..., :3] * alpha
    image += rng.normal(0, 1, image.shape) * rng.uniform(0, 0.012)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


# --- what is true of it ----------------------------------------------------------------------------------------------


def beside(a: Thing, b: Thing, side: int) -> bool:
    """Whether a clearly lies on that side of b: past it, and more that way than another."""
    axis, sign = side // 2, 1 if side % 2 == 0 else -1
    along, across = (sign * (b.centre[k] - a.centre[k]) for k in (axis, 1 - axis))
    gap = b.box[axis] - a.box[axis + 2] if sign > 0 else a.box[axis] - b.box[axis + 2]
    return along >= 24 and gap >= -4 and along >= 1.2 * abs(across)


def gap_between(a: Thing, b: Thing) -> float:
    """Distance of two boxes."""
    dx, dy = (max(a.box[k] - b.box[k + 2], b.box[k] - a.box[k + 2], 0) for k in (0, 1))
    return math.hypot(dx, dy)


def wording(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]


class Truths:
    """Every plain statement about the things of a scene that is clear beyond dispute, by kind."""

    def __init__(self, things: Sequence[Thing], rng: np.random.Generator) -> None:
        self.things, self.rng = things, rng
        self.groups: dict[Noun, list[int]] = {}
        for i, thing in enumerate(things):
            self.groups.setdefault(thing.noun, []).append(i)
        self.single = {noun: group[0] for noun, group in self.groups.items() if len(group) == 1}
        self.found: dict[str, list[Query]] = {}
        for noun, group in self.groups.items():
            if len(group) == 1:
                text = wording(rng, [f"the {noun.said}", noun.said])
                self.add("noun", text, group, [i for i in range(len(things)) if i not in group])
            else:
                text = wording(rng, [f"all the {noun.plural}", f"the {noun.plural}"])
                self.add("all", text, group, [i for i in range(len(things)) if i not in group])
                self.places(noun, group)
                self.sizes(noun, group)
            self.colours(noun, group)
            for other, anchor in self.single.items():
                if other is not noun:
                    self.relations(noun, group, other, anchor)
        self.missing()

    def add(self, kind: str, text: str, targets: Sequence[int] = (), rivals: Sequence[int] = ()) -> None:
        others = tuple(i for i in rivals if i not in targets)
        self.found.setdefault(kind, []).append(Query(text, kind, tuple(targets), others))

    def places(self, noun: Noun, group: list[int]) -> None:
        for side, (most, at) in enumerate(SAY_MOST):
            axis, sign = side // 2, 1 if side % 2 == 0 else -1
            order = sorted(group, key=lambda i: sign * self.things[i].centre[axis])
            a, b = self.things[order[0]], self.things[order[1]]
            edges = [sign * (b.box[k] - a.box[k]) for k in (axis, axis + 2)]
            clear = sign * (b.centre[axis] - a.centre[axis])
            if clear < 24 or min(edges) < 8:
                continue
            texts = [f"the {most} {noun.said}"] if most else []
            here = a.centre[axis] / SIDE
            if len(group) == 2 and clear >= 48 and (here < 0.5 if sign > 0 else here > 0.5):
                texts.append(f"the {noun.said} {at}")
            if texts:
                self.add("place", wording(self.rng, texts), order[:1], group)

    def sizes(self, noun: Noun, group: list[int]) -> None:
        for sign, names in ((-1, ("largest", "biggest")), (1, ("smallest",))):
            order = sorted(group, key=lambda i: sign * self.things[i].whole)
            pair = [self.things[i] for i in order[:2]]
            small, big = pair if sign > 0 else pair[::-1]
            if big.whole >= 1.6 * small.whole and big.area >= 1.6 * small.area and big.extent >= 1.2 * small.extent:
                self.add("size", f"the {wording(self.rng, names)} {noun.said}", order[:1], group)

    def colours(self, noun: Noun, group: list[int]) -> None:
        own = [self.things[i].colours for i in group]
        if any(name in said for name in own[0] for said in noun.named):  # no "red red apple"
            return
        for name in own[0]:
            clear = [i for i, c in zip(group, own, strict=True) if c[name] >= 0.62]
            if len(clear) == 1 and all(c[name] <= 0.08 for i, c in zip(group, own, strict=True) if i not in clear):
                self.add("colour", f"the {name} {noun.said}", clear, group)
        bright = [[name for name in BRIGHT if c[name] >= 0.62] for c in own]
        if all(bright):
            for name in BRIGHT:
                if all(c[name] <= 0.03 for c in own):
                    self.add("absent: colour", f"the {name} {noun.said}")

    def relations(self, noun: Noun, group: list[int], other: Noun, anchor: int) -> None:
        b = self.things[anchor]
        for side, says in enumerate(SAY_SIDE):
            text = f"the {noun.said} {wording(self.rng, says)} the {other.said}"
            there = [i for i in group if beside(self.things[i], b, side)]
            against = [i for i in group if beside(self.things[i], b, side ^ 1)]
            axis, sign = side // 2, 1 if side % 2 == 0 else -1
            not_there = [i for i in group if sign * (self.things[i].centre[axis] - b.centre[axis]) > 0]
            if len(there) == 1 and len(there) + len(not_there) == len(group):
                self.add("relation", text, there, [*group, anchor])
            elif len(against) == len(group):
                self.add("absent: relation", text)
        gaps = sorted((gap_between(self.things[i], b), i) for i in group)
        text = f"the {noun.said} next to the {other.said}"
        if gaps[0][0] <= 18 and all(g >= 72 for g, _ in gaps[1:]):
            self.add("next to", text, [gaps[0][1]], [*group, anchor])
        elif gaps[0][0] >= 120:
            self.add("absent: relation", text)

    def missing(self) -> None:
        pool = [n for n in nouns() if all(apart(n, here) for here in self.groups)]
        for k in self.rng.choice(len(pool), 4, replace=False):
            absent, anchors = pool[k].said, [n.said for n in self.single]
            if anchors and self.rng.random() < 0.1:
                side = wording(self.rng, SAY_SIDE[self.rng.integers(4)])
                self.add("absent: noun", f"the {absent} {side} the {anchors[0]}")
            else:
                self.add("absent: noun", wording(self.rng, [f"the {absent}", f"the {absent}", absent]))

    def pick(self, count: int) -> list[Query]:
        """`count` queries of mixed kinds, those with a rival of the same name first where there are any."""
        present = {"noun": 5, "place": 5, "size": 3, "relation": 5, "next to": 2, "colour": 3, "all": 2}
        absent = {"absent: noun": 5, "absent: relation": 4, "absent: colour": 1}
        chosen: list[Query] = []
        for _ in range(count):
            for weights in (absent, present) if self.rng.random() < ABSENT else (present, absent):
                kinds = [k for k in weights if self.found.get(k)]
                if kinds:
                    share = np.array([weights[k] for k in kinds], float)
                    pool = self.found[kinds[self.rng.choice(len(kinds), p=share / share.sum())]]
                    hard = [q for q in pool if any(self.twin(q, d) for d in q.distractors)]
                    pick = hard if hard and self.rng.random() < 0.7 else pool
                    chosen.append(pick[self.rng.integers(len(pick))])
                    pool.remove(chosen[-1])
                    break
        return chosen

    def twin(self, query: Query, other: int) -> bool:
        return self.things[other].noun in {self.things[t].noun for t in query.targets}


def generate(
    count: int,
    seed: int = SEED,
    objects: int = OBJECTS,
    queries: int = QUERIES,
    font: str | None = None,
    photos: str | Path | None = None,
) -> Iterator[Scene]:
    """`count` scenes of 256 x 256 px; the same arguments, font and photographs give the same scenes.

    photos: a folder of photographs to cut backgrounds from; otherwise textures of scikit-image, if it is installed.
    """
    glyphs, album = Glyphs(font), Photos(photos)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        for _ in range(200):
            placed = place(cast(objects, glyphs, rng), glyphs, rng)
            if placed is not None:
                break
        else:
            raise ValueError(f"{objects} objects do not fit into a scene")
        ids, things, drawn = placed
        photographic = bool(album) and rng.random() < 0.5
        image = paint(album.draw(rng) if photographic else painted(rng), drawn, rng)
        for i, thing in enumerate(things):
            thing.colours = shares(image[ids == i + 1])
        chosen = Truths(things, rng).pick(queries)
        yield Scene(image, ids, things, chosen, "photographic" if photographic else "painted")


# --- scores ----------------------------------------------------------------------------------------------------------


def sheet(scenes: Sequence[Scene], file: str, columns: int = 4) -> None:
    """A picture of scenes, targets numbered as in the queries below them."""
    width, height = SIDE + 16, SIDE + 14 * QUERIES + 22
    page = Image.new("RGB", (columns * width, -(-len(scenes) // columns) * height), "white")
    draw = ImageDraw.Draw(page)
    for n, scene in enumerate(scenes):
        x, y = n % columns * width + 8, n // columns * height + 8
        page.paste(Image.fromarray(scene.image), (x, y))
        for i, thing in enumerate(scene.objects):
            inside = scene.ids == i + 1
            padded = np.pad(inside, 1)
            core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
            edge = Image.fromarray((inside & ~core).astype(np.uint8) * 255)
            page.paste(Image.new("RGB", edge.size, "red"), (x, y), edge)
            at = x + thing.box[0], y + thing.box[1]
            draw.rectangle((*at, at[0] + 8, at[1] + 11), "black")
            draw.text((at[0] + 1, at[1]), str(i), "white")
        for k, query in enumerate(scene.queries):
            answer = ",".join(map(str, query.targets)) or "-"
            draw.text((x, y + SIDE + 4 + 14 * k), f"{answer}  {query.text}", "black" if query.targets else "red")
    page.save(file)


def measure(model: Any, processor: Any, scenes: Callable[[], Iterator[Scene]]) -> dict[str, Any]:
    """All tables as plain data."""
    from vlseg.evaluation.scenes import score_scenes
    from vlseg.metrics.bootstrap import with_intervals

    backgrounds: list[str] = []

    def noted() -> Iterator[Scene]:
        for scene in scenes():
            backgrounds.append(scene.background)
            yield scene

    cases = score_scenes(model, processor, noted())
    return {
        "scenes": len(backgrounds),
        "queries": len(cases),
        "overall": with_intervals(cases),
        "kinds": {k: with_intervals([c for c in cases if c.kind == k]) for k in sorted({c.kind for c in cases})},
        "backgrounds": {
            b: with_intervals([c for c in cases if backgrounds[int(c.image)] == b]) for b in sorted(set(backgrounds))
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""

    def cell(scores: dict[str, Any], name: str) -> str:
        entry = scores.get(name)
        return "" if entry is None else f"{entry['value']:.3f} ({entry['ci95'][0]:.3f}–{entry['ci95'][1]:.3f})"

    columns = ["mIoU", "cIoU", "P@0.5", "wrong-instance", "T-acc", "N-acc"]
    lines = ["| | cases | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    rows = {"every query": result["overall"], **result["kinds"]}
    rows |= {f"on {name} backgrounds": scores for name, scores in result["backgrounds"].items()}
    for name, scores in rows.items():
        cases = sum(scores[k]["cases"] for k in ("mIoU", "N-acc") if k in scores)
        lines.append(f"| {name} | {cases} | " + " | ".join(cell(scores, c) for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="a checkpoint folder (default: the embedded model)")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--objects", type=int, default=OBJECTS, help="objects in a scene")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--font", help=f"a colour bitmap font (default: the system's {FONT})")
    parser.add_argument("--photos", help="a folder of photographs for backgrounds (default: scikit-image's textures)")
    parser.add_argument("--sheet", metavar="FILE", help="draw the first 24 scenes with their queries, and stop")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else on stdout")
    args = parser.parse_args()

    def scenes() -> Iterator[Scene]:
        return generate(args.scenes, args.seed, args.objects, font=args.font, photos=args.photos)

    try:
        Glyphs(args.font)
    except FontError as error:
        print(f"foreign_scenes: {error}", file=sys.stderr)
        sys.exit(2)
    if args.sheet:
        drawn = list(itertools.islice(scenes(), 24))
        sheet(drawn, args.sheet)
        print(json.dumps({"sheet": args.sheet, "scenes": len(drawn)}) if args.json else args.sheet)
        return

    from vlseg.models.modeling import VLSegModel
    from vlseg.models.processing import VLSegProcessor
    from vlseg.systems.registry import EMBEDDED, WEIGHTS

    folder = Path(args.model or WEIGHTS / EMBEDDED)
    model = VLSegModel.from_pretrained(folder, dtype="float32").eval()
    processor = VLSegProcessor.from_pretrained(folder)
    start = time.perf_counter()
    result = {"model": args.model or EMBEDDED, "seed": args.seed, "presence": model.config.presence}
    result |= measure(model, processor, scenes)
    result["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
