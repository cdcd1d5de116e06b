"""The noun tables: what fits, what does not, and what is open; and the assets they stand on."""

from __future__ import annotations

import pytest

from vlseg.worlds.absent_words import invented, ordinary
from vlseg.worlds.atlas import ASSETS, entries, sprite
from vlseg.worlds.curation import curation
from vlseg.worlds.inflect import plural
from vlseg.worlds.nouns import nouns
from vlseg.worlds.sprites import SpriteWorld


def glyph(name: str) -> int:
    return nouns().names.index(name)


def test_there_are_enough_nouns_and_the_assets_are_small() -> None:
    names = SpriteWorld().nouns
    assert len(names) >= 500
    assert len(set(names)) == len(names)
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 2.5e6
    assert (ASSETS / "LICENSE-NotoColorEmoji").read_text(encoding="utf-8").count("SIL OPEN FONT LICENSE") >= 1
    pictures = {f"photos/{path.name}" for path in (ASSETS / "photos").iterdir()}
    licences = (ASSETS / "LICENSE-photos").read_text(encoding="utf-8")
    assert pictures
    assert all(name in licences for name in pictures)


@pytest.mark.parametrize(
    ("phrase", "name", "fit"),
    [
        ("dog", "dog", "yes"),
        ("dog", "guide dog", "yes"),
        ("dog", "service dog", "yes"),
        ("dog", "hot dog", "open"),
        ("dog", "dog face", "open"),
        ("dog", "poodle", "open"),
        ("dog", "cat", "no"),
        ("car", "automobile", "yes"),
        ("car", "police car", "yes"),
        ("car", "railway car", "open"),
        ("camel", "two-hump camel", "yes"),
        ("two-hump camel", "camel", "open"),
        ("mouse", "computer mouse", "open"),
        ("tree", "palm tree", "yes"),
        ("cup of tea", "teacup without handle", "yes"),
        ("lion", "leopard", "no"),
        ("saxophone", "flute", "no"),
        ("harpsichord", "violin", "no"),
    ],
)
def test_fits(phrase: str, name: str, fit: str) -> None:
    assert nouns().fits(phrase, glyph(name)) == fit


def test_a_name_fits_its_own_glyph_and_phrases_are_plain() -> None:
    table = nouns()
    for index, name in enumerate(table.names):
        assert table.fits(name, index) == "yes"
        for phrase in table.phrases[index]:
            assert phrase == phrase.lower().strip()
            assert "’" not in phrase


def test_curation_speaks_of_glyphs_that_are_there() -> None:
    names, tables = set(nouns().names), curation()
    assert set(tables.synonyms) <= names
    assert not tables.exclude & names
    assert not {name for group in tables.heads.values() for name in group} - names
    assert not {name for group in tables.interchangeable for name in group} - names


def test_absent_words_name_no_glyph() -> None:
    table = nouns()
    words = {word for group, _ in ordinary().values() for word in group}
    assert len(words) >= 500
    assert not words & set(table.yes)
    assert len(invented()) > 5000


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("wolf", "wolves"),
        ("bus", "buses"),
        ("cup of tea", "cups of tea"),
        ("cherry", "cherries"),
        ("jeans", None),
        ("computer mouse", "computer mice"),
        ("bread", None),
        ("woman's boot", "woman's boots"),
        ("tomato", "tomatoes"),
    ],
)
def test_plurals(one: str, many: str | None) -> None:
    assert plural(one) == many


def test_sprites_are_cut_with_a_clear_rim() -> None:
    for index in range(0, len(entries()), 37):
        picture = sprite(index)
        assert picture.mode == "RGBa"
        assert max(picture.size) <= 116
        assert picture.getchannel(3).getbbox() is not None
        assert picture.getpixel((0, 0))[3] == 0
