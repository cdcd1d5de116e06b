"""Other words for the class names of COCO, PASCAL VOC, ADE20K and Cityscapes. English; singular; no torch.

A small table of our own, not a thesaurus: it holds what people type for the classes that pretrained checkpoints have.
"""

from __future__ import annotations

from functools import cache

# Each line: words for one and the same thing.
SAME = """
person, human, human being, pedestrian
car, automobile, auto, motorcar
bicycle, bike, cycle, pushbike
motorcycle, motorbike
airplane, aeroplane, plane, aircraft, jet
bus, coach, autobus
truck, lorry
train, railway train
boat, vessel
traffic light, traffic signal, stoplight, stop light
fire hydrant, hydrant
street sign, road sign, traffic sign, signboard
cow, cattle
sofa, couch, settee
tv, television, tv set, television set, tvmonitor, tv monitor, television receiver, television screen
potted plant, pottedplant, houseplant, house plant
dining table, diningtable, dinner table
cell phone, mobile phone, cellphone, smartphone, mobile, cellular phone
laptop, laptop computer, notebook computer
remote, remote control
refrigerator, fridge, icebox
donut, doughnut
hair drier, hair dryer, blow dryer, hairdryer
teddy bear, teddy, stuffed bear
wine glass, wineglass, goblet
cup, mug, teacup, coffee cup
couch, sofa
handbag, hand bag, purse
backpack, rucksack, knapsack
suitcase, luggage case
tie, necktie
frisbee, flying disc
sports ball, ball
toilet, lavatory, commode
sink, washbasin, basin
oven, cooker
hot dog, hotdog
pizza, pizza pie
scissors, pair of scissors, shears
parking meter, meter
bench, park bench
sidewalk, pavement, footpath, walkway
road, street, roadway, route
building, edifice
house, home
sky, heaven
sea, ocean
river, stream
mountain, mount
grass, lawn
rug, carpet, carpeting
curtain, drape, drapery
bed, bedstead
cupboard, cabinet, closet
wardrobe, armoire
lamp, light
painting, picture
bookcase, bookshelf
armchair, easy chair
stairs, staircase, stairway, steps
streetlight, street lamp, street light, lamppost
rider, cyclist, biker, motorcyclist
vegetation, greenery, foliage
terrain, ground, earth
bin, trash can, ashcan, garbage can, dustbin, rubbish bin
computer, computing machine
monitor, monitoring device, screen, crt screen
microwave, microwave oven
washer, washing machine
stove, kitchen stove
"""

# Each line: a class, then kinds of it. A query for a kind is answered by the class, never the other way round.
KINDS = """
person: man, woman, boy, girl, child, kid, baby, toddler, guy, lady, gentleman, father, mother, bride, groom
person: player, skier, surfer, skateboarder, batter, catcher, pitcher, umpire, worker, driver, chef, waiter
dog: puppy, pup, hound, poodle, labrador, terrier
cat: kitten, kitty, tabby
cow: bull, calf, ox
sheep: lamb, ram, ewe
horse: pony, foal, mare, stallion
bird: seagull, gull, pigeon, duck, parrot, sparrow, swan, goose, owl, chicken, hen, rooster
car: taxi, cab, suv, sedan, jeep, van, police car
truck: pickup, pickup truck, fire truck, van
bus: double decker, school bus, minibus
boat: ship, sailboat, canoe, kayak, ferry, yacht
train: locomotive, tram, subway
bear: polar bear, grizzly
chair: stool, seat, armchair
potted plant: plant, flowerpot
dining table: table
tv: monitor, screen
clock: wall clock, alarm clock
sports ball: football, soccer ball, basketball, volleyball, baseball, tennis ball, golf ball, rugby ball
bottle: beer bottle, wine bottle, water bottle
bowl: dish
tree: palm, palm tree, pine, oak
building: skyscraper, tower, house, church
rider: bicyclist
"""


@cache
def groups() -> dict[str, frozenset[str]]:
    """For each word the words that mean the same, itself among them."""
    found: dict[str, set[str]] = {}
    for line in SAME.strip().splitlines():
        together = {word.strip() for word in line.split(",")}
        for word in list(together):
            together |= found.get(word, set())
        for word in together:
            found[word] = together
    return {word: frozenset(words) for word, words in found.items()}


@cache
def kinds() -> dict[str, tuple[str, ...]]:
    """For each kind the classes that it is a kind of."""
    found: dict[str, tuple[str, ...]] = {}
    for line in KINDS.strip().splitlines():
        name, _, rest = line.partition(":")
        for word in rest.split(","):
            found[word.strip()] = (*found.get(word.strip(), ()), name.strip())
    return found
