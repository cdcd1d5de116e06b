"""What is asked of a mirrored picture."""

from __future__ import annotations

import pytest

from vlseg.bulk.label_words import mirrored, variants


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the dog", "the dog"),
        ("the dog on the left", "the dog on the right"),
        ("Right dog, not the LEFT one", "Left dog, not the RIGHT one"),
        ("the left-most cup right of the jug", "the right-most cup left of the jug"),
        ("leftmost and rightmost", "rightmost and leftmost"),
        ("his left-hand glove", "his right-hand glove"),
        ("the arrow turning clockwise", "the arrow turning counterclockwise"),
        ("anticlockwise spiral", "clockwise spiral"),
        ("the west wing", "the east wing"),
        ("the bright leftover pizza", "the bright leftover pizza"),
        ("the cake that is left", "the cake that is left"),
        ("the man who is left of the dog", "the man who is right of the dog"),
        ("the right angle on the right", "the right angle on the left"),
        ("the right triangle", "the right triangle"),
        ("the cat right behind the sofa", "the cat right behind the sofa"),
        ("the cup on the right behind the sofa", "the cup on the left behind the sofa"),
        ("左边的狗", "右边的狗"),
    ],
)
def test_sides_change_places(text, expected):
    assert mirrored(text) == expected


@pytest.mark.parametrize(
    "text",
    ['the sign "left"', "the sign that says left", "bus 42", "the word on the wall", "the clock at nine o'clock",
     "le chien à gauche", "собака слева", "the letter b", "the player with number seven"],
)  # fmt: skip
def test_what_a_mirror_changes_otherwise_is_not_asked(text):
    assert mirrored(text) is None


@pytest.mark.parametrize("text", ["the dog on the left", "rightmost cup", "counterclockwise arrow", "the east door"])
def test_twice_mirrored_is_the_same(text):
    assert mirrored(mirrored(text)) == text


def test_an_apostrophe_is_no_quotation():
    assert mirrored("the dog's left ear and the cat's tail") == "the dog's right ear and the cat's tail"


def test_variants():
    assert variants("the red mug | red cup |  | the mug that is red") == [
        "the red mug",
        "red cup",
        "the mug that is red",
    ]
    assert variants("a|b") == ["a|b"]
    assert variants(" | ") == [" | "]
