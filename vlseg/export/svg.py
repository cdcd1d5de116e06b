"""One SVG document a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlseg.data.files import write_whole
from vlseg.export.source import Results
from vlseg.masks import rle as codec
from vlseg.masks.svg import document, path_data

if TYPE_CHECKING:
    from vlseg.export.kinds import Options


def write(results: Results, out: Path, options: Options) -> Path:
    """OUT/BASE.svg (`vlseg.masks.svg.document`): the path of each segment as its Result has it, else its outline."""
    for item in results:
        for answer in item.result.answers:
            for segment in answer.segments:
                segment.path = segment.path or path_data(codec.decode(segment.rle))
        write_whole(out / f"{item.base}.svg", document(item.result))
    return out
