"""The things of the scenes of foreign_scenes.py: what they are called, and which of them nobody takes for another."""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass


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
STOP = {"of", "the", "with", "and", "in", "a", "s", "without", "on"}


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
