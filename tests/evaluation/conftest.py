"""A data set whose words say where the truth is, and a system that reads them: every score can be worked out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from vlseg.data.dataset import Problem
from vlseg.masks import rle as codec
from vlseg.systems.base import decide
from vlseg.types import Query, Sample

HEIGHT, WIDTH = 60, 80


def box_mask(left, top, width, height):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def box_rle(*box):
    return codec.encode(box_mask(*box))


@dataclass
class Boxes:
    """A `Dataset` in memory."""

    samples: list[Sample]
    name: str = "boxes"
    split: str = "val"
    problems: list[Problem] = field(default_factory=list)

    @property
    def fingerprint(self):
        return hashlib.sha256(repr([(s.id, s.queries) for s in self.samples]).encode()).hexdigest()

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def make_boxes(images=7, queries=4, seed=0):
    """Per image `queries` boxes in turn asked for rightly, with the wrong place, with a rival, and though absent."""
    rng = np.random.default_rng(seed)
    samples = []
    for n in range(images):
        picture = Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
        made = []
        for k in range(queries):
            box = [int(v) for v in (*rng.integers(0, 20, 2), *rng.integers(10, 30, 2))]
            shift = [0, 3, 0, 0][k % 4]
            words = f"box {box[0] + shift} {box[1]} {box[2]} {box[3]}"
            if k % 4 == 3:
                words += " gone" if n % 2 else ""
                made.append(Query(words, [], kind="absent", id=f"{n}:{k}"))
            else:
                rival = [box_rle(55, 40, 10, 10)] if k % 4 == 2 else []
                made.append(Query(words, [box_rle(*box)], rival, "plain", id=f"{n}:{k}"))
        samples.append(Sample(picture, made, f"image {n}", size=(HEIGHT, WIDTH)))
    return Boxes(samples)


class BoxSystem:
    """Draws the box that the words name; says absent where they hold "gone"; goes wrong where they say so."""

    name = "box-system"
    protocol = "reads boxes"
    modes = ("mask",)
    presence_threshold = 0.5

    def __init__(self):
        self.calls = []

    def segment(self, image, queries, **options):
        return self.segment_batch([image], [queries], **options)[0]

    def segment_batch(self, images, queries, *, presence_threshold=None, mask_threshold=0.5):
        self.calls.append([list(row) for row in queries])
        threshold = self.presence_threshold if presence_threshold is None else presence_threshold
        return [[self.one(image, text, threshold) for text in row] for image, row in zip(images, queries, strict=True)]

    def one(self, image, text, threshold):
        if "crash" in text:
            raise RuntimeError("out of\nluck")
        score = 0.2 if "gone" in text else 0.9
        numbers = [int(word) for word in text.split() if word.isdigit()]
        return decide(text, score, threshold, (image.height, image.width), lambda: box_mask(*numbers))


@pytest.fixture
def boxes():
    """boxes(images, queries, seed): a data set; seven images by default."""
    return make_boxes


@pytest.fixture
def box_system():
    """A fresh `BoxSystem`."""
    return BoxSystem()
