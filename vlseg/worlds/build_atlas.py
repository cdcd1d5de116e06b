"""Build ``assets/``: the sprite sheet, the noun list and the font's licence, from Debian's packages. For developers.

``python -m vlseg.worlds.build_atlas`` needs fonttools and the Debian packages fonts-noto-color-emoji, unicode-data and
unicode-cldr-core; nothing of that is needed to use the world.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from PIL import Image

from vlseg.types import VLSegError
from vlseg.worlds.atlas import ASSETS, CELL, COLUMNS, SHEET
from vlseg.worlds.curation import GROUPS, curation

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
ANNOTATIONS = Path("/usr/share/unicode/cldr/common/annotations/en.xml")
COPYRIGHT = Path("/usr/share/doc/fonts-noto-color-emoji/copyright")


def clean(name: str) -> str:
    """A CLDR short name as a user types it: lower case, plain apostrophe, no other marks."""
    return re.sub(r"\s+", " ", name.lower().replace("’", "'").replace(":", "")).strip()


def emoji() -> list[dict[str, str]]:
    """The fully-qualified emoji of the wanted groups, in Unicode's order: text, name, group, subgroup."""
    found, group, subgroup = [], "", ""
    for line in EMOJI_TEST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif "; fully-qualified" in line and group in GROUPS and "skin tone" not in line:
            match = re.match(r"([0-9A-F ]+);.*# \S+ E[\d.]+ (.*)", line)
            if match is None:
                raise VLSegError(f"{EMOJI_TEST}: cannot read the line {line!r}")
            text = "".join(chr(int(code, 16)) for code in match.group(1).split())
            found.append({"text": text, "name": clean(match.group(2)), "group": group, "subgroup": subgroup})
    return found


def keywords() -> dict[str, list[str]]:
    """CLDR's English keywords by emoji text (without variation selectors)."""
    table: dict[str, list[str]] = {}
    for node in ElementTree.parse(ANNOTATIONS).getroot().iter("annotation"):
        if node.get("type") != "tts" and node.text:
            table[node.get("cp", "")] = [clean(word) for word in node.text.split("|")]
    return table


def bitmaps() -> dict[str, bytes]:
    """PNG bytes by glyph name from the font's colour bitmap table."""
    from fontTools.ttLib import TTFont

    strike = TTFont(FONT)["CBDT"].strikeData[0]
    return {name: bitmap.imageData for name, bitmap in strike.items()}


def glyph_names() -> dict[str, str]:
    """Font glyph name by emoji text, single code points and ligatures alike."""
    from fontTools.ttLib import TTFont

    font = TTFont(FONT)
    cmap = font.getBestCmap()
    names = {chr(code): name for code, name in cmap.items()}
    inverse = {name: chr(code) for code, name in cmap.items()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    parts = [first, *ligature.Component]
                    if all(part in inverse for part in parts):
                        names["".join(inverse[part] for part in parts)] = ligature.LigGlyph
    return names


def trimmed(png: bytes) -> Image.Image:
    """The glyph cut to its opaque pixels and shrunk to at most ``CELL`` pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    opaque = np.argwhere(np.asarray(picture)[..., 3] >= 24)
    (y0, x0), (y1, x1) = opaque.min(0), opaque.max(0) + 1
    picture = picture.crop((int(x0), int(y0), int(x1), int(y1)))
    ratio = min(1.0, CELL / max(picture.size))
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    return picture.resize(size, Image.Resampling.LANCZOS) if ratio < 1 else picture


def build(out: Path, quality: int) -> None:
    """Write the sheet, ``nouns.json`` and the licence to ``out``."""
    for source in (FONT, EMOJI_TEST, ANNOTATIONS, COPYRIGHT):
        if not source.is_file():
            raise VLSegError(f"{source} is missing: install fonts-noto-color-emoji, unicode-data, unicode-cldr-core")
    pngs, names, tags = bitmaps(), glyph_names(), keywords()
    kept, sprites = [], []
    for entry in emoji():
        if entry["name"] in curation().exclude:
            continue
        bare = entry["text"].replace("\ufe0f", "")
        glyph = names.get(entry["text"]) or names.get(bare)
        if glyph is None or glyph not in pngs:
            print("no bitmap:", entry["name"])
            continue
        sprite = trimmed(pngs[glyph])
        also = curation().synonyms.get(entry["name"], [])
        sprites.append(sprite)
        kept.append(
            {
                "name": entry["name"],
                "also": also,
                "group": entry["group"],
                "subgroup": entry["subgroup"],
                "keywords": tags.get(bare, []),
                "size": list(sprite.size),
            }
        )
    rows = -(-len(kept) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for i, sprite in enumerate(sprites):
        sheet.paste(sprite, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    out.mkdir(parents=True, exist_ok=True)
    sheet.save(out / SHEET, quality=quality, method=6, alpha_quality=70)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in kept)
    (out / "nouns.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    text = COPYRIGHT.read_text(encoding="utf-8")
    head = "sprites.webp is made from the font Noto Color Emoji, under the SIL Open Font License 1.1.\n\n"
    (out / "LICENSE-NotoColorEmoji").write_text(head + text, encoding="utf-8")
    print(len(kept), "glyphs;", (out / SHEET).stat().st_size, "bytes")


def main() -> None:
    """Command line of the builder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--quality", type=int, default=72)
    arguments = parser.parse_args()
    build(arguments.out, arguments.quality)


if __name__ == "__main__":
    main()
